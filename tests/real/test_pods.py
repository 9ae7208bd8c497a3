"""Pods under containerd whose network is nodeplug's: addresses, traffic by bytes, restarts, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.harness.runtime.cache import Cache
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from nodeplug.ops.demo.who import Who
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import (
    GATEWAY,
    PORTMAP,
    WAYS,
    Node,
    answer,
    bridge,
    conflist,
    install,
    silent,
    start_worker,
)
from tests.space import Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "program:containerd", "program:runc", "program:nft")
UPLINK, OUTSIDE = "192.0.2.1", "192.0.2.2"


@pytest.fixture(scope="module", params=WAYS)
def node(request: pytest.FixtureRequest, module_ledger: Ledger) -> Iterator[Node]:
    ledger = Ledger()
    directory = ledger.directory()
    network = conflist(bridge(directory / "leases"), PORTMAP, newest="1.1.0")
    if request.param == "worker":
        start_worker(ledger)
    yield Node(ledger, install(directory / "bin", way=request.param), network, directory)
    ledger.close()


@pytest.fixture(scope="module")
def outside(module_ledger: Ledger) -> Space:
    """A machine on the node's uplink, which has no route to the pods."""
    space = module_ledger.netns()
    module_ledger.link("uplink")
    here = Space("", "/proc/self/ns/net")
    here.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", space.name).ok()
    for where, link, address in ((here, "uplink", UPLINK), (space, "eth0", OUTSIDE)):
        where.run("ip", "address", "add", f"{address}/30", "dev", link).ok()
        where.run("ip", "link", "set", link, "up").ok()
    return space


@pytest.fixture(autouse=True)
def _nothing_is_left(node: Node, outside: Space) -> Iterator[None]:
    before = node.left()
    yield
    assert node.runtime.remove_pods() == []
    assert node.left() == before


def test_three_pods_reach_each_other_the_node_and_beyond(node: Node, outside: Space, ledger: Ledger) -> None:
    pods = node.run_all({name: () for name in ("a", "b", "c")})
    addresses = {name: node.address(pod) for name, pod in pods.items()}
    assert len(set(addresses.values())) == 3
    assert set(addresses.values()) == node.leases()
    for server, port, path in ((Who("node", 8000), 8000, ""), (Who("far", 8000, outside.path), 8000, outside.path)):
        ledger.adopt(f"server {port} {path}", server.close)
    for source, pod in pods.items():
        for target, address in addresses.items():
            if target != source:
                assert node.ask(pod, address, 80) == f"{target} answers {addresses[source]}"
        assert node.ask(pod, GATEWAY, 8000) == f"node answers {addresses[source]}"
        assert node.ask(pod, OUTSIDE, 8000) == f"far answers {UPLINK}"
        assert who.fetch(addresses[source], 80) == f"{source} answers {GATEWAY}"


def test_host_port_answers_from_everywhere(node: Node, outside: Space) -> None:
    pods = node.run_all({"web": (Port(8080, 80),), "other": ()})
    address = node.address(pods["web"])
    assert who.fetch(UPLINK, 8080, outside.path) == f"web answers {OUTSIDE}"
    for host in ("127.0.0.1", GATEWAY, UPLINK):
        assert who.fetch(host, 8080).startswith("web answers")
    for host in (GATEWAY, UPLINK):
        assert node.ask(pods["other"], host, 8080).startswith("web answers")
    assert node.ask(pods["web"], UPLINK, 8080).startswith("web answers")
    assert who.fetch(address, 80) == f"web answers {GATEWAY}"
    node.delete(pods["web"])
    for host in ("127.0.0.1", UPLINK):
        assert silent(host, 8080)


def test_host_port_of_one_address_is_not_open_on_others(node: Node, outside: Space) -> None:
    node.run("web", Port(8080, 80, host_ip=UPLINK))
    assert who.fetch(UPLINK, 8080, outside.path) == f"web answers {OUTSIDE}"
    assert silent("127.0.0.1", 8080)
    assert silent(GATEWAY, 8080)


def test_twenty_pods_at_once_come_and_go(node: Node, outside: Space) -> None:
    pods = node.run_all({f"pod{n}": (Port(9000 + n, 80),) for n in range(20)})
    addresses = {node.address(pod) for pod in pods.values()}
    assert len(addresses) == 20
    assert addresses == node.leases()
    for n in range(20):
        assert who.fetch(UPLINK, 9000 + n, outside.path) == f"pod{n} answers {OUTSIDE}"
    node.delete_all(pods.values())
    assert node.leases() == set()


def test_pods_outlive_their_runtime_and_go_after_it_is_back(node: Node, outside: Space) -> None:
    pods = node.run_all({"web": (Port(8080, 80),), "job": ()})
    node.runtime.kill()
    assert who.fetch(UPLINK, 8080, outside.path) == f"web answers {OUTSIDE}"
    node.runtime.start()
    assert node.ask(pods["job"], node.address(pods["web"]), 80).startswith("web answers")
    node.delete(pods["job"])
    node.runtime.stop()
    node.runtime.start()
    answer(UPLINK, 8080)
    node.delete_all([pods["web"]])


def test_host_port_that_is_taken_fails_the_pod_and_leaves_nothing_of_it(node: Node) -> None:
    node.run("web", Port(8080, 80))
    with pytest.raises(Exception, match="8080"):
        node.run("second", Port(8080, 80))
    assert who.fetch("127.0.0.1", 8080).startswith("web answers")
    assert len(node.leases()) == 1


def test_udp_host_port_carries_datagrams(node: Node, outside: Space, ledger: Ledger) -> None:
    pod = node.run("dns", Port(5353, 53, "udp"), Port(5353, 53, "tcp"))
    for proto in ("udp", "tcp"):
        ledger.echo(node.space(pod), proto=proto, port=53)
        assert exchange(UPLINK, 5353, proto=proto, space=outside) == OUTSIDE
        assert reaches("127.0.0.1", 5353, proto=proto)


def test_lost_pods_without_a_cached_result_are_collected_by_the_plugins_themselves(node: Node) -> None:
    pods = node.run_all({"kept": (Port(8080, 80),), "lost": (Port(8081, 80),)})
    node.runtime.lose_pod(pods["lost"])
    for entry in node.results(pods["lost"]):
        Cache().remove(entry.network, entry.attachment)
    assert node.ours.gc(node.network, [(pods["kept"], "eth0")]) == []
    assert node.leases() == {node.address(pods["kept"])}
    assert who.fetch("127.0.0.1", 8080).startswith("kept answers")
    assert silent("127.0.0.1", 8081)


def test_lost_pods_are_collected_with_the_list_of_the_runtime(node: Node, outside: Space) -> None:
    pods = node.run_all({"kept": (Port(8080, 80),), "lost": (Port(8081, 80),)})
    node.runtime.lose_pod(pods["lost"])
    command = [Path(__file__).parents[2] / "bin/nodeplug", "cni", "gc", "--path", node.plugins, "--grace", "0"]
    conf_dir = node.runtime.directory.parent / "net.d"
    done = run([*command, "--conf", conf_dir, "--cri", node.runtime.socket, "--json"]).ok()
    assert {(entry["network"], entry["container"]) for entry in done.json()} == {
        ("pods", pods["lost"]),
        ("cni-loopback", pods["lost"]),
    }
    assert node.leases() == {node.address(pods["kept"])}
    assert who.fetch(UPLINK, 8080, outside.path) == f"kept answers {OUTSIDE}"
    assert silent(UPLINK, 8081)
