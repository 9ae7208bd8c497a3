"""A network on a node where another pod lives, and all that an attachment leaves there: for injected faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni import faults
from tests.cni.pods import Network, host_links
from tests.ledger import Ledger

KILLED = -9


class Node:
    """A network with all that leaves something behind, and one pod for the calls that meet a fault.

    `through` counts the ADDs that were killed when nothing was left to do but to tell the neighbours.
    """

    def __init__(self, ledger: Ledger, **config: Any) -> None:
        ledger.table("bridge", "nodeplug")
        ledger.table("inet", "nodeplug")
        # Writers that were killed leave temporary files, which a later GC sweeps.
        ledger.adopt("kept", lambda: run(["rm", "-rf", f"{paths.RUN}/cni"]))
        self.network = Network(ledger, **config)
        self.pod = ledger.netns()
        self.ledger = ledger
        self.through = 0

    def settle(self, extra: Any = None) -> None:
        """Another pod comes first, so that bridge and tables are there."""
        self.network.add(self.ledger.netns(), extra)

    def faulty(self, command: str, step: int, fault: str | int) -> Finished:
        return run(
            faults.program(step, fault, str(self.network.config["type"])),
            env=self.network.env(command, self.pod),
            stdin=self.network.stdin(),
        )

    def steps(self, command: str) -> int:
        """How many steps a call has that meets none."""
        told = self.faulty(command, 0, "count").stderr.splitlines()
        return len([line for line in told if line.startswith(b"step")])

    def state(self) -> dict[str, Any]:
        """All that an attachment leaves, as it is now."""
        return {
            "links": host_links(),
            "inside": self.pod.links(),
            "leases": self.network.leases(),
            "files": {
                str(path)
                for path in Path(paths.RUN, "cni").rglob("*")
                if path.is_file() and path.suffix != ".lock" and not path.name.startswith((".", "reference."))
            },
            "elements": elements(),
        }

    def containers(self) -> set[str]:
        """Those that host-local has given an address."""
        directory = self.network.leases_in / "pods"
        return {(directory / lease).read_text().split()[0] for lease in self.network.leases()}


def elements() -> set[str]:
    """The elements of all nft sets."""
    found: set[str] = set()
    for entry in json.loads(run(["nft", "-j", "list", "ruleset"]).ok().stdout)["nftables"]:
        if "set" in entry:
            found |= {f"{entry['set']['name']} {json.dumps(element)}" for element in entry["set"].get("elem", [])}
    return found


def by_delete(node: Node, step: int) -> None:
    """A runtime may have lost the pod's namespace."""
    node.network.delete(node.pod, CNI_NETNS="" if step % 2 else node.pod.path)


def by_gc(node: Node, _step: int) -> None:
    living = [{"containerID": lease, "ifname": "eth0"} for lease in node.containers() - {node.pod.name}]
    assert node.network.ask("GC", None, {"cni.dev/valid-attachments": living}) == (0, None)


def by_adding_again(node: Node, _step: int) -> None:
    code, answer = node.network.ask("ADD", node.pod)
    if code != 0:
        assert "has interface eth0 in network pods already" in answer["msg"]
        node.through += 1
        assert node.through == 1
        node.network.delete(node.pod)
        answer = node.network.add(node.pod)
    node.network.check(node.pod, answer)
    node.network.delete(node.pod)
