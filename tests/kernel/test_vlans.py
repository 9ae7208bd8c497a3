"""VLANs of bridge ports. Most of it needs a kernel with VLAN filtering and runs in the emulated machine."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel.netlink import Netlink, NetlinkError
from nodeplug.kernel.rtnl import bridges, links, veths, vlans
from nodeplug.kernel.rtnl.vlans import Vlans
from tests.needs import missing, needs
from tests.space import Space

pytestmark = needs("sandbox")


def one(vid: int, **settings: bool) -> Vlans:
    return Vlans(first=vid, last=vid, **settings)


@pytest.fixture
def port(route: Netlink) -> tuple[int, int]:
    """(bridge, port), the bridge filtering by VLAN and giving none by itself."""
    route.request(bridges.add("cni0", vlan_filtering=True, vlan_default_pvid=0))
    bridge = links.find(route, "cni0")
    assert bridge is not None
    route.request(veths.add("a", "b", master=bridge.index))
    link = links.find(route, "a")
    assert link is not None
    return bridge.index, link.index


@needs("vlan-filtering")
def test_a_port_carries_what_it_is_given(netns: Space, route: Netlink, port: tuple[int, int]) -> None:
    _bridge, index = port
    wanted = [one(100, pvid=True, untagged=True), Vlans(first=200, last=210), Vlans(first=300, last=301, untagged=True)]
    route.request(*[vlans.add(index, item) for item in wanted])
    assert vlans.dump(route, index) == wanted
    shown = netns.run("bridge", "-j", "vlan", "show", "dev", "a").ok().json()[0]["vlans"]
    assert {entry["vlan"]: set(entry.get("flags", ())) for entry in shown} == {
        100: {"PVID", "Egress Untagged"},
        **{vid: set() for vid in range(200, 211)},
        **{vid: {"Egress Untagged"} for vid in (300, 301)},
    }
    route.request(vlans.delete(index, Vlans(first=205, last=206)), vlans.delete(index, one(100)))
    assert vlans.dump(route, index) == [Vlans(first=200, last=204), Vlans(first=207, last=210), wanted[2]]


@needs("vlan-filtering")
def test_a_bridge_takes_part_itself(route: Netlink, port: tuple[int, int]) -> None:
    bridge, _index = port
    route.request(vlans.add(bridge, one(100), to_bridge=True))
    assert vlans.dump(route, bridge) == [one(100)]
    route.request(vlans.delete(bridge, one(100), to_bridge=True))
    assert vlans.dump(route, bridge) == []


@needs("vlan-filtering")
def test_the_bridge_tells_its_settings_and_changes_them(route: Netlink, port: tuple[int, int]) -> None:
    def told() -> tuple[bool, int]:
        link = links.find(route, "cni0")
        assert link is not None
        bridge = bridges.bridge_of(link)
        assert bridge is not None
        return bridge.vlan_filtering, bridge.vlan_default_pvid

    assert told() == (True, 0)
    route.request(bridges.set("cni0", vlan_filtering=False, vlan_default_pvid=7))
    assert told() == (False, 7)


def test_a_kernel_without_vlan_filtering_says_so(netns: Space, route: Netlink) -> None:
    if not missing("vlan-filtering"):
        pytest.skip("this kernel has VLAN filtering")
    with pytest.raises(NetlinkError, match=r"bridge add: Operation not supported.*'cni0'"):
        route.request(bridges.add("cni0", vlan_filtering=True))
    assert netns.links() == {"lo"}
    route.request(bridges.add("cni0"))
    bridge = links.find(route, "cni0")
    assert bridge is not None
    route.request(veths.add("a", "b", master=bridge.index))
    link = links.find(route, "a")
    assert link is not None
    with pytest.raises(NetlinkError) as caught:
        route.request(vlans.add(link.index, one(100)))
    assert (caught.value.errno, caught.value.subject) == (errno.EOPNOTSUPP, f"100 on link {link.index}")
    with pytest.raises(NetlinkError) as caught:
        vlans.dump(route, link.index)
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(("first", "last"), [(0, 0), (4095, 4095), (1, 4095), (20, 10), (-1, 5)])
def test_vlans_out_of_bounds_are_refused_before_the_kernel_sees_them(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="they go from 1 to 4094"):
        vlans.add(7, Vlans(first=first, last=last))


@given(st.binary(max_size=200))
def test_any_payload_is_vlans_or_a_value_error(payload: bytes) -> None:
    try:
        repr(vlans.parse(payload))
    except ValueError:
        assert len(payload) < 8
