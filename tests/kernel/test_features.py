"""What small kernels lack does what its name promises where it exists: each kind of link carries traffic, or parts it.

These are the features that plugins rely on and `tests/needs.py` probes; where one is missing, its test runs in the
emulated machine (`make test-vm`).
"""

from __future__ import annotations

import socket

import pytest

from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "program:ip")


def wire(a: Space, b: Space, name: str = "eth0") -> None:
    """A veth pair between two namespaces, up at both ends."""
    a.run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", name, "netns", b.name).ok()
    for space in (a, b):
        space.run("ip", "link", "set", name, "up").ok()


def give(space: Space, link: str, address: str) -> None:
    space.run("ip", "addr", "add", address, "dev", link).ok()
    space.run("ip", "link", "set", link, "up").ok()


@needs("sctp")
@pytest.mark.parametrize(("address", "everywhere"), [("10.4.0.1", "0.0.0.0"), ("fd04::1", "::")])
def test_sctp_carries_bytes_between_namespaces(ledger: Ledger, address: str, everywhere: str) -> None:
    a, b = ledger.netns(), ledger.netns()
    wire(a, b)
    for space, last in ((a, 1), (b, 2)):
        give(space, "eth0", f"10.4.0.{last}/24")
        space.run("ip", "addr", "add", f"fd04::{last}/64", "dev", "eth0", "nodad").ok()
    server = ledger.echo(a, proto="sctp", address=everywhere)
    assert exchange(address, server.port, proto="sctp", space=b, timeout=10) in ("10.4.0.2", "fd04::2")


@needs("link:vlan")
def test_vlan_links_with_one_tag_meet_and_with_two_do_not(ledger: Ledger) -> None:
    a, b = ledger.netns(), ledger.netns()
    wire(a, b)
    for space, last in ((a, 1), (b, 2)):
        space.run("ip", "link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", "7").ok()
        give(space, "tagged", f"10.4.7.{last}/24")
    server = ledger.echo(a)
    assert exchange("10.4.7.1", server.port, space=b) == "10.4.7.2"
    a.run("ip", "link", "set", "tagged", "down").ok()
    a.run("ip", "link", "add", "link", "eth0", "name", "other", "type", "vlan", "id", "8").ok()
    a.run("ip", "addr", "flush", "dev", "tagged").ok()
    give(a, "other", "10.4.7.1/24")
    assert not reaches("10.4.7.1", server.port, space=b, timeout=0.5)


@needs("link:ipvlan")
def test_ipvlan_links_of_one_parent_meet_under_one_mac(ledger: Ledger) -> None:
    node, a, b = ledger.netns(), ledger.netns(), ledger.netns()
    node.run("ip", "link", "add", "name", "parent", "type", "veth", "peer", "name", "beyond").ok()
    for link in ("parent", "beyond"):
        node.run("ip", "link", "set", link, "up").ok()
    for space, last in ((a, 1), (b, 2)):
        made = ("link", "parent", "name", "eth0", "netns", space.name, "type", "ipvlan", "mode", "l2")
        node.run("ip", "link", "add", *made).ok()
        give(space, "eth0", f"10.4.1.{last}/24")
    server = ledger.echo(a)
    assert exchange("10.4.1.1", server.port, space=b) == "10.4.1.2"
    assert a.ip("link", "show", "eth0")[0]["address"] == b.ip("link", "show", "eth0")[0]["address"]


@needs("link:dummy")
def test_a_dummy_link_holds_an_address_that_answers(netns: Space, ledger: Ledger) -> None:
    netns.run("ip", "link", "add", "name", "dummy0", "type", "dummy").ok()
    give(netns, "dummy0", "10.4.2.1/24")
    server = ledger.echo(netns, address="10.4.2.1")
    assert exchange("10.4.2.1", server.port, space=netns) == "10.4.2.1"


@needs("link:vrf")
def test_a_vrf_keeps_its_routes_from_the_others(netns: Space, ledger: Ledger) -> None:
    peer = ledger.netns()
    wire(netns, peer)
    give(peer, "eth0", "10.4.3.2/24")
    netns.run("ip", "link", "add", "name", "red", "type", "vrf", "table", "10").ok()
    netns.run("ip", "link", "set", "red", "up").ok()
    netns.run("ip", "link", "set", "eth0", "master", "red").ok()
    give(netns, "eth0", "10.4.3.1/24")
    server = ledger.echo(peer)
    assert not reaches("10.4.3.2", server.port, space=netns, timeout=0.5)
    assert netns.ip("route", "get", "10.4.3.2", "vrf", "red")[0]["dev"] == "eth0"
    with netns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"red")
        client.settimeout(3)
        client.connect(("10.4.3.2", server.port))
        client.sendall(b"inside")
        assert client.recv(100) == b"10.4.3.1 inside"


@needs("vlan-filtering")
def test_a_filtering_bridge_passes_a_frame_only_between_ports_of_its_vlan(ledger: Ledger) -> None:
    node, *pods = (ledger.netns() for _ in range(4))
    node.run("ip", "link", "add", "name", "br0", "type", "bridge", "vlan_filtering", "1", "vlan_default_pvid", "0").ok()
    node.run("ip", "link", "set", "br0", "up").ok()
    for number, (pod, vlan) in enumerate(zip(pods, ("100", "100", "200"), strict=True), 1):
        port = f"port{number}"
        node.run("ip", "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", pod.name).ok()
        node.run("ip", "link", "set", port, "master", "br0", "up").ok()
        node.run("bridge", "vlan", "add", "dev", port, "vid", vlan, "pvid", "untagged").ok()
        give(pod, "eth0", f"10.4.5.{number}/24")
    same, other = ledger.echo(pods[0]), ledger.echo(pods[2])
    assert exchange("10.4.5.1", same.port, space=pods[1]) == "10.4.5.2"
    assert not reaches("10.4.5.3", other.port, space=pods[1], timeout=0.5)
