"""bridge, host-local and portmap as separate processes, beside the reference plugins in Go on the same machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.bench.timer import Round, Watch, measure
from tests.child import run
from tests.cni.lans import Lan
from tests.examples import ROOT
from tests.ledger import Ledger
from tests.space import Space
from tests.worker.node import Node

GO = Path("/usr/lib/cni")
OURS = "nodeplug"
PORTS = [{"hostPort": 0, "containerPort": port, "protocol": "tcp"} for port in (80, 443)]

pytestmark = pytest.mark.needs("sandbox", "file:/usr/lib/cni/bridge")


@dataclass
class Contender:
    """One set of plugins with a bridge, a subnet and a lease directory of its own."""

    directory: Path
    bridge: str
    octet: int
    leases: Path
    count: int = 0

    def network(self, *, masquerade: bool, ports: bool, place: int = 0) -> list[dict[str, Any]]:
        """The plugins of the chain, as configurations without a result; each `place` is a network of its own."""
        common = {"cniVersion": "1.0.0", "name": f"bench-{self.bridge}{place or ''}"}
        chain: list[dict[str, Any]] = [
            {
                **common,
                "type": "bridge",
                "bridge": f"{self.bridge}{place or ''}",
                "isDefaultGateway": True,
                "ipMasq": masquerade,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(self.leases),
                    "ranges": [[{"subnet": f"10.{self.octet + 10 * place}.0.0/16"}]],
                },
            }
        ]
        if ports:
            self.count += 2
            base = 1024 + (self.octet - 60) * 20_000 + self.count % 20_000
            mappings = [{**port, "hostPort": base + n} for n, port in enumerate(PORTS)]
            chain.append({**common, "type": "portmap", "runtimeConfig": {"portMappings": mappings}})
        return chain

    def alone(self, type: str, **config: Any) -> list[dict[str, Any]]:
        """One interface plugin with an address of our own, as a chain."""
        ranges = [[{"subnet": f"10.{self.octet}.0.0/16"}]]
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": ranges}
        return [{"cniVersion": "1.0.0", "name": f"bench-{self.bridge}", "type": type, "ipam": ipam, **config}]

    def env(self, command: str, space: Space) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": space.name,
            "CNI_NETNS": space.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.directory),
        }

    def add(self, watch: Watch, label: str, space: Space, chain: list[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for config in chain:
            stdin = json.dumps({**config, **({"prevResult": result} if result else {})}).encode()
            result = json.loads(
                watch.run(label, [self.directory / config["type"]], stdin=stdin, env=self.env("ADD", space)).stdout
            )
        return result

    def delete(
        self, watch: Watch, label: str, space: Space, chain: list[dict[str, Any]], result: dict[str, Any]
    ) -> None:
        for config in reversed(chain):
            stdin = json.dumps({**config, "prevResult": result}).encode()
            watch.run(label, [self.directory / config["type"]], stdin=stdin, env=self.env("DEL", space))


@pytest.fixture
def contenders(ledger: Ledger) -> Iterator[dict[str, Contender]]:
    run([ROOT / "bin" / "nodeplug", "install", "cni", "--dest", "/run/bench-cni"]).ok()
    found = {
        "Go": Contender(GO, "bgo0", 60, ledger.directory()),
        OURS: Contender(Path("/run/bench-cni"), "bnp0", 61, ledger.directory()),
    }
    for contender in found.values():
        ledger.link(contender.bridge)
    ledger.table("inet", "nodeplug")
    for family in ("ip", "ip6"):  # what the reference's iptables leave
        ledger.table(family, "nat")
    yield found
    run(["rm", "-rf", "/run/bench-cni"])


def life(contender: Contender, *, masquerade: bool, ports: bool) -> Round:
    """One pod's ADD and DEL on the bridge; only the plugins are timed."""
    return life_of(contender, lambda: contender.network(masquerade=masquerade, ports=ports))


def life_of(contender: Contender, network: Callable[[], list[dict[str, Any]]]) -> Round:
    """The same of any chain."""

    def one_round(watch: Watch) -> None:
        with closing(Ledger()) as book:
            space = book.netns()
            chain = network()
            result = contender.add(watch, "ADD", space, chain)
            contender.delete(watch, "DEL", space, chain, result)

    return one_round


