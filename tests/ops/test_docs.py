"""The commands of docs/install.md and docs/runtime.md do what the pages say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.child import Finished, run
from tests.cni.pages import live
from tests.examples import examples
from tests.ledger import Ledger
from tests.needs import needs

BIN = Path(__file__).parents[2] / "bin"


def script(text: str, plugins: Path, directory: Path) -> Finished:
    """Run a page's commands in `directory`, with its plugin directory at `plugins`; the first failure ends them."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    commands = text.replace("/opt/cni/bin", str(plugins))
    return run(["sh", "-ex"], stdin=commands.encode(), cwd=directory, env=env)


def test_install_page(directory: Path) -> None:
    found = examples("install.md")
    script(found["install.sh"], directory / "bin", directory).ok()
    assert list((directory / "bin").iterdir()) == []
    (directory / "bin/host-local").write_text("theirs")
    assert script(found["install.sh"], directory / "bin", directory).code == 1
    script(found["replace.sh"], directory / "bin", directory).ok()
    assert (directory / "bin/host-local").read_text() == "theirs"


@needs("sandbox", "program:nft")
def test_runtime_page(ledger: Ledger) -> None:
    done = live("runtime.md", ledger).ok()
    for word in ("portMappings", "ready", "10.88.0.2", "as it should be", "blue"):
        assert word in done.text


PORTS = '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'


@needs("sandbox", "program:nft", "program:iptables", "file:/usr/lib/cni/bridge")
def test_takeover_page(ledger: Ledger) -> None:
    """A pod of the reference plugins' from before the switch to after it, and the way back."""
    directory = ledger.directory()
    ledger.link("cni0")
    for table in ("ip nat", "ip6 nat", "ip filter", "ip6 filter", "inet nodeplug"):
        ledger.table(*table.split())
    for name in ("old", "new", "third"):
        ledger.netns(name)
    found = examples("takeover.md")
    plugins = directory / "bin"
    shutil.copytree("/usr/lib/cni", plugins)
    (directory / "10-pods.conflist").write_text(found["10-pods.conflist"])
    of_theirs = found["10-pods.conflist"].replace('"cniVersions": ["1.0.0", "1.1.0"],', "")
    (directory / "theirs.conflist").write_text(of_theirs)

    def page(name: str) -> Finished:
        return script(found[name].replace(" --conf", f" --path {plugins} --conf"), plugins, directory)

    add = f"nodeplug cni add --path {plugins} --conf theirs.conflist --netns NAME --cap-args '{PORTS}'"
    script(add.replace("NAME", "old"), plugins, directory).ok()
    for word in ("masquerade", "8080/tcp to 10.88.0.", "firewall", "pods"):
        assert word in page("before.sh").ok().text
    page("switch.sh").ok()
    done = page("after.sh").ok()
    assert "as it should be" in done.text and "nothing of the reference plugins" in done.text
    assert "DNAT" in run(["iptables-save", "-t", "nat"]).text
    page("shells.sh").ok()
    assert "CNI-HOSTPORT" not in run(["iptables-save", "-t", "nat"]).text

    refused = page("back.sh")
    assert refused.code == 1 and b"pods still need bridge, firewall, portmap" in refused.stderr
    assert b"leaving" in page("drain.sh").ok().stdout
    script(add.replace("NAME", "third").replace("8080", "8082"), plugins, directory).ok()
    assert "8082/tcp" in page("before.sh").ok().text
    for name in ("third", "new"):
        script(f"nodeplug cni del --path {plugins} --conf theirs.conflist --netns {name}", plugins, directory).ok()
    page("back.sh").ok()
    assert (plugins / "bridge").read_bytes() == Path("/usr/lib/cni/bridge").read_bytes()
    assert not (plugins / ".nodeplug").exists()
