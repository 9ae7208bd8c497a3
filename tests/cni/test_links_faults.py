"""ptp, macvlan and tap met by faults: killed or failing at any step, the next call takes back what remains."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.cni.lans import Lan
from tests.cni.nodes import KILLED, Node, by_adding_again, by_delete, by_gc
from tests.cni.pods import host_local
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = [needs("sandbox"), pytest.mark.timeout(300)]
CONFIGS: dict[str, dict[str, Any]] = {
    "ptp": {"ipMasq": True, "ipam": host_local(4, 6)},
    "macvlan": {"master": "lan0", "ipam": host_local()},
    "tap": {"owner": 1000, "group": 1000, "mac": "02:00:00:00:00:01", "ipam": host_local(4, 6)},
}


@pytest.fixture(params=CONFIGS)
def node(request: pytest.FixtureRequest, ledger: Ledger) -> Node:
    Lan(ledger)
    found = Node(ledger, type=request.param, **CONFIGS[request.param])
    found.settle()
    return found


@pytest.mark.parametrize("clean", [by_delete, by_gc, by_adding_again])
def test_an_add_that_is_killed_at_any_step_is_taken_back(node: Node, clean: Callable[[Node, int], None]) -> None:
    before = node.state()
    step = 0
    while (done := node.faulty("ADD", step, "kill")).code == KILLED:
        clean(node, step)
        assert node.state() == before, f"killed at step {step}"
        step += 1
    assert (done.code, step > 10) == (0, True)
    node.network.delete(node.pod)
    assert node.state() == before


def test_a_delete_that_is_killed_at_any_step_is_finished_by_the_next(node: Node) -> None:
    before = node.state()
    for step in range(100):
        node.network.add(node.pod)
        killed = node.faulty("DEL", step, "kill").code == KILLED
        node.network.delete(node.pod)
        assert node.state() == before, f"killed at step {step}"
        if not killed:
            break
    assert step > 3


def test_an_add_that_fails_at_any_step_leaves_nothing(node: Node) -> None:
    before = node.state()
    total, failed = node.steps("ADD"), 0
    node.network.delete(node.pod)
    for step in range(total):
        done = node.faulty("ADD", step, errno.EIO)
        if done.code == 0:  # what failed can be done without: a setting, a look at the policy of others
            node.network.delete(node.pod)
        else:
            failed += 1
            error = done.json()
            assert error["code"] in (5, 8), error
            assert "Input/output error" in error["msg"], error
        assert node.state() == before, f"failed at step {step}: {done.text}"
    assert failed > total // 2


def test_a_delete_that_fails_at_any_step_does_the_others_and_can_be_tried_again(node: Node) -> None:
    before = node.state()
    node.network.add(node.pod)
    for step in range(node.steps("DEL")):
        node.network.add(node.pod)
        made = node.state()
        done = node.faulty("DEL", step, errno.EIO)
        left = node.state()
        if done.code != 0 and (left["links"], left["inside"]) != (before["links"], before["inside"]):
            assert left["leases"] == made["leases"], f"step {step}: an address was released that a link still has"
        node.network.delete(node.pod)
        assert node.state() == before, f"failed at step {step}: {done.text}"
