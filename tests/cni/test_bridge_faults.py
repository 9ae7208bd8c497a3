"""bridge met by faults: whatever step it is killed or fails at, the runtime's next call takes back what remains."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni import faults
from tests.cni.pods import Network, host_links, host_local
from tests.ledger import Ledger

pytestmark = pytest.mark.needs("sandbox")
KILLED = -9
SETS = {"guarded", "allowed"}


class Node:
    """A network with all that leaves something behind, on a node where another pod lives."""

    def __init__(self, ledger: Ledger) -> None:
        ledger.table("bridge", "nodeplug")
        ledger.table("inet", "nodeplug")
        self.network = Network(
            ledger, type="bridge", isDefaultGateway=True, ipMasq=True, macspoofchk=True, ipam=host_local(4, 6)
        )
        self.pod = ledger.netns()
        self.ledger = ledger

    def settle(self) -> None:
        """Another pod comes first, so that bridge and tables are there."""
        self.network.add(self.ledger.netns())

    def faulty(self, command: str, step: int, fault: str | int) -> Finished:
        return run(
            faults.program(step, fault, "bridge"),
            env=self.network.env(command, self.pod),
            stdin=self.network.stdin(),
        )

    def state(self) -> dict[str, Any]:
        """All that an attachment leaves, as it is now."""
        return {
            "links": host_links(),
            "inside": self.pod.links(),
            "leases": self.network.leases(),
            "files": {
                str(path)
                for path in Path(paths.RUN, "cni").rglob("*")
                if path.is_file() and path.suffix != ".lock" and not path.name.startswith(".")
            },
            "elements": elements(),
        }


def elements() -> set[str]:
    found: set[str] = set()
    for entry in json.loads(run(["nft", "-j", "list", "ruleset"]).ok().stdout)["nftables"]:
        if "set" in entry:
            found |= {f"{entry['set']['name']} {json.dumps(element)}" for element in entry["set"].get("elem", [])}
    return found


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


def by_delete(node: Node, step: int) -> None:
    """A runtime may have lost the pod's namespace."""
    node.network.delete(node.pod, CNI_NETNS="" if step % 2 else node.pod.path)


def by_gc(node: Node, _step: int) -> None:
    living = [{"containerID": lease, "ifname": "eth0"} for lease in containers(node) - {node.pod.name}]
    assert node.network.ask("GC", None, {"cni.dev/valid-attachments": living}) == (0, None)


def by_adding_again(node: Node, _step: int) -> None:
    node.network.check(node.pod, node.network.add(node.pod))
    node.network.delete(node.pod)


def containers(node: Node) -> set[str]:
    directory = node.network.leases_in / "pods"
    return {(directory / lease).read_text().split()[0] for lease in node.network.leases()}


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
    total = len([line for line in node.faulty("ADD", 0, "count").stderr.splitlines() if line.startswith(b"step")])
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
    total = len([line for line in node.faulty("DEL", 0, "count").stderr.splitlines() if line.startswith(b"step")])
    for step in range(total):
        node.network.add(node.pod)
        made = node.state()
        done = node.faulty("DEL", step, errno.EIO)
        left = node.state()
        if done.code != 0 and left["links"] != before["links"]:
            assert left["leases"] == made["leases"], f"step {step}: an address was released that a link still has"
        node.network.delete(node.pod)
        assert node.state() == before, f"failed at step {step}: {done.text}"
