"""bridge, host-local and portmap in a chain, killed at random steps 500 times: nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni import faults
from tests.cni.pods import Network, host_links, host_local
from tests.ledger import Ledger
from tests.space import Space

pytestmark = [pytest.mark.needs("sandbox", "program:nft"), pytest.mark.timeout(600)]
OPERATIONS = 500
PODS = 6
KILLED = -9


class Chain:
    """What a runtime keeps of its pods: who lives and with which result, and whose clean-up it still owes."""

    def __init__(self, ledger: Ledger, chance: random.Random) -> None:
        ledger.table("inet", "nodeplug")
        self.network = Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4))
        self.pods = [ledger.netns() for _ in range(PODS)]
        self.chance = chance
        self.live: dict[Space, dict[str, Any]] = {}
        self.owed: set[Space] = set()
        self.kills = 0

    def call(self, plugin: str, command: str, pod: Space | None, extra: dict[str, Any]) -> Finished:
        """One execution, which every other time dies at one of its changing steps."""
        step = self.chance.randrange(20) if self.chance.random() < 0.5 else 1000
        config = {**self.network.config, "type": plugin, **extra}
        if pod is not None and plugin == "portmap":
            port = {"hostPort": 8000 + self.pods.index(pod), "containerPort": 80, "protocol": "tcp"}
            config["runtimeConfig"] = {"portMappings": [port]}
        done = run(
            faults.program(step, "kill", plugin), env=self.network.env(command, pod), stdin=json.dumps(config).encode()
        )
        assert done.code in (0, KILLED), done.stdout
        self.kills += done.code == KILLED
        return done

    def add(self, pod: Space) -> None:
        result: dict[str, Any] = {}
        for plugin in ("bridge", "portmap"):
            done = self.call(plugin, "ADD", pod, {"prevResult": result} if result else {})
            if done.code == KILLED:
                self.owed.add(pod)
                return
            result = done.json()
        (address,) = [ip["address"] for ip in result["ips"]]
        assert address not in [ip["address"] for other in self.live.values() for ip in other["ips"]]
        self.live[pod] = result

    def delete(self, pod: Space) -> None:
        """As a runtime does: reverse order, stopped by the first failure, owed until it has succeeded."""
        result = self.live.pop(pod, None)
        self.owed.add(pod)
        for plugin in ("portmap", "bridge"):
            if self.call(plugin, "DEL", pod, {"prevResult": result} if result else {}).code == KILLED:
                return
        self.owed.discard(pod)

    def collect(self) -> None:
        """GC with what lives, on both plugins, until neither was killed."""
        valid = [{"containerID": pod.name, "ifname": "eth0"} for pod in self.live]
        for plugin in ("bridge", "portmap"):
            while self.call(plugin, "GC", None, {"cni.dev/valid-attachments": valid}).code == KILLED:
                pass


def elements() -> list[str]:
    """All elements of the sets of nodeplug's table."""
    shown = json.loads(run(["nft", "-j", "list", "table", "inet", "nodeplug"]).ok().stdout)["nftables"]
    held = [entry.get("set") or entry.get("map") for entry in shown if "set" in entry or "map" in entry]
    return [json.dumps(element) for found in held for element in found.get("elem", [])]


def state_files() -> list[str]:
    """What is kept of attachments; locks, and whether somebody has looked for the reference's, apart."""
    found = [path for path in Path(paths.RUN, "cni").rglob("*") if path.is_file() or path.is_symlink()]
    return [str(path) for path in found if path.suffix != ".lock" and path.stem != "reference"]


def test_five_hundred_operations_killed_anywhere_leave_what_lives_and_nothing_else(ledger: Ledger) -> None:
    chain = Chain(ledger, random.Random(1047))
    for _ in range(OPERATIONS):
        pod = chain.chance.choice(chain.pods)
        if pod in chain.owed or pod in chain.live:
            chain.delete(pod)
        else:
            chain.add(pod)
        leases = chain.network.leases()
        for result in chain.live.values():
            assert result["ips"][0]["address"].split("/")[0] in leases
    assert chain.kills > OPERATIONS / 10

    chain.collect()
    living = {result["ips"][0]["address"].split("/")[0] for result in chain.live.values()}
    assert chain.network.leases() == living
    assert len(host_links()) == 1 + len(living)  # the bridge and a link each
    for pod in chain.pods:  # masqueraded, the port, and twice what is masqueraded on its way there
        assert sum(pod.name in element for element in elements()) == (4 if pod in chain.live else 0)

    chain.live.clear()
    chain.collect()
    assert (chain.network.leases(), elements(), state_files()) == (set(), [], [])
    assert host_links() == {"cni0"}
