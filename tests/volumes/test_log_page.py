"""docs/volumes/log.md: its table is as the code has it, its pod gets its logs, its account has what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from nodeplug.core import document
from nodeplug.volumes.log.index import Index
from nodeplug.volumes.log.volume import LogOptions
from tests.examples import ROOT, examples
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.logvolumes import Node

TEXT = (ROOT / "docs" / "volumes" / "log.md").read_text()


def test_the_page_has_every_option() -> None:
    assert document.reference(LogOptions).strip() in TEXT


def test_the_account_has_what_the_page_says_and_the_page_what_it_has() -> None:
    table = TEXT.partition("| in the account | |")[2].partition("\n\n")[0]
    told = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert told - {""} == set(Index._fields) - {"rotate", "rotations", "full_at"}


@needs("sandbox", "loop", "program:mkfs.ext4")
def test_the_pages_pod_gets_its_logs(ledger: Ledger) -> None:
    (volume,) = yaml.safe_load(examples("volumes/log.md")["pod.yaml"])["spec"]["volumes"]
    node = Node(ledger)
    target = node.publish(volume=volume["name"], **volume["flexVolume"]["options"])
    (target / "app.log").write_text("hello\n")
    assert (node.place(volume["name"]) / "app.log").read_text() == "hello\n"
    assert json.loads(Path(f"{node.place(volume['name'])}.json").read_text())["rotate"] == "rename"
