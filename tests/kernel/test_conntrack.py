"""nodeplug.kernel.conntrack against flows that conntrack(8) inserted."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel import conntrack
from nodeplug.kernel.attributes import nest
from nodeplug.kernel.conntrack import Flow, Pattern, Tuple
from nodeplug.kernel.netlink import NETLINK_NETFILTER, Netlink
from nodeplug.kernel.netns import Netns
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:conntrack")

UDP = socket.IPPROTO_UDP
TCP = socket.IPPROTO_TCP


@pytest.fixture
def netlink(netns: Space) -> Iterator[Netlink]:
    with Netns.open(netns.path) as opened, Netlink(NETLINK_NETFILTER, netns=opened) as made:
        yield made


def track(
    space: Space,
    src: str,
    dst: str,
    port: int,
    *,
    by: str = "",
    by_port: int = 0,
    proto: str = "udp",
    sport: int = 4000,
    zone: int = 0,
) -> None:
    """A flow from `src` to `dst`:`port`, answered by `by`:`by_port` where it is translated."""
    rest = ["--state", "ESTABLISHED"] if proto == "tcp" else []
    rest += ["--zone", str(zone)] if zone else []
    command = ["conntrack", "-I", "-p", proto, "-s", src, "-d", dst, "--sport", str(sport), "--dport", str(port)]
    command += ["--reply-src", by or dst, "--reply-dst", src, "--reply-port-src", str(by_port or port)]
    space.run(*command, "--reply-port-dst", str(sport), "--timeout", "600", *rest).ok()


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def ports(flows: list[Flow]) -> list[int]:
    return sorted(flow.original.dst_port for flow in flows)


def test_a_flow_reads_as_it_was_inserted(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53, by="10.1.0.2", by_port=5353)
    (flow,) = conntrack.dump(netlink, socket.AF_INET)
    here, there, pod = packed("192.0.2.1"), packed("192.0.2.9"), packed("10.1.0.2")
    assert flow.original == Tuple(src=here, dst=there, proto=UDP, src_port=4000, dst_port=53)
    assert flow.reply == Tuple(src=pod, dst=here, proto=UDP, src_port=5353, dst_port=4000)
    assert len(flow.id) == 4


def test_the_kernel_selects_by_either_direction(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53, by="10.1.0.2")
    track(netns, "192.0.2.1", "192.0.2.9", 54, by="10.1.0.3")
    track(netns, "192.0.2.1", "192.0.2.8", 53, by="10.1.0.3", by_port=99)
    track(netns, "192.0.2.1", "192.0.2.9", 53, proto="tcp")

    def found(**patterns: Pattern) -> list[tuple[str, int]]:
        flows = conntrack.dump(netlink, socket.AF_INET, **patterns)
        return sorted((socket.inet_ntoa(flow.original.dst), flow.original.dst_port) for flow in flows)

    assert len(found()) == 4
    assert found(original=Pattern(proto=UDP, dst_port=53)) == [("192.0.2.8", 53), ("192.0.2.9", 53)]
    assert found(original=Pattern(proto=TCP)) == [("192.0.2.9", 53)]
    assert found(original=Pattern(dst=packed("192.0.2.8"))) == [("192.0.2.8", 53)]
    assert found(reply=Pattern(src=packed("10.1.0.3"), proto=UDP)) == [("192.0.2.8", 53), ("192.0.2.9", 54)]
    assert found(reply=Pattern(src=packed("10.1.0.3"), proto=UDP, src_port=99)) == [("192.0.2.8", 53)]
    assert found(original=Pattern(src=packed("192.0.2.7"))) == []
    both = {"original": Pattern(proto=UDP, dst_port=53), "reply": Pattern(src=packed("10.1.0.2"))}
    assert found(**both) == [("192.0.2.9", 53)]


def test_ipv6_flows_are_a_list_of_their_own(netns: Space, netlink: Netlink) -> None:
    track(netns, "2001:db8::1", "2001:db8::9", 53, by="fd00::2")
    track(netns, "192.0.2.1", "192.0.2.9", 54)
    assert ports(conntrack.dump(netlink, socket.AF_INET6)) == [53]
    assert ports(conntrack.dump(netlink, socket.AF_INET)) == [54]
    chosen = conntrack.dump(netlink, socket.AF_INET6, reply=Pattern(src=packed("fd00::2"), proto=UDP))
    assert conntrack.delete(netlink, chosen) == 1
    assert conntrack.dump(netlink, socket.AF_INET6) == []


def test_only_the_named_flows_are_deleted(netns: Space, netlink: Netlink) -> None:
    for port in (53, 54, 55):
        track(netns, "192.0.2.1", "192.0.2.9", port)
    flows = conntrack.dump(netlink, socket.AF_INET)
    assert conntrack.delete(netlink, [flow for flow in flows if flow.original.dst_port != 54]) == 2
    assert ports(conntrack.dump(netlink, socket.AF_INET)) == [54]


def test_a_flow_that_ended_is_passed_over(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53)
    track(netns, "192.0.2.1", "192.0.2.9", 54)
    flows = conntrack.dump(netlink, socket.AF_INET)
    netns.run("conntrack", "-D", "-p", "udp", "--dport", "53").ok()
    assert conntrack.delete(netlink, flows) == 1
    assert conntrack.delete(netlink, flows) == 0


def test_a_flow_that_took_the_place_of_another_stays(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53)
    (old,) = conntrack.dump(netlink, socket.AF_INET)
    other = old.replace(id=bytes(byte ^ 0xFF for byte in old.id))
    assert conntrack.delete(netlink, [other]) == 0
    assert conntrack.dump(netlink, socket.AF_INET) == [old]


def test_flows_of_other_zones_are_deleted_in_their_zone(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53, sport=1, zone=7)
    track(netns, "192.0.2.1", "192.0.2.9", 53, sport=1)
    flows = conntrack.dump(netlink, socket.AF_INET)
    zoned = [flow for flow in flows if flow.zone]
    assert (len(flows), len(zoned)) == (2, 1)
    assert conntrack.delete(netlink, zoned) == 1
    assert [flow.zone for flow in conntrack.dump(netlink, socket.AF_INET)] == [b""]


def test_flows_to_a_port_go_only_where_the_destination_is_ours(netns: Space, netlink: Netlink) -> None:
    track(netns, "192.0.2.1", "192.0.2.9", 53)
    track(netns, "192.0.2.1", "192.0.2.9", 54)
    track(netns, "192.0.2.2", "192.0.2.9", 53, by="10.1.0.2")
    track(netns, "10.1.0.3", "198.51.100.1", 53)
    track(netns, "192.0.2.1", "192.0.2.9", 53, proto="tcp")
    asked = []

    def local(address: bytes) -> bool:
        asked.append(socket.inet_ntoa(address))
        return address == packed("192.0.2.9")

    assert conntrack.delete_to(netlink, socket.AF_INET, UDP, [53], to=local) == 2
    assert sorted(asked) == ["192.0.2.9", "198.51.100.1"]
    left = conntrack.dump(netlink, socket.AF_INET)
    assert sorted((flow.original.proto, flow.original.dst_port) for flow in left) == [(TCP, 53), (UDP, 53), (UDP, 54)]


def test_many_ports_are_found_in_one_listing(netns: Space, netlink: Netlink) -> None:
    for port in (53, 54, 1053):
        track(netns, "192.0.2.1", "192.0.2.9", port)
    assert conntrack.delete_to(netlink, socket.AF_INET, UDP, range(50, 100), to=lambda _: True) == 2
    assert ports(conntrack.dump(netlink, socket.AF_INET)) == [1053]


@pytest.mark.parametrize(("client", "pod"), [("192.0.2.1", "10.1.0.2"), ("2001:db8::1", "fd00::2")])
def test_flows_that_a_pod_answers_go_with_it(netns: Space, netlink: Netlink, client: str, pod: str) -> None:
    host = client[:-1] + "9"
    track(netns, client, host, 53, by=pod, by_port=5353)
    track(netns, client, host, 54, by=pod, by_port=5354)
    track(netns, client, host, 55, by=pod[:-1] + "3", by_port=5353)
    family = socket.AF_INET6 if ":" in pod else socket.AF_INET
    assert conntrack.delete_from(netlink, packed(pod), UDP, [5353]) == 1
    assert conntrack.delete_from(netlink, packed(pod), UDP, []) == 0
    assert ports(conntrack.dump(netlink, family)) == [54, 55]


def test_a_thousand_flows_are_deleted(netns: Space, netlink: Netlink, directory: Path) -> None:
    template = (
        "-I -p udp -s 192.0.2.{host} -d 192.0.2.254 --sport {sport} --dport 53 --timeout 600 --reply-src 192.0.2.254 "
        "--reply-dst 192.0.2.{host} --reply-port-src 53 --reply-port-dst {sport}\n"
    )
    lines = "".join(template.format(host=host, sport=sport) for host in range(1, 11) for sport in range(1000, 1100))
    (directory / "flows").write_text(lines)
    netns.run("conntrack", "-R", str(directory / "flows")).ok()
    flows = conntrack.dump(netlink, socket.AF_INET, original=Pattern(proto=UDP, dst_port=53))
    assert len(flows) == 1000
    assert conntrack.delete(netlink, flows) == 1000
    assert conntrack.dump(netlink, socket.AF_INET) == []


@given(st.binary(max_size=200))
def test_any_bytes_read_as_a_flow_or_none(data: bytes) -> None:
    conntrack.read(data)
    conntrack.read(bytes(4) + nest(1, data) + nest(2, data))
    conntrack.read(bytes(4) + nest(1, nest(1, data), nest(2, data)))
