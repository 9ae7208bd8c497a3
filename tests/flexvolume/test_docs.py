"""docs/flexvolume.md and docs/volumes: what can be copied from them works, through the kubelet's side."""

from __future__ import annotations

import re
import sys

import pytest

from nodeplug.core.document import reference
from nodeplug.flexvolume import protocol
from nodeplug.flexvolume.main import LogSettings
from nodeplug.kernel import mount
from nodeplug.volumes.service import DRIVERS
from tests.child import run
from tests.examples import ROOT, examples
from tests.flexvolume import drivers, manifests
from tests.flexvolume.installed import SETTINGS, Node
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:cc")
PAGE = "flexvolume.md"
TEXT = (ROOT / "docs" / PAGE).read_text()
PAGES = [PAGE, *(f"volumes/{path.name}" for path in sorted((ROOT / "docs/volumes").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_the_pods_of_the_page_get_their_volumes(ledger: Ledger, page: str) -> None:
    """Under the page's own settings (`toml` examples), after what it has an operator do first (`prepare.sh`)."""
    found = examples(page)
    texts = [text for name, text in found.items() if name.endswith(".yaml")]
    assert texts or page != PAGE
    node = Node(ledger)
    ledger.adopt("settings", lambda: SETTINGS.unlink(missing_ok=True))
    SETTINGS.write_text("\n".join(text for name, text in found.items() if name.endswith(".toml")))
    ledger.adopt("what outlives a volume", manifests.forget)
    if "prepare.sh" in found:
        run(
            ["sh", "-ex"], stdin=found["prepare.sh"].encode(), env={"PATH": f"{ROOT}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        ).ok()
    for pod, volumes in manifests.read("\n---\n".join(texts)):
        for volume in volumes:
            target = node.mount(volume, pod)
            assert mount.is_mounted(str(target)), volume.name
        for volume in volumes:
            node.unmount(volume, pod)
    assert node.mounts() == [] and node.log == []


def test_the_authors_driver_works_and_has_no_faults(ledger: Ledger) -> None:
    program = drivers.place(ledger.directory(), "hello", examples(PAGE)["hello"])
    text = program.read_text().replace(
        "#!/usr/bin/python3\n", f"#!/usr/bin/env -S PYTHONPATH={ROOT} /usr/bin/python3\n"
    )
    program.write_text(text)
    script = examples(PAGE)["check.sh"].replace("./hello", str(program))
    done = run(["sh", "-ex"], stdin=script.encode(), env={"PATH": f"{ROOT}/bin:/usr/bin:/bin", "COLUMNS": "200"})
    assert done.code == 0 and "no faults" in done.text, done.text
    place = ledger.directory()
    (place / "exec").mkdir()
    program.parent.rename(place / "exec" / "example.org~hello")
    run([sys.executable, "-c", examples(PAGE)["try.py"]], cwd=place, env={"PYTHONPATH": str(ROOT)}).ok()


def test_the_commands_of_installing_run(ledger: Ledger) -> None:
    top = ledger.directory()
    script = examples(PAGE)["install.sh"]
    more = f"--dest {top}/exec"
    for command in ("install flexvolume", "uninstall flexvolume"):
        script = script.replace(command, f"{command} {more} --store {top}/store")
    script = script.replace("flexvolume probe", f"flexvolume probe {more}")
    done = run(["sh", "-ex"], stdin=script.encode(), env={"PATH": f"{ROOT}/bin:/usr/bin:/bin", "COLUMNS": "200"}).ok()
    for name in DRIVERS:
        assert f"nodeplug.dev/{name}" in done.text
    assert list((top / "exec").iterdir()) == []


def test_the_tables_name_every_driver_and_every_verb() -> None:
    assert set(re.findall(r"^\| `nodeplug\.dev/(\w+)`", TEXT, re.MULTILINE)) == set(DRIVERS)
    table = TEXT.partition("## What the kubelet really does")[2]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == (protocol.VERBS[0], *protocol.OPS)


def test_the_settings_of_the_log_are_those_of_the_other_contracts() -> None:
    assert "flexvolume.log" in TEXT
    for name in ("path", "form", "level", "limit", "keep"):
        assert f"| `{name}` |" in reference(LogSettings)


def test_the_unit_lets_the_worker_mount() -> None:
    unit = (ROOT / "systemd/nodeplugd.service").read_text()
    bound = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    assert {"CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"} <= set(bound.partition("=")[2].split())
