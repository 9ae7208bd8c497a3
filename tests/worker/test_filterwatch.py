"""The nft table comes back when somebody takes it away, or parts of it, and is left alone otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.child import run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker.node import BRIDGE, Node

pytestmark = needs("sandbox", "program:cc", "program:nft")


@pytest.fixture(scope="module")
def worker(module_ledger: Ledger) -> Iterator[Node]:
    found = Node(module_ledger)
    module_ledger.link("np-test0")
    module_ledger.table("inet", "nodeplug")
    found.start()
    yield found
    found.stop()


def elements() -> str:
    return run(["nft", "list", "table", "inet", "nodeplug"]).text


@pytest.mark.parametrize(
    "script",
    [
        "flush ruleset",
        "delete table inet nodeplug",
        "flush table inet nodeplug",
        "flush chain inet nodeplug postrouting",
        "flush ruleset; add table inet filter; delete table inet filter",
    ],
)
def test_what_was_taken_is_made_again_within_a_second(worker: Node, ledger: Ledger, script: str) -> None:
    pod = ledger.netns()
    address = worker.call("ADD", BRIDGE, pod).ok().json()["ips"][0]["address"].partition("/")[0]
    before = elements()
    assert address in before
    run(["nft", script]).ok()
    until(lambda: elements() == before or sorted(elements()) == sorted(before), "the table is back", timeout=3)
    assert worker.call("DEL", BRIDGE, pod).code == 0
    assert address not in elements()


def test_elements_that_another_program_deletes_are_put_back(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    address = worker.call("ADD", BRIDGE, pod).ok().json()["ips"][0]["address"].partition("/")[0]
    name = next(line.split()[1] for line in elements().splitlines() if line.strip().startswith("set masq-"))
    run(["nft", "flush", "set", "inet", "nodeplug", name]).ok()
    until(lambda: address in elements(), "the element is back", timeout=3)
    assert worker.call("DEL", BRIDGE, pod).code == 0


def test_nothing_is_made_again_for_calls_and_for_others_tables(worker: Node, ledger: Ledger) -> None:
    assert worker.process is not None
    pods = [ledger.netns() for _ in range(5)]
    for pod in pods:
        worker.call("ADD", BRIDGE, pod).ok()
    before = worker.process.output().count("made again")
    run(["nft", "add table inet other; add chain inet other c; delete table inet other"]).ok()
    for pod in pods:
        assert worker.call("DEL", BRIDGE, pod).code == 0
    assert worker.process.output().count("made again") == before


def test_a_table_that_was_flushed_while_no_worker_ran_is_made_again_at_its_start(worker: Node, ledger: Ledger) -> None:
    pod = ledger.netns()
    address = worker.call("ADD", BRIDGE, pod).ok().json()["ips"][0]["address"].partition("/")[0]
    worker.stop()
    run(["nft", "flush", "ruleset"]).ok()
    worker.start()
    until(lambda: address in elements(), "the table is back", timeout=5)
    assert worker.call("DEL", BRIDGE, pod).code == 0
