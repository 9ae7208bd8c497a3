"""Pods under containerd whose network is ptp with host ports, as kind has it: by traffic, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nodeplug.harness.runtime.cache import Cache
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import GATEWAY, PORTMAP, Node, conflist, install, silent
from tests.space import HERE

pytestmark = needs("sandbox", "program:containerd", "program:runc", "program:nft")
WEB = Port(8080, 80)


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    directory = module_ledger.directory()
    ipam: dict[str, Any] = {
        "type": "host-local",
        "dataDir": str(directory / "leases"),
        "ranges": [[{"subnet": "10.88.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    network = conflist({"type": "ptp", "ipMasq": True, "ipam": ipam}, PORTMAP, newest="1.1.0")
    return Node(module_ledger, install(directory / "bin"), network, directory)


@pytest.fixture(autouse=True)
def _nothing_is_left(node: Node) -> Iterator[None]:
    yield
    assert node.runtime.remove_pods() == []
    assert node.left() == {}
    assert [route for route in HERE.ip("-4", "route", "show") if route["dst"].startswith("10.88.")] == []


def test_ptp_pods_reach_each_other_the_node_and_their_host_ports(node: Node) -> None:
    pods = node.run_all({"web": (WEB,), "other": ()})
    addresses = {name: node.address(pod) for name, pod in pods.items()}
    assert set(addresses.values()) == node.leases()
    for source, target in (("web", "other"), ("other", "web")):
        assert node.ask(pods[source], addresses[target], 80) == f"{target} answers {addresses[source]}"
    assert who.fetch(addresses["web"], 80) == f"web answers {GATEWAY}"
    assert who.fetch("127.0.0.1", WEB.host).startswith("web answers")
    for name in pods:
        assert node.ask(pods[name], GATEWAY, WEB.host).startswith("web answers")
    node.delete(pods["web"])
    assert silent("127.0.0.1", WEB.host)


def test_ptp_twenty_pods_at_once_come_and_go(node: Node) -> None:
    pods = node.run_all({f"pod{n}": (Port(9000 + n, 80),) for n in range(20)})
    assert {node.address(pod) for pod in pods.values()} == node.leases()
    for n in range(20):
        assert who.fetch("127.0.0.1", 9000 + n).startswith(f"pod{n} answers")
    node.delete_all(pods.values())
    assert node.left() == {}


def test_ptp_pods_that_the_runtime_lost_are_collected(node: Node) -> None:
    pods = node.run_all({"kept": (WEB,), "lost": (Port(8081, 80),)})
    node.runtime.lose_pod(pods["lost"])
    for entry in node.results(pods["lost"]):
        Cache().remove(entry.network, entry.attachment)
    assert node.ours.gc(node.network, [(pods["kept"], "eth0")]) == []
    assert node.leases() == {node.address(pods["kept"])}
    assert who.fetch("127.0.0.1", WEB.host).startswith("kept answers")
    assert silent("127.0.0.1", 8081)
