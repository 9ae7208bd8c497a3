"""The worker with few and with thousands of attachments on its node: how much longer an ADD takes, and its memory.

A bridge has room for 1,023 ports, so there is a network for each 500 pods, and what is timed joins the first. Go's own
growth stands beside it; it ends at fewer, because filling the node takes it so long. "kernel" is the floor: a minimal
program that sends the same messages for such a pod and asks nothing.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.bench.floor import floor
from tests.bench.pods import a_pod
from tests.bench.timer import Watch, measure
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.worker.node import Node, environment

pytestmark = [needs("sandbox", "program:cc", "file:/usr/lib/cni/bridge"), pytest.mark.timeout(1800)]
GO = Path("/usr/lib/cni")
FEW = 10
MANY = {"Go": int(os.environ.get("GO_ATTACHMENTS", "500")), "worker": int(os.environ.get("ATTACHMENTS", "5000"))}
PER_NETWORK = 500
ROUNDS = 100


class Contender:
    """Plugins, and the pods that they have joined to networks of their own."""

    def __init__(self, ledger: Ledger, name: str, plugins: Path, number: int) -> None:
        self.ledger, self.name, self.plugins, self.number = ledger, name, plugins, number
        self.pods: list[Space] = []

    def network(self, number: int) -> dict[str, Any]:
        return {
            "cniVersion": "1.0.0",
            "name": f"grow{self.number}n{number}",
            "type": "bridge",
            "bridge": f"grow{self.number}n{number}",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": f"10.{self.number + number}.0.0/16"},
        }

    def call(self, watch: Watch, command: str, pod: Space, number: int, result: Any = None) -> Any:
        config = {**self.network(number), **({"prevResult": result} if result else {})}
        env = {**environment(command, pod.path, pod.name, str(self.plugins)), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = watch.run(command, [self.plugins / "bridge"], stdin=json.dumps(config).encode(), env=env)
        return json.loads(done.stdout) if done.stdout else None

    def fill(self, goal: int) -> None:
        while len(self.pods) < goal:
            number = len(self.pods) // PER_NETWORK
            if len(self.pods) % PER_NETWORK == 0:
                self.ledger.link(self.network(number)["bridge"])
            self.pods.append(self.ledger.netns())
            self.call(Watch(), "ADD", self.pods[-1], number)

    def empty(self) -> None:
        for place, pod in enumerate(self.pods):
            self.call(Watch(), "DEL", pod, place // PER_NETWORK)

    def life(self, watch: Watch) -> None:
        with a_pod() as pod:
            result = self.call(watch, "ADD", pod, 0)
            self.call(watch, "DEL", pod, 0, result)


def memory(node: Node) -> float:
    """MiB that the worker has in memory."""
    assert node.process is not None
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{node.process.pid}/status").read_text())[0]) / 1024


def bench_growth_of_the_worker(ledger: Ledger) -> None:
    node = Node(ledger, kind="c")
    node.start()
    contenders = [Contender(ledger, "Go", GO, 100), Contender(ledger, "worker", node.plugins, 120)]
    for family, table in (("inet", "nodeplug"), ("ip", "nat"), ("ip6", "nat")):
        ledger.table(family, table)
    taken: dict[str, list[float]] = {}
    held: list[float] = []
    for goals in (dict.fromkeys(MANY, FEW), MANY):
        for contender in contenders:
            contender.fill(goals[contender.name])
        held.append(memory(node))
        lives = {contender.name: contender.life for contender in contenders}
        report = measure({**lives, "kernel": floor(contenders[1].network(0)["bridge"], label="ADD")}, rounds=ROUNDS)
        beside = " and ".join(f"{goal} attachments of {name}" for name, goal in goals.items())
        print(f"\n{report.markdown(title=f'beside {beside}', command='make bench')}")
        for name in (*lives, "kernel"):
            taken.setdefault(name, []).append(median(report.walls("ADD", name)))
    for name, (few, many) in taken.items():
        print(f"ADD at {MANY.get(name, MANY['worker'])} over ADD at {FEW}, {name}: {many / few:.2f}")
    print(f"the worker's memory with {FEW} attachments: {held[0]:.1f} MiB, with {MANY['worker']}: {held[1]:.1f} MiB")
    for contender in contenders:
        contender.empty()
    node.stop()
