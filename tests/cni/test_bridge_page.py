"""docs/cni/bridge.md: its commands do what it says, its tables are those of the code."""

from __future__ import annotations

import os
import re

from nodeplug.cni.plugins.bridge.config import BridgeConf
from nodeplug.core.document import reference
from tests.child import run
from tests.cni.pods import host_links
from tests.examples import examples
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

PAGE = CHECKOUT / "docs" / "cni" / "bridge.md"


def test_the_keys_of_the_page_are_those_that_are_read() -> None:
    assert reference(BridgeConf).strip() in PAGE.read_text()


def test_the_errors_of_the_page_are_said_by_the_code() -> None:
    said = "".join(path.read_text() for path in (CHECKOUT / "nodeplug").rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]*)`", PAGE.read_text().split("## When it does not work")[1], re.MULTILINE)
    assert len(quoted) >= 6
    for sentence in quoted:
        for part in re.split(r"'cni0'|eth0|\.\.\.", sentence):
            assert part.strip() in said, part


@needs("sandbox", "program:nft")
def test_the_commands_of_the_page_run(ledger: Ledger) -> None:
    directory = ledger.directory()
    ledger.link("cni0")
    ledger.table("inet", "nodeplug")
    found = examples("cni/bridge.md")
    (directory / "10-pods.conflist").write_text(found["10-pods.conflist"])
    env = {**os.environ, "PATH": f"{CHECKOUT / 'bin'}:{os.environ['PATH']}"}
    run([CHECKOUT / "bin" / "nodeplug", "install", "cni", "--dest", str(directory / "bin")], env=env).ok()
    commands = found["life.sh"].replace(" --conf", f" --path {directory / 'bin'} --conf")
    shown = run(["sh", "-ex"], stdin=commands.encode(), cwd=directory, env=env).ok().text
    assert "0% packet loss" in shown
    assert "10.85.0.2" in shown
    assert host_links() == {"cni0"}
