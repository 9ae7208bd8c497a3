"""Flows of before a change: the host port's own are forgotten, all others live on."""

from __future__ import annotations

from nodeplug.cni.filter import plan
from nodeplug.cni.filter.forward import dropped
from nodeplug.cni.filter.plan import PORTS
from nodeplug.kernel.netlink import NETLINK_NETFILTER, Netlink
from tests.child import run
from tests.cni.filter.conftest import NETWORK, Node, mapping, nets
from tests.kernel.test_conntrack import track
from tests.needs import needs
from tests.space import HERE

pytestmark = needs("sandbox", "program:nft", "program:conntrack")

ADDRESSES = nets("10.1.0.2/16", "fd00::2/64")


def tracked(family: str = "ipv4") -> list[str]:
    """destination:port of each flow's first packet"""
    listed = run(["conntrack", "-L", "-f", family]).ok().text.splitlines()
    found = []
    for line in listed:
        fields = dict(field.split("=", 1) for field in reversed(line.split()) if "=" in field)
        if "dport" in fields:  # an ICMP error on the side is a flow too
            found.append(f"{fields['dst']}:{fields['dport']}")
    return sorted(found)


def forget_all(node: Node) -> None:
    """Now, what tests before have left, and at the end."""
    run(["conntrack", "-F"])
    node.ledger.adopt("flows", lambda: run(["conntrack", "-F"]))


def test_an_add_forgets_flows_to_its_port_on_the_hosts_own_addresses(node: Node) -> None:
    forget_all(node)
    track(HERE, "10.1.0.3", "127.0.0.1", 53)
    track(HERE, "10.1.0.3", "127.0.0.1", 54)
    track(HERE, "10.1.0.3", "198.51.100.1", 53)
    track(HERE, "10.1.0.3", "127.0.0.1", 53, proto="tcp")
    track(HERE, "fd00::3", "::1", 53)
    with node.open() as table:
        table.add(node.pod(), plan.ports(NETWORK, ADDRESSES, [mapping("udp", 53, 53), mapping("tcp", 53, 53)]))
    assert tracked() == ["127.0.0.1:53", "127.0.0.1:54", "198.51.100.1:53"]
    assert tracked("ipv6") == []
    assert node.warnings == []


def test_an_add_with_a_hostip_forgets_flows_to_that_address_only(node: Node) -> None:
    forget_all(node)
    track(HERE, "10.1.0.3", "127.0.0.1", 53)
    track(HERE, "10.1.0.3", "127.0.0.2", 53)
    with node.open() as table:
        table.add(node.pod(), plan.ports(NETWORK, ADDRESSES, [mapping("udp", 53, 53, "127.0.0.2")]))
    assert tracked() == ["127.0.0.1:53"]


def test_a_delete_forgets_the_flows_the_pod_answers_at_its_mapped_ports(node: Node) -> None:
    forget_all(node)
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.ports(NETWORK, ADDRESSES, [mapping("udp", 53, 5353)]))
        track(HERE, "192.0.2.1", "127.0.0.1", 53, by="10.1.0.2", by_port=5353)
        track(HERE, "192.0.2.1", "127.0.0.1", 54, by="10.1.0.3", by_port=5353)
        track(HERE, "10.1.0.2", "198.51.100.1", 53)
        table.remove(pod.attachment, PORTS)
    assert tracked() == ["127.0.0.1:54", "198.51.100.1:53"]


def test_a_forward_policy_of_drop_is_told(node: Node) -> None:
    node.ledger.adopt("ruleset", lambda: run(["nft", "flush", "ruleset"]))
    with Netlink(NETLINK_NETFILTER) as netlink:
        assert dropped(netlink, (4, 6)) == ""
        node.nft("add", "table", "ip", "filter")
        chain = "{ type filter hook forward priority filter; policy drop; }"
        node.nft("add", "chain", "ip", "filter", "FORWARD", chain)
        assert "chain FORWARD of the nft table ip filter" in dropped(netlink, (6, 4))
        assert dropped(netlink, (6,)) == ""
        node.nft("add", "chain", "ip", "filter", "FORWARD", chain.replace("drop", "accept"))
        assert dropped(netlink, (4, 6)) == ""