def versions() -> dict[str, str]:
    package = run(["dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins"]).ok().text
    return {"Go plugins": package, "iptables": run(["iptables", "--version"]).ok().text.split()[1]}


@pytest.mark.parametrize(
    ("title", "masquerade", "ports", "targets"),
    [
        ("bridge + host-local", False, False, {}),
        ("bridge + host-local, ipMasq", True, False, {"DEL": 0.5}),
        ("bridge + host-local, ipMasq, chained with portmap (2 ports)", True, True, {"ADD": 0.8}),
    ],
)
def bench_process_for_process(
    contenders: dict[str, Contender], title: str, masquerade: bool, ports: bool, targets: dict[str, float]
) -> None:
    report = measure(
        {name: life(contender, masquerade=masquerade, ports=ports) for name, contender in contenders.items()}, rounds=60
    )
    print()
    print(report.markdown(title=title, command="make bench", versions=versions()))
    for label, target in targets.items():
        ratio = report.ratio(label, OURS)
        print(f"target: {label} at most {target} of Go's: {ratio:.2f}, {'met' if ratio <= target else 'MISSED'}")


LINKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ptp + host-local": ("ptp", {}),
    "ptp + host-local, ipMasq": ("ptp", {"ipMasq": True}),
    "macvlan + host-local": ("macvlan", {"master": "lan0"}),
}


def lives(contenders: dict[str, Contender], title: str) -> dict[str, Round]:
    plugin, config = LINKS[title]

    def of(contender: Contender) -> Round:
        return life_of(contender, lambda: contender.alone(plugin, **config))

    return {name: of(contender) for name, contender in contenders.items()}


@pytest.mark.parametrize("title", LINKS)
def bench_other_links_process_for_process(contenders: dict[str, Contender], ledger: Ledger, title: str) -> None:
    """The interface plugins without a bridge, and once more with the worker behind the C shim."""
    Lan(ledger)
    node = Node(ledger, kind="c")
    node.start()
    worker = Contender(node.plugins, "bnw0", 62, ledger.directory())
    report = measure(lives({**contenders, f"{OURS}, worker": worker}, title), rounds=60)
    node.stop()
    print()
    print(report.markdown(title=title, command="make bench", versions=versions()))


GROWTH = {"Go": 200, "nodeplug": 1000}
"""How many attachments each ends with: the reference's own ADD at a thousand takes so long that nobody would wait."""


@pytest.mark.parametrize("name", GROWTH)
def bench_growth_with_attachments(contenders: dict[str, Contender], ledger: Ledger, name: str) -> None:
    """ADD with ipMasq and portmap at 10 attachments of the node and at many; each by itself, as a node has either.

    There are as many networks as nodes' /24s for so many pods.
    """
    contender = contenders[name]
    pods: list[tuple[Space, list[dict[str, Any]], dict[str, Any]]] = []
    medians = []
    for goal in (10, GROWTH[name]):
        while len(pods) < goal:
            place = len(pods) // 250
            ledger.link(f"{contender.bridge}{place or ''}")
            space, chain = ledger.netns(), contender.network(masquerade=True, ports=True, place=place)
            pods.append((space, chain, contender.add(Watch(), "fill", space, chain)))
        time.sleep(5)  # new namespaces look for routers at first
        report = measure({name: life(contender, masquerade=True, ports=True)}, rounds=50)
        print(f"\n{report.markdown(title=f'beside {goal} attachments of {name}', command='make bench')}")
        medians.append(median(report.walls("ADD", name)))
    print(f"ADD at {GROWTH[name]} attachments over ADD at 10, {name}: {medians[1] / medians[0]:.2f}")
    for space, chain, result in pods:
        contender.delete(Watch(), "empty", space, chain, result)


def test_the_benchmark_measures_what_it_says(contenders: dict[str, Contender], ledger: Ledger) -> None:
    Lan(ledger)
    rounds = [lives(contenders, title) for title in LINKS]
    for name, contender in contenders.items():
        life(contender, masquerade=True, ports=True)(Watch())
        for each in rounds:
            each[name](Watch())
        assert [
            lease for lease in os.listdir(contender.leases / f"bench-{contender.bridge}") if lease[:3] == "10."
        ] == []
