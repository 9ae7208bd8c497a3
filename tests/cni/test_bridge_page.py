"""docs/cni/bridge.md: its commands do what it says, its tables are those of the code."""

from __future__ import annotations

import re

from nodeplug.cni.plugins.bridge.config import BridgeConf
from nodeplug.core.document import reference
from tests.cni.pages import live
from tests.cni.pods import host_links
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


@needs("sandbox", "program:nft", "program:ping")
def test_the_commands_of_the_page_run(ledger: Ledger) -> None:
    shown = live("cni/bridge.md", ledger).ok().text
    assert "0% packet loss" in shown
    assert "10.85.0.2" in shown
    assert host_links() == {"cni0"}
