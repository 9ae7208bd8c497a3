"""Addresses against the kernel, with iproute2 as a second opinion."""

from __future__ import annotations

import errno
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.inet import Ip
from nodeplug.kernel.netlink import Netlink, NetlinkError
from nodeplug.kernel.rtnl import addresses, bridges, links, veths
from nodeplug.kernel.rtnl.addresses import Address
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")


def ip(text: str) -> bytes:
    return Ip.parse(text).packed


@pytest.fixture
def index(route: Netlink) -> int:
    """A link that is up on both ends."""
    route.request(veths.add("a", "b", up=True), links.set("b", up=True))
    link = links.find(route, "a")
    assert link is not None
    return link.index


def test_an_ipv4_address_is_added_shown_and_deleted(netns: Space, route: Netlink, index: int) -> None:
    address = Address(
        index=index,
        ip=ip("10.1.2.3"),
        prefix=24,
        broadcast=ip("10.1.2.255"),
        scope=addresses.SCOPE_LINK,
        label="a:pod",
        priority=77,
    )
    route.request(addresses.add(address))
    (shown,) = netns.ip("-4", "address", "show", "a")[0]["addr_info"]
    assert (shown["local"], shown["prefixlen"], shown["broadcast"]) == ("10.1.2.3", 24, "10.1.2.255")
    assert (shown["scope"], shown["label"], shown["metric"]) == ("link", "a:pod", 77)
    assert addresses.dump(route, index=index, family=AF_INET) == [address.replace(flags=addresses.PERMANENT)]
    route.request(addresses.delete(address))
    assert addresses.dump(route, index=index, family=AF_INET) == []


def test_an_ipv6_address_without_detection_is_settled_at_once(route: Netlink, index: int) -> None:
    flags = addresses.NODAD | addresses.NOPREFIXROUTE
    route.request(addresses.add(Address(index=index, ip=ip("fd00::7"), prefix=64, flags=flags)))
    (seen,) = [address for address in addresses.dump(route, index=index) if address.ip == ip("fd00::7")]
    assert seen.flags == flags | addresses.PERMANENT
    assert seen.settled


def test_an_ipv6_address_with_detection_is_tentative_first(route: Netlink, index: int) -> None:
    route.request(addresses.add(Address(index=index, ip=ip("fd00::7"), prefix=64)))
    (seen,) = [address for address in addresses.dump(route, index=index) if address.ip == ip("fd00::7")]
    assert seen.flags & addresses.TENTATIVE
    assert not seen.settled


def test_without_a_prefix_route_there_is_none(netns: Space, route: Netlink, index: int) -> None:
    route.request(
        addresses.add(Address(index=index, ip=ip("10.1.2.3"), prefix=24, flags=addresses.NOPREFIXROUTE)),
        addresses.add(Address(index=index, ip=ip("10.9.9.9"), prefix=24)),
    )
    assert [shown["dst"] for shown in netns.ip("route", "show", "dev", "a")] == ["10.9.9.0/24"]


def test_a_point_to_point_address_has_its_peer(netns: Space, route: Netlink, index: int) -> None:
    v4 = Address(index=index, ip=ip("10.1.2.1"), prefix=32, peer=ip("10.1.2.2"))
    v6 = Address(index=index, ip=ip("fd00::1"), prefix=128, peer=ip("fd00::2"), flags=addresses.NODAD)
    route.request(addresses.add(v4), addresses.add(v6))
    (shown,) = netns.ip("-4", "address", "show", "a")[0]["addr_info"]
    assert (shown["local"], shown["address"]) == ("10.1.2.1", "10.1.2.2")
    seen = {address.ip: address for address in addresses.dump(route, index=index)}
    assert seen[v4.ip].peer == v4.peer
    assert seen[v6.ip].peer == v6.peer
    route.request(addresses.delete(v4), addresses.delete(v6))
    assert not {v4.ip, v6.ip} & {address.ip for address in addresses.dump(route, index=index)}


def test_adding_twice_is_refused_and_replacing_is_not(route: Netlink, index: int) -> None:
    for address in (
        Address(index=index, ip=ip("10.1.2.3"), prefix=24),
        Address(index=index, ip=ip("fd00::3"), prefix=64, flags=addresses.NODAD),
    ):
        route.request(addresses.add(address))
        with pytest.raises(NetlinkError, match=f"'{Ip(packed=address.ip)}/{address.prefix} on link {index}'") as caught:
            route.request(addresses.add(address))
        assert (caught.value.errno, caught.value.call) == (errno.EEXIST, "address add")
        route.request(addresses.add(address, replace=True))


def test_deleting_an_absent_address_or_with_another_prefix_is_a_known_error(route: Netlink, index: int) -> None:
    address = Address(index=index, ip=ip("10.1.2.3"), prefix=24)
    route.request(addresses.add(address))
    for wrong in (address.replace(prefix=25), address.replace(ip=ip("10.1.2.4"))):
        with pytest.raises(NetlinkError) as caught:
            route.request(addresses.delete(wrong))
        assert (caught.value.errno, caught.value.call) == (errno.EADDRNOTAVAIL, "address delete")


def test_a_dump_is_of_one_link_and_one_family_when_asked(route: Netlink, index: int) -> None:
    route.request(bridges.add("cni0", up=True))
    bridge = links.find(route, "cni0")
    assert bridge is not None
    route.request(
        *[addresses.add(Address(index=bridge.index, ip=bytes((10, 2, 0, n)), prefix=24)) for n in range(1, 201)],
        addresses.add(Address(index=index, ip=ip("10.1.2.3"), prefix=24)),
        addresses.add(Address(index=index, ip=ip("fd00::3"), prefix=64, flags=addresses.NODAD)),
    )
    assert len(addresses.dump(route, index=bridge.index, family=AF_INET)) == 200
    mine = addresses.dump(route, index=index)
    assert {address.index for address in mine} == {index}
    assert {ip("10.1.2.3"), ip("fd00::3")} <= {address.ip for address in mine}
    assert [address.ip for address in addresses.dump(route, index=index, family=AF_INET)] == [ip("10.1.2.3")]
    assert all(len(address.ip) == 16 for address in addresses.dump(route, family=AF_INET6))
    assert len(addresses.dump(route, family=AF_INET)) == 202  # and lo's
    with pytest.raises(NetlinkError, match=r"address dump: No such device.*'link 4711'"):
        addresses.dump(route, index=4711)


def test_what_is_no_address_is_refused_before_the_kernel_sees_it() -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes, not 3"):
        addresses.add(Address(index=1, ip=b"abc", prefix=8))


@given(st.binary(max_size=200))
def test_any_payload_is_an_address_or_a_value_error(payload: bytes) -> None:
    try:
        repr(addresses.parse(payload).settled)
    except ValueError:
        assert len(payload) < 8


@given(
    packed=st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    prefix=st.integers(0, 128),
    flags=st.integers(0, 0xFFFF),
    scope=st.integers(0, 255),
    label=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=15),
    priority=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
def test_what_add_writes_parse_reads(
    packed: bytes, prefix: int, flags: int, scope: int, label: str, priority: int | None
) -> None:
    address = Address(
        index=9, ip=packed, prefix=prefix, flags=flags, scope=scope, label=label, priority=priority, broadcast=packed
    )
    assert addresses.parse(addresses.add(address).payload) == address
