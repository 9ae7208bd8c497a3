"""A host port belongs to one pod."""

from __future__ import annotations

import threading

import pytest

from nodeplug.cni.filter import plan
from nodeplug.cni.filter.plan import PORTS
from nodeplug.core.errors import Refused
from tests.cni.filter.conftest import NETWORK, Node, mapping, nets, tcp
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft")

ONE = nets("10.1.0.2/16")
TWO = nets("10.2.0.3/16")


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("", "", "hostPort 8080/tcp is taken by net/first/eth0"),
        ("", "192.0.2.1", "hostPort 8080/tcp on 192.0.2.1 is taken on every address by net/first/eth0"),
        ("192.0.2.1", "", "hostPort 8080/tcp is taken on 192.0.2.1 by net/first/eth0"),
        ("192.0.2.1", "192.0.2.1", "hostPort 8080/tcp on 192.0.2.1 is taken by net/first/eth0"),
        ("0.0.0.0", "192.0.2.1", "taken on every address by net/first/eth0"),
    ],
)
def test_a_port_of_a_live_pod_is_refused_naming_it(node: Node, first: str, second: str, said: str) -> None:
    with node.open() as table:
        table.add(node.pod("first"), plan.ports(NETWORK, ONE, [tcp(8080, 80, first)]))
        with pytest.raises(Refused) as refused:
            table.add(node.pod("second", "other"), plan.ports("other", TWO, [tcp(8080, 81, second)]))
    assert said in str(refused.value)
    assert "/run/netns/" in str(refused.value)


def test_what_does_not_meet_is_free(node: Node) -> None:
    with node.open() as table:
        table.add(node.pod("a"), plan.ports(NETWORK, ONE, [tcp(8080, 80, "192.0.2.1"), mapping("udp", 53, 53)]))
        table.add(node.pod("b"), plan.ports(NETWORK, TWO, [tcp(8080, 80, "192.0.2.2")]))
        table.add(node.pod("c"), plan.ports(NETWORK, nets("10.1.0.9/16"), [tcp(53, 53)]))
        table.add(node.pod("d"), plan.ports(NETWORK, nets("fd00::9/64"), [tcp(8080)]))
        table.add(node.pod("e"), plan.ports(NETWORK, nets("10.1.0.8/16"), [tcp(8080, 80, "2001:db8::1")]))


def test_a_port_is_free_after_the_pod_is_deleted(node: Node) -> None:
    first = node.pod("first")
    with node.open() as table:
        table.add(first, plan.ports(NETWORK, ONE, [tcp(8080)]))
        table.remove(first.attachment, PORTS)
        table.add(node.pod("second"), plan.ports(NETWORK, TWO, [tcp(8080)]))
    assert node.elements("ports4") == ["['tcp.8080', '10.2.0.3.80']"]
    assert node.warnings == []


@pytest.mark.parametrize("theirs", ["", "192.0.2.1"])
def test_a_pod_that_is_gone_loses_the_port_and_its_late_delete_takes_nothing(node: Node, theirs: str) -> None:
    dead, pod = node.pod("dead"), node.pod("pod", "other")
    share = plan.ports("other", TWO, [tcp(8080)])
    with node.open() as table:
        table.add(dead, plan.ports(NETWORK, ONE, [tcp(8080, 80, theirs), tcp(9090)]))
        node.kill(dead)
        table.add(pod, share)
        (warning,) = node.warnings
        assert "net/dead/eth0" in warning and dead.netns_path in warning
        assert node.elements("ports4") == ["['tcp.8080', '10.2.0.3.80']", "['tcp.9090', '10.1.0.2.80']"]
        assert node.elements("hostip4") == []
        assert table.remove(dead.attachment, PORTS)
        assert table.missing(pod.attachment, share) == []
    assert node.elements("ports4") == ["['tcp.8080', '10.2.0.3.80']"]


def test_a_namespace_made_anew_under_the_old_path_is_another_pod(node: Node) -> None:
    dead = node.pod("dead")
    name = dead.netns_path.rpartition("/")[2]
    with node.open() as table:
        table.add(dead, plan.ports(NETWORK, ONE, [tcp(8080)]))
        keep = node.ledger.netns()  # so that the inode is not given again at once
        node.kill(dead)
        node.ledger.netns()
        node.ledger.netns(name)
        table.add(node.pod("pod"), plan.ports(NETWORK, TWO, [tcp(8080)]))
    assert len(node.warnings) == 1
    assert keep.name


def test_of_two_adds_at_once_one_gets_the_port(node: Node) -> None:
    for attempt in range(10):
        pods = [node.pod(f"p{attempt}-{n}") for n in range(2)]
        outcomes: dict[str, str] = {}

        def add(number: int, pods: list = pods, outcomes: dict[str, str] = outcomes) -> None:  # type: ignore[type-arg]
            host_ip = "192.0.2.1" if number else ""
            try:
                with node.open() as table:
                    share = plan.ports(NETWORK, nets(f"10.1.0.{number + 2}/16"), [tcp(8080, 80, host_ip)])
                    table.add(pods[number], share)
                outcomes[pods[number].attachment.container] = "added"
            except Refused as error:
                outcomes[pods[number].attachment.container] = str(error)

        threads = [threading.Thread(target=add, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome == "added" for outcome in outcomes.values()) == [False, True]
        with node.open() as table:
            for pod in pods:
                table.remove(pod.attachment, PORTS)
    assert node.files() == []


def test_a_link_without_a_share_is_nobodys(node: Node) -> None:
    dead = node.pod("dead")
    with node.open() as table:
        table.add(dead, plan.ports(NETWORK, ONE, [tcp(8080)]))
        node.index.drop(dead.attachment.identity, PORTS)
        table.add(node.pod("pod"), plan.ports(NETWORK, TWO, [tcp(8080)]))
    assert node.elements("ports4") == ["['tcp.8080', '10.2.0.3.80']"]
