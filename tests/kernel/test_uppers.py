"""macvlan, ipvlan and vlan links against the kernel, with iproute2 as a second opinion."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from nodeplug.kernel.netlink import Netlink, NetlinkError
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links, uppers, veths
from nodeplug.kernel.rtnl.links import Link
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")
MAC = bytes.fromhex("0a580a010203")


@pytest.fixture
def master(route: Netlink) -> Link:
    """A link that is up."""
    route.request(veths.add("a", "b", up=True, mtu=1400), links.set("b", up=True))
    found = links.find(route, "a")
    assert found is not None
    return found


def shown(space: Space, name: str) -> Any:
    (found,) = space.ip("link", "show", "dev", name)
    return found["linkinfo"]["info_data"], found["mtu"]


@needs("link:macvlan")
@pytest.mark.parametrize("mode", uppers.MACVLAN_MODES)
def test_a_macvlan_is_in_the_mode_asked_for(netns: Space, route: Netlink, master: Link, mode: str) -> None:
    route.request(uppers.add_macvlan("m", master.index, mode))
    data, mtu = shown(netns, "m")
    assert (data["mode"], mtu) == (mode, 1400)
    found = links.find(route, "m")
    assert found and (uppers.macvlan_mode(found), found.parent) == (mode, master.index)
    assert uppers.ipvlan_mode(found) == "" and uppers.vlan_id(found) is None


@needs("link:macvlan")
def test_a_macvlan_appears_in_another_namespace_with_all_it_was_asked_for(
    pod: Space, route: Netlink, pod_route: Netlink, pod_opened: Netns, master: Link
) -> None:
    route.request(
        uppers.add_macvlan("m", master.index, "bridge", mac=MAC, mtu=1300, broadcast_queue=500, netns=pod_opened)
    )
    assert links.find(route, "m") is None
    found = links.find(pod_route, "m")
    assert found and (found.mac, found.mtu, uppers.broadcast_queue(found)) == (MAC, 1300, 500)
    assert shown(pod, "m")[0]["mode"] == "bridge"


@needs("link:ipvlan")
def test_an_ipvlan_is_in_the_mode_asked_for(netns: Space, route: Netlink, master: Link) -> None:
    for mode in uppers.IPVLAN_MODES:
        route.request(uppers.add_ipvlan("i", master.index, mode, mtu=1300))
        data, mtu = shown(netns, "i")
        assert (data["mode"], mtu) == (mode, 1300)
        found = links.find(route, "i")
        assert found and (uppers.ipvlan_mode(found), found.mac) == (mode, master.mac)
        assert uppers.macvlan_mode(found) == "" and uppers.broadcast_queue(found) == 0
        route.request(links.delete("i"))


@needs("link:vlan")
def test_a_vlan_has_its_number_once_on_a_master(netns: Space, route: Netlink, pod_opened: Netns, master: Link) -> None:
    route.request(uppers.add_vlan("v", master.index, 4094, mtu=1300))
    data, mtu = shown(netns, "v")
    assert (data["id"], data["protocol"], mtu) == (4094, "802.1Q", 1300)
    found = links.find(route, "v")
    assert found and uppers.vlan_id(found) == 4094
    with pytest.raises(NetlinkError) as caught:
        route.request(uppers.add_vlan("w", master.index, 4094, netns=pod_opened))
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("kind", ["veth", "bridge", pytest.param("macvlan", marks=needs("link:macvlan"))])
def test_a_trial_of_a_kind_the_kernel_knows_makes_nothing(netns: Space, route: Netlink, kind: str) -> None:
    before = netns.links()
    (refused,) = route.attempt(links.trial(kind))
    assert isinstance(refused, NetlinkError) and refused.errno == errno.EINVAL
    assert netns.links() == before


def test_a_trial_of_a_kind_the_kernel_does_not_know_says_so(route: Netlink) -> None:
    (refused,) = route.attempt(links.trial("nonsense"))
    assert isinstance(refused, NetlinkError) and refused.errno == errno.EOPNOTSUPP
