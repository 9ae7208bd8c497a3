"""Routes against the kernel, with iproute2 as a second opinion."""

from __future__ import annotations

import errno
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.inet import Ip, Net
from nodeplug.kernel.netlink import Netlink, NetlinkError
from nodeplug.kernel.rtnl import addresses, links, routes, veths
from nodeplug.kernel.rtnl.addresses import Address
from nodeplug.kernel.rtnl.routes import Nexthop, Route
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")


def ip(text: str) -> bytes:
    return Ip.parse(text).packed


def to(text: str) -> tuple[bytes, int]:
    net = Net.parse(text)
    return net.ip.packed, net.prefix


def route_to(text: str, **fields: object) -> Route:
    dst, prefix = to(text)
    return Route(dst=dst, prefix=prefix, **fields)  # type: ignore[arg-type]  # fields of any type


@pytest.fixture
def oif(route: Netlink) -> int:
    """A link that is up, with 10.1.0.5/16 and fd00::5/64."""
    route.request(veths.add("a", "b", up=True), links.set("b", up=True))
    link = links.find(route, "a")
    assert link is not None
    route.request(
        addresses.add(Address(index=link.index, ip=ip("10.1.0.5"), prefix=16)),
        addresses.add(Address(index=link.index, ip=ip("fd00::5"), prefix=64, flags=addresses.NODAD)),
    )
    return link.index


def shown(netns: Space, family: str, dst: str, *more: str) -> dict[str, object]:
    (one,) = netns.ip(family, "route", "show", dst, *more)
    return one  # type: ignore[no-any-return]  # JSON


def test_default_routes_of_both_families(netns: Space, route: Netlink, oif: int) -> None:
    route.request(
        routes.add(route_to("0.0.0.0/0", oif=oif, gateway=ip("10.1.0.1"))),
        routes.add(route_to("::/0", oif=oif, gateway=ip("fd00::1"))),
    )
    v4 = shown(netns, "-4", "default")
    assert (v4["gateway"], v4["dev"], v4["protocol"], v4["scope"]) == ("10.1.0.1", "a", "boot", "global")
    v6 = shown(netns, "-6", "default")
    assert (v6["gateway"], v6["dev"], v6["metric"]) == ("fd00::1", "a", 1024)


def test_every_field_comes_back_as_it_was_given(netns: Space, route: Netlink, oif: int) -> None:
    for wanted in (
        route_to(
            "192.0.2.0/24",
            oif=oif,
            gateway=ip("10.9.9.9"),
            flags=routes.ONLINK,
            src=ip("10.1.0.5"),
            table=1000,
            priority=55,
            protocol=routes.BY_ADMIN,
            mtu=1380,
            advmss=1340,
            scope=routes.SCOPE_UNIVERSE,
        ),
        route_to(
            "2001:db8::/32",
            oif=oif,
            gateway=ip("fe80::1"),
            src=ip("fd00::5"),
            table=1000,
            priority=55,
            protocol=routes.BY_ADMIN,
            mtu=1380,
            advmss=1340,
            scope=routes.SCOPE_UNIVERSE,
        ),
    ):
        route.request(routes.add(wanted))
        family = AF_INET if len(wanted.dst) == 4 else AF_INET6
        assert routes.dump(route, family, table=1000) == [wanted]
        route.request(routes.delete(wanted))
        assert routes.dump(route, family, table=1000) == []


def test_the_scope_follows_from_the_gateway_unless_it_is_given(netns: Space, route: Netlink, oif: int) -> None:
    route.request(
        routes.add(route_to("10.2.0.0/16", oif=oif)),
        routes.add(route_to("10.3.0.0/16", oif=oif, gateway=ip("10.1.0.1"))),
        routes.add(route_to("10.4.0.0/16", oif=oif, scope=routes.SCOPE_UNIVERSE)),
        routes.add(route_to("10.5.0.1/32", oif=oif, scope=routes.SCOPE_HOST)),
    )
    scopes = {one["dst"]: one["scope"] for one in netns.ip("-4", "route", "show", "proto", "boot")}
    assert scopes == {"10.2.0.0/16": "link", "10.3.0.0/16": "global", "10.4.0.0/16": "global", "10.5.0.1": "host"}


def test_kinds_without_a_link(netns: Space, route: Netlink) -> None:
    route.request(
        routes.add(route_to("10.2.0.0/16", type=routes.BLACKHOLE)),
        routes.add(route_to("10.3.0.0/16", type=routes.UNREACHABLE)),
        routes.add(route_to("fd02::/64", type=routes.BLACKHOLE)),
    )
    assert shown(netns, "-4", "10.2.0.0/16")["type"] == "blackhole"
    seen = {found.dst: found.type for found in routes.dump(route, AF_INET)}
    assert seen == {ip("10.2.0.0"): routes.BLACKHOLE, ip("10.3.0.0"): routes.UNREACHABLE}
    assert shown(netns, "-6", "fd02::/64")["type"] == "blackhole"


