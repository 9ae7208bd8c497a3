"""The worker with few and with thousands of attachments on its node: how much longer an ADD takes, and its memory.

A bridge has room for 1,023 ports, so there is a network for each 250 pods, and what is timed joins the first. Go's own
growth is measured by itself, for a node has either; it ends at fewer, because filling the node takes it so long.
"kernel" is the floor: a minimal program that sends the same messages for such a pod and asks nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.bench.floor import floor
from tests.bench.timer import Round, Watch, measure
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.worker.node import Node, environment

pytestmark = [needs("sandbox", "program:cc", "file:/usr/lib/cni/bridge"), pytest.mark.timeout(1800)]
GO = Path("/usr/lib/cni")
FEW = 10
MANY = {"Go": int(os.environ.get("GO_ATTACHMENTS", "500")), "worker": int(os.environ.get("ATTACHMENTS", "5000"))}
PER_NETWORK = 250
ROUNDS = 60
SETTLES = 15.0  # seconds: thousands of new namespaces look for routers and for each other at first


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
        pod = self.ledger.netns()  # it stays until the end: a namespace that is taken apart holds up whoever comes next
        self.call(watch, "DEL", pod, 0, self.call(watch, "ADD", pod, 0))


def memory(node: Node) -> float:
    """MiB that the worker has in memory."""
    assert node.process is not None
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{node.process.pid}/status").read_text())[0]) / 1024


def grown(contender: Contender, beside: dict[str, Round], *, weigh: Callable[[], float] = float) -> list[float]:
    """What it weighs with few attachments and with many; prints the tables and how much longer an ADD takes."""
    taken: dict[str, list[float]] = {}
    weights = []
    for goal in (FEW, MANY[contender.name]):
        contender.fill(goal)
        time.sleep(SETTLES)
        weights.append(weigh())
        lives = {contender.name: contender.life, **beside}
        report = measure(lives, rounds=ROUNDS)
        print(f"\n{report.markdown(title=f'beside {goal} attachments of {contender.name}', command='make bench')}")
        for name in lives:
            taken.setdefault(name, []).append(median(report.walls("ADD", name)))
    for name, (few, many) in taken.items():
        print(f"ADD at {MANY[contender.name]} over ADD at {FEW}, {name}: {many / few:.2f}")
    contender.empty()
    return weights


def bench_growth_of_the_reference(ledger: Ledger) -> None:
    for family in ("ip", "ip6"):
        ledger.table(family, "nat")
    grown(Contender(ledger, "Go", GO, 100), {})


def bench_growth_of_the_worker(ledger: Ledger) -> None:
    node = Node(ledger, kind="c")
    node.start()
    ledger.table("inet", "nodeplug")
    contender = Contender(ledger, "worker", node.plugins, 120)
    kernel = floor(contender.network(0)["bridge"], label="ADD", pods=lambda: nullcontext(ledger.netns()))
    few, many = grown(contender, {"kernel": kernel}, weigh=lambda: memory(node))
    print(f"the worker's memory with {FEW} attachments: {few:.1f} MiB, with {MANY['worker']}: {many:.1f} MiB")
    node.stop()
