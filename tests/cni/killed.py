"""A runtime's chain of bridge, host-local and portmap whose calls may die at any step: what it keeps of its pods, what
it still owes, and what must be true of the node whatever died.

How a call is made, and what dies with it, is a subclass's: `Chain.execute`.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni.pods import Network, host_links, host_local
from tests.ledger import Ledger
from tests.space import Space

NEVER = -1
_STEPS = 20


class Chain(ABC):
    """What a runtime keeps of its pods: who lives and with which result, and whose clean-up it still owes.

    Several threads may go on at once, each with pods of its own.
    """

    often = 0.5
    """How likely a call is to meet its death."""

    def __init__(self, ledger: Ledger, chance: random.Random, *, pods: int = 6) -> None:
        ledger.table("inet", "nodeplug")
        self.network = Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4))
        self.pods = [ledger.netns() for _ in range(pods)]
        self.chance = chance
        self.live: dict[Space, dict[str, Any]] = {}
        self.owed: set[Space] = set()

    @abstractmethod
    def execute(self, plugin: str, env: dict[str, str], stdin: bytes, step: int) -> Finished | None:
        """Make the call, and let it die before its changing step of that number; None when it failed by that."""

    def call(self, plugin: str, command: str, pod: Space | None, extra: dict[str, Any]) -> Finished | None:
        step = self.chance.randrange(_STEPS) if self.chance.random() < self.often else NEVER
        config = {**self.network.config, "type": plugin, **extra}
        if pod is not None and plugin == "portmap":
            port = {"hostPort": 8000 + self.pods.index(pod), "containerPort": 80, "protocol": "tcp"}
            config["runtimeConfig"] = {"portMappings": [port]}
        return self.execute(plugin, self.network.env(command, pod), json.dumps(config).encode(), step)

    def add(self, pod: Space) -> None:
        result: dict[str, Any] = {}
        for plugin in ("bridge", "portmap"):
            done = self.call(plugin, "ADD", pod, {"prevResult": result} if result else {})
            if done is None:
                self.owed.add(pod)
                return
            result = done.json()
        self.live[pod] = result
        assert self._addresses().count(_address(result)) == 1

    def delete(self, pod: Space) -> None:
        """As a runtime does: reverse order, stopped by the first failure, owed until it has succeeded."""
        result = self.live.pop(pod, None)
        self.owed.add(pod)
        for plugin in ("portmap", "bridge"):
            if self.call(plugin, "DEL", pod, {"prevResult": result} if result else {}) is None:
                return
        self.owed.discard(pod)

    def collect(self) -> None:
        """GC with what lives, on both plugins, until neither has failed."""
        valid = [{"containerID": pod.name, "ifname": "eth0"} for pod in self.live]
        for plugin in ("bridge", "portmap"):
            while self.call(plugin, "GC", None, {"cni.dev/valid-attachments": valid}) is None:
                pass

    def go_on(self, pods: Sequence[Space] = ()) -> None:
        """One operation on one of these pods, or of all; those of them that live have their leases after it."""
        pods = pods or self.pods
        pod = self.chance.choice(pods)
        if pod in self.owed or pod in self.live:
            self.delete(pod)
        else:
            self.add(pod)
        assert {_address(self.live[pod]) for pod in pods if pod in self.live} <= self.network.leases()

    def _addresses(self) -> list[str]:
        return [_address(result) for result in list(self.live.values())]

    def end(self) -> None:
        """After GC there is exactly what lives, and after GC without any of them nothing."""
        self.collect()
        assert self.network.leases() == set(self._addresses())
        assert len(host_links()) == 1 + len(self.live)  # the bridge and a link each
        for pod in self.pods:  # masqueraded, the port, and twice what is masqueraded on its way there
            assert sum(pod.name in element for element in _elements()) == (4 if pod in self.live else 0)
        self.live.clear()
        self.collect()
        assert (self.network.leases(), _elements(), _state_files()) == (set(), [], [])
        assert host_links() == {"cni0"}


def _address(result: dict[str, Any]) -> str:
    (found,) = result["ips"]
    return str(found["address"]).split("/")[0]


def _elements() -> list[str]:
    """All elements of the sets of nodeplug's table."""
    shown = json.loads(run(["nft", "-j", "list", "table", "inet", "nodeplug"]).ok().stdout)["nftables"]
    held = [entry.get("set") or entry.get("map") for entry in shown if "set" in entry or "map" in entry]
    return [json.dumps(element) for found in held for element in found.get("elem", [])]


def _state_files() -> list[str]:
    """What is kept of attachments; locks, and whether somebody has looked for the reference's, apart."""
    found = [path for path in Path(paths.RUN, "cni").rglob("*") if path.is_file() or path.is_symlink()]
    return [str(path) for path in found if path.suffix != ".lock" and path.stem != "reference"]