@pytest.mark.parametrize(
    ("family", "dst", "first", "second"),
    [(AF_INET, "192.0.2.0/24", "10.1.0.1", "10.1.0.2"), (AF_INET6, "2001:db8::/32", "fd00::1", "fd00::2")],
)
def test_several_next_hops(route: Netlink, oif: int, family: int, dst: str, first: str, second: str) -> None:
    hops = (Nexthop(oif=oif, gateway=ip(first)), Nexthop(oif=oif, gateway=ip(second), weight=5))
    wanted = route_to(dst, nexthops=hops, table=1000)
    route.request(routes.add(wanted))
    (seen,) = routes.dump(route, family, table=1000)
    assert seen.nexthops == hops
    assert seen.oif == 0
    assert seen.gateway is None
    route.request(routes.delete(wanted))
    assert routes.dump(route, family, table=1000) == []


def test_an_ipv4_route_by_an_ipv6_neighbour(netns: Space, route: Netlink, oif: int) -> None:
    wanted = route_to("192.0.2.0/24", oif=oif, gateway=ip("fe80::1"))
    route.request(routes.add(wanted))
    assert shown(netns, "-4", "192.0.2.0/24")["via"] == {"family": "inet6", "host": "fe80::1"}
    (seen,) = [found for found in routes.dump(route, AF_INET) if found.dst == wanted.dst]
    assert seen.gateway == wanted.gateway
    route.request(routes.delete(wanted))


def test_adding_twice_is_refused_replacing_and_appending_are_not(route: Netlink, oif: int) -> None:
    wanted = route_to("192.0.2.0/24", oif=oif, gateway=ip("10.1.0.1"))
    route.request(routes.add(wanted))
    with pytest.raises(NetlinkError, match=rf"route add: File exists: '192.0.2.0/24 via 10.1.0.1 by link {oif}'"):
        route.request(routes.add(wanted))
    other = wanted.replace(gateway=ip("10.1.0.2"))
    route.request(routes.add(other, replace=True))
    assert [found.gateway for found in routes.dump(route, AF_INET) if found.prefix == 24] == [other.gateway]
    route.request(routes.add(wanted, append=True))
    assert len([found for found in routes.dump(route, AF_INET) if found.prefix == 24]) == 2


def test_a_gateway_out_of_reach_is_refused_in_the_kernels_words(route: Netlink, oif: int) -> None:
    with pytest.raises(NetlinkError) as caught:
        route.request(routes.add(route_to("192.0.2.0/24", oif=oif, gateway=ip("172.16.0.1"))))
    assert (caught.value.errno, caught.value.text) == (errno.ENETUNREACH, "Nexthop has invalid gateway")


def test_deleting_is_by_what_is_given(route: Netlink, oif: int) -> None:
    cheap = route_to("192.0.2.0/24", oif=oif, gateway=ip("10.1.0.1"), priority=5)
    dear = cheap.replace(gateway=ip("10.1.0.2"), priority=6)
    route.request(routes.add(cheap), routes.add(dear))
    route.request(routes.delete(route_to("192.0.2.0/24", gateway=ip("10.1.0.2"))))
    assert [found.priority for found in routes.dump(route, AF_INET) if found.prefix == 24] == [5]
    with pytest.raises(NetlinkError) as caught:
        route.request(routes.delete(dear))
    assert (caught.value.errno, caught.value.call) == (errno.ESRCH, "route delete")


def test_a_dump_is_of_one_table_or_link_when_asked(route: Netlink, oif: int) -> None:
    other = links.find(route, "b")
    assert other is not None
    route.request(
        routes.add(route_to("10.2.0.0/16", oif=other.index)),
        routes.add(route_to("10.3.0.0/16", oif=oif, table=100000)),
    )
    assert {found.dst for found in routes.dump(route, AF_INET)} == {ip("10.1.0.0"), ip("10.2.0.0")}
    assert {found.dst for found in routes.dump(route, AF_INET, oif=other.index)} == {ip("10.2.0.0")}
    assert {found.dst for found in routes.dump(route, AF_INET, table=100000)} == {ip("10.3.0.0")}
    assert {found.table for found in routes.dump(route, AF_INET, table=0)} == {254, 255, 100000}
    for family in (AF_INET, AF_INET6):
        assert routes.dump(route, family, table=4711) == []
    with pytest.raises(NetlinkError, match="route dump: No such device"):
        routes.dump(route, AF_INET, oif=4711)


