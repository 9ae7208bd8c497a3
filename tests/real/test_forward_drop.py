"""Pods under containerd, by shim and worker, on a host that drops what it forwards.

Each kind of iptables and both, bridged frames through iptables and apart. By bytes exchanged: host ports from outside
and from pods, pods among themselves, pods to the world.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from nodeplug.ops.demo.who import Who
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import PORTMAP, Node, bridge, conflist, install, silent, start_worker
from tests.space import HERE, Space

pytestmark = needs(
    "sandbox", "program:containerd", "program:runc", "program:nft", "program:iptables-legacy", "program:cc"
)
UPLINK, OUTSIDE = "192.0.2.1", "192.0.2.2"
WEB = Port(8080, 80)
FIREWALL = {"type": "firewall", "backend": "iptables"}
PROGRAMS = {"nft": ("iptables-nft",), "legacy": ("iptables-legacy",), "both": ("iptables-nft", "iptables-legacy")}


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    directory = module_ledger.directory()
    network = conflist(bridge(directory / "leases"), PORTMAP, FIREWALL)
    start_worker(module_ledger)
    return Node(module_ledger, install(directory / "bin", way="worker"), network, directory)


@pytest.fixture(scope="module")
def outside(module_ledger: Ledger) -> Space:
    """A machine on the node's uplink, which has no route to the pods, with a server."""
    space = module_ledger.netns()
    module_ledger.link("uplink")
    HERE.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", space.name).ok()
    for where, link, address in ((HERE, "uplink", UPLINK), (space, "eth0", OUTSIDE)):
        where.run("ip", "address", "add", f"{address}/30", "dev", link).ok()
        where.run("ip", "link", "set", link, "up").ok()
    server = Who("far", 8000, space.path)
    module_ledger.adopt("far server", server.close)
    return space


@pytest.fixture(autouse=True)
def _as_before(node: Node) -> Iterator[None]:
    yield
    assert node.runtime.remove_pods() == []
    for program in ("iptables-nft", "iptables-legacy"):
        for arguments in (("-P", "FORWARD", "ACCEPT"), ("-F",), ("-X",)):
            run([program, *arguments]).ok()


@pytest.mark.parametrize("bridged", [0, 1], ids=["bridged apart", "bridged through iptables"])
@pytest.mark.parametrize("who_drops", PROGRAMS)
def test_pods_are_reached_and_reach_others(
    node: Node, outside: Space, ledger: Ledger, who_drops: str, bridged: int
) -> None:
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not setting.exists():
        run(["modprobe", "br_netfilter"]).ok()
    before = setting.read_text()
    ledger.adopt("bridge-nf-call-iptables", lambda: setting.write_text(before))
    setting.write_text(str(bridged))
    for program in PROGRAMS[who_drops]:
        run([program, "-P", "FORWARD", "DROP"]).ok()
    pods = node.run_all({"web": (WEB,), "job": ()})
    assert who.fetch(UPLINK, WEB.host, outside.path) == f"web answers {OUTSIDE}"
    assert who.fetch("127.0.0.1", WEB.host).startswith("web answers")
    web, job = (node.address(pods[name]) for name in ("web", "job"))
    assert node.ask(pods["job"], web, 80) == f"web answers {job}"
    assert node.ask(pods["job"], UPLINK, WEB.host).startswith("web answers")
    assert node.ask(pods["web"], UPLINK, WEB.host).startswith("web answers")
    assert node.ask(pods["job"], OUTSIDE, 8000) == f"far answers {UPLINK}"
    node.delete(pods["web"])
    assert silent(UPLINK, WEB.host)
