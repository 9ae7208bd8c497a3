"""bridge met by faults: whatever step it is killed or fails at, the runtime's next call takes back what remains."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from nodeplug.core import paths
from tests.child import run
from tests.cni.nodes import KILLED, Node, by_adding_again, by_delete, by_gc
from tests.cni.pods import host_local
from tests.ledger import Ledger

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, macspoofchk=True, ipam=host_local(4, 6))


@pytest.mark.parametrize("clean", [by_delete, by_gc, by_adding_again])
def test_an_add_that_is_killed_at_any_step_is_taken_back(node: Node, clean: Callable[[Node, int], None]) -> None:
    node.settle()
    before = node.state()
    step = 0
    while (done := node.faulty("ADD", step, "kill")).code == KILLED:
        clean(node, step)
        assert node.state() == before, f"killed at step {step}"
        step += 1
    assert done.code == 0
    assert step > 20
    node.network.delete(node.pod)
    assert node.state() == before


def test_a_first_add_on_the_node_that_is_killed_at_any_step_is_taken_back(node: Node) -> None:
    step = 0
    while (done := node.faulty("ADD", step, "kill")).code == KILLED:
        by_delete(node, step)
        found = node.state()
        assert found.pop("links") <= {"cni0"}
        assert found == {"inside": {"lo"}, "leases": set(), "files": set(), "elements": set()}, f"killed at {step}"
        forget(node)
        step += 1
    assert done.code == 0
    by_delete(node, step)


def forget(node: Node) -> None:
    """Take away what one pod leaves for the next."""
    for command in (
        ["ip", "link", "delete", "cni0"],
        ["nft", "flush", "ruleset"],
        ["rm", "-rf", paths.RUN, str(node.network.leases_in / "pods"), str(node.network.leases_in / ".nodeplug")],
    ):
        run(command)


def test_a_delete_that_is_killed_at_any_step_is_finished_by_the_next(node: Node) -> None:
    node.settle()
    before = node.state()
    step = 0
    while True:
        node.network.add(node.pod)
        done = node.faulty("DEL", step, "kill")
        if done.code != KILLED:
            break
        node.network.delete(node.pod)
        assert node.state() == before, f"killed at step {step}"
        step += 1
    assert done.code == 0
    assert step > 5


def test_an_add_that_fails_at_any_step_leaves_nothing(node: Node) -> None:
    node.settle()
    before = node.state()
    failed = 0
    total = node.steps("ADD")
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
    assert failed > 20


def test_a_delete_that_fails_at_any_step_does_the_others_and_can_be_tried_again(node: Node) -> None:
    node.settle()
    before = node.state()
    node.network.add(node.pod)
    total = node.steps("DEL")
    for step in range(total):
        node.network.add(node.pod)
        made = node.state()
        done = node.faulty("DEL", step, errno.EIO)
        left = node.state()
        if done.code != 0 and left["links"] != before["links"]:
            assert left["leases"] == made["leases"], f"step {step}: an address was released that a link still has"
        node.network.delete(node.pod)
        assert node.state() == before, f"failed at step {step}: {done.text}"
