"""GC: what belongs to the network and to no valid attachment goes, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from nodeplug.cni.filter import plan
from nodeplug.cni.filter.plan import PORTS
from tests.cni.filter.conftest import NETWORK, Node, nets, tcp
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft")


def test_only_what_is_not_valid_in_the_network_goes(node: Node) -> None:
    valid, dead, other = node.pod("valid"), node.pod("dead"), node.pod("dead", "other")
    kept = plan.ports(NETWORK, nets("10.1.0.2/16"), [tcp(8080)])
    foreign = plan.ports("other", nets("10.2.0.2/16"), [tcp(8082)])
    with node.open() as table:
        table.add(valid, kept)
        table.add(dead, plan.ports(NETWORK, nets("10.1.0.3/16"), [tcp(8081)]))
        table.add(dead, plan.masquerade(NETWORK, nets("10.1.0.3/16")))
        table.add(other, foreign)
        assert table.collect(NETWORK, frozenset({valid.attachment})) == 2
        assert table.missing(valid.attachment, kept) == table.missing(other.attachment, foreign) == []
        assert table.collect(NETWORK, frozenset({valid.attachment})) == 0
    assert node.elements("ports4") == ["['tcp.8080', '10.1.0.2.80']", "['tcp.8082', '10.2.0.2.80']"]


def test_elements_whose_file_is_lost_are_known_by_their_comments(node: Node) -> None:
    valid, dead = node.pod("valid"), node.pod("dead")
    with node.open() as table:
        for pod, address, port in ((valid, "10.1.0.2/16", 8080), (dead, "10.1.0.3/16", 8081)):
            table.add(pod, plan.ports(NETWORK, nets(address), [tcp(port)]))
        for pod in (valid, dead):
            node.index.drop(pod.attachment.identity, PORTS)
        assert table.collect("ne", frozenset()) == 0
        assert table.collect(NETWORK, frozenset({valid.attachment})) == 3
    assert node.elements("ports4") == ["['tcp.8080', '10.1.0.2.80']"]
    assert node.elements("snat4") == ["10.1.0.2.tcp.80.8080"]


def test_a_network_without_pods_leaves_no_set_and_no_rule(node: Node) -> None:
    pod, other = node.pod(), node.pod("p2", "other")
    with node.open() as table:
        table.add(other, plan.masquerade("other", nets("10.2.0.2/16")))
        before = node.nft("list", "ruleset")
        table.add(pod, plan.masquerade(NETWORK, nets("10.1.0.2/16", "fd00::2/64")))
        table.add(pod, plan.ports(NETWORK, nets("10.1.0.2/16"), [tcp(8080)]))
        table.collect(NETWORK, frozenset())
    assert node.nft("list", "ruleset") == before
    assert all(name.startswith("filter/") for name in node.files())


def test_an_empty_set_of_a_valid_attachment_stays(node: Node) -> None:
    pod = node.pod()
    share = plan.masquerade(NETWORK, nets("10.1.0.2/16"))
    with node.open() as table:
        table.add(pod, share)
        node.nft("flush", "set", "inet", "nodeplug", share.subnets[0].set_name)
        table.collect(NETWORK, frozenset({pod.attachment}))
    assert node.elements(share.subnets[0].set_name) == []


def test_what_somebody_else_put_into_the_table_stays(node: Node) -> None:
    with node.open() as table:
        table.add(node.pod(), plan.ports(NETWORK, nets("10.1.0.2/16"), [tcp(8080)]))
        node.nft("add", "element", "inet", "nodeplug", "ports4", '{ tcp . 1 comment "net/x/y" : 10.9.9.9 . 1 }')
        node.nft("add", "element", "inet", "nodeplug", "ports4", "{ tcp . 2 : 10.9.9.9 . 1 }")
        table.collect(NETWORK, frozenset())
    assert node.elements("ports4") == ["['tcp.1', '10.9.9.9.1']", "['tcp.2', '10.9.9.9.1']"]


def test_leavings_of_killed_writers_are_swept(node: Node) -> None:
    pod = node.pod()
    with node.open() as table:
        table.add(pod, plan.ports(NETWORK, nets("10.1.0.2/16"), [tcp(8080)]))
        filters = Path(node.index.directory, "filter")
        old, fresh = filters / ".npx.ports.1-2~", filters / ".npy.ports.1-2~"
        old.write_text("{")
        fresh.write_text("{")
        os.utime(old, (1, 1))
        claims = Path(node.index.directory, "hostports", "udp-53")
        claims.mkdir()
        (claims / "0.0.0.0").symlink_to("npaaaaaaaaaaaaa")
        table.collect(NETWORK, frozenset({pod.attachment}))
    assert not old.exists() and fresh.exists() and not claims.exists()
    assert "hostports/tcp-8080/0.0.0.0" in node.files()


def test_a_node_that_never_had_a_table_has_nothing_to_collect(node: Node) -> None:
    with node.open() as table:
        assert table.collect(NETWORK, frozenset()) == 0
    assert node.nft("list", "ruleset") == ""