def test_a_dumped_route_can_be_put_into_another_table(route: Netlink, oif: int) -> None:
    route.request(
        routes.add(route_to("0.0.0.0/0", oif=oif, gateway=ip("10.1.0.1"), mtu=1400)),
        routes.add(route_to("::/0", oif=oif, gateway=ip("fd00::1"))),
    )
    for family in (AF_INET, AF_INET6):
        mine = [found for found in routes.dump(route, family, oif=oif) if found.type == routes.UNICAST]
        route.request(*[routes.add(found.replace(table=100)) for found in mine], *map(routes.delete, mine))
        assert [found.replace(table=254) for found in routes.dump(route, family, table=100)] == mine
        assert not routes.dump(route, family, oif=oif)


def test_the_way_to_an_address_is_found(route: Netlink, oif: int) -> None:
    route.request(
        routes.add(route_to("0.0.0.0/0", oif=oif, gateway=ip("10.1.0.1"))),
        routes.add(route_to("10.3.0.0/16", type=routes.UNREACHABLE)),
    )
    way = routes.find(route, ip("198.51.100.1"))
    assert way is not None
    assert (way.oif, way.gateway, way.src, way.table) == (oif, ip("10.1.0.1"), ip("10.1.0.5"), routes.TABLE_MAIN)
    near = routes.find(route, ip("fd00::9"), oif=oif, src=ip("fd00::5"))
    assert near is not None
    assert (near.oif, near.gateway) == (oif, None)
    own = routes.find(route, ip("10.1.0.5"))
    assert own is not None
    assert own.type == routes.LOCAL
    assert routes.find(route, ip("10.3.0.1")) is None
    assert routes.find(route, ip("2001:db8::1"), mark=1) is None


def test_what_is_no_address_is_refused_before_the_kernel_sees_it() -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes, not 5"):
        routes.add(Route(dst=b"abcde", prefix=8))


@given(st.binary(max_size=300))
def test_any_payload_is_a_route_or_a_value_error(payload: bytes) -> None:
    try:
        repr(routes.parse(payload))
    except ValueError:
        assert len(payload) < 12


packed = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
word = st.integers(0, 2**32 - 1)


def test_a_match_is_the_route_as_it_was_added(route: Netlink, oif: int) -> None:
    """And not the way to the one address that was asked about."""
    assert routes.match(route, ip("192.0.2.1")) is None
    for text, gateway, asked in (("0.0.0.0/0", "10.1.0.1", "192.0.2.1"), ("::/0", "fd00::1", "2001:db8::1")):
        route.request(routes.add(route_to(text, oif=oif, gateway=ip(gateway), priority=7)))
        found = routes.match(route, ip(asked))
        assert found and (found.dst, found.prefix, found.gateway) == (*to(text), ip(gateway))
        assert (found.oif, found.priority) == (oif, 7)
    several = (Nexthop(oif=oif, gateway=ip("10.1.0.2")), Nexthop(oif=oif, gateway=ip("10.1.0.3")))
    route.request(routes.add(route_to("192.0.2.0/24", nexthops=several)))
    found = routes.match(route, ip("192.0.2.1"))
    assert found and (found.prefix, len(found.nexthops)) == (24, 2)
    route.request(routes.add(route_to("198.51.100.0/24", type=routes.UNREACHABLE)))
    assert routes.match(route, ip("198.51.100.1")) is None


hop = st.builds(
    Nexthop,
    oif=st.integers(0, 2**31 - 1),
    gateway=st.one_of(st.none(), packed),
    weight=st.integers(1, 256),
    flags=st.sampled_from((0, routes.ONLINK)),
)


@given(
    st.builds(
        Route,
        dst=packed,
        prefix=st.integers(1, 128),
        oif=word,
        gateway=st.one_of(st.none(), packed),
        src=st.one_of(st.none(), packed),
        table=word,
        priority=word,
        scope=st.integers(0, 255),
        type=st.integers(0, 255),
        protocol=st.integers(0, 255),
        flags=st.sampled_from((0, routes.ONLINK)),
        mtu=word,
        advmss=word,
        nexthops=st.lists(hop, max_size=4).map(tuple),
    )
)
def test_what_add_writes_parse_reads(route: Route) -> None:
    payload = routes.add(route).payload
    family = bytes((AF_INET if len(route.dst) == 4 else AF_INET6,))
    assert payload[:1] == family
    assert routes.parse(payload) == route
