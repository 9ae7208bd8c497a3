"""Links, veths and bridges against the kernel, with iproute2 and pyroute2 as second opinions."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import bridges, links, veths
from nodeplug.kernel.rtnl.links import Link
from tests.kernel.rights import drop_this_threads_capabilities
from tests.needs import needs
from tests.space import Space, in_a_thread

pytestmark = needs("sandbox")

MAC = bytes.fromhex("0a580a010203")


def found(route: Netlink, which: int | str) -> Link:
    link = links.find(route, which)
    assert link is not None
    return link


def test_lo_is_found_by_name_and_by_index(route: Netlink) -> None:
    lo = found(route, "lo")
    assert lo == found(route, 1)
    assert (lo.index, lo.name, lo.mtu, lo.up, lo.mac) == (1, "lo", 65536, True, bytes(6))
    assert lo.flags & links.IFF_LOOPBACK
    assert (lo.kind, lo.master, lo.parent, lo.parent_netnsid, lo.permanent_mac) == ("", 0, 0, None, b"")


def test_an_absent_link_is_none(route: Netlink) -> None:
    assert links.find(route, "absent") is None
    assert links.find(route, 4711) is None
    assert links.find(route, "a-name-longer-than-a-link-can-have") is None
    assert links.find(route, "x" * 300) is None


def test_several_links_are_asked_for_at_once(route: Netlink) -> None:
    assert links.find_each(route, "absent", "lo", "x" * 300, 1) == [None, found(route, "lo"), None, found(route, 1)]
    assert links.find_each(route) == []


@pytest.mark.parametrize("which", [0, -1, "", "a\0b"])
def test_what_names_no_link_is_refused_before_the_kernel_sees_it(route: Netlink, which: int | str) -> None:
    with pytest.raises(ValueError):
        links.find(route, which)


def test_a_bridge_is_added_with_all_it_was_asked_for(netns: Space, route: Netlink) -> None:
    route.request(bridges.add("cni0", up=True, mtu=1400, mac=MAC, multicast_snooping=False, txqlen=77))
    (seen,) = netns.ip("link", "show", "cni0")
    assert (seen["mtu"], seen["address"], seen["txqlen"]) == (1400, "0a:58:0a:01:02:03", 77)
    assert "UP" in seen["flags"]
    link = found(route, "cni0")
    assert (link.kind, link.mtu, link.mac, link.up, link.txqlen) == ("bridge", 1400, MAC, True, 77)
    bridge = bridges.bridge_of(link)
    assert bridge is not None
    assert not bridge.multicast_snooping
    assert not bridge.vlan_filtering
    assert not bridge.stp
    assert bridges.port_of(link) is None
    assert bridges.bridge_of(found(route, "lo")) is None


def test_a_bridge_setting_changes_later(netns: Space, route: Netlink) -> None:
    route.request(bridges.add("cni0"), bridges.set("cni0", multicast_snooping=False))
    assert netns.ip("link", "show", "cni0")[0]["linkinfo"]["info_data"]["mcast_snooping"] == 0


def test_adding_a_name_twice_names_the_call_and_the_link(route: Netlink) -> None:
    route.request(bridges.add("cni0"))
    with pytest.raises(NetlinkError) as caught:
        route.request(bridges.add("cni0"))
    assert (caught.value.errno, caught.value.call, caught.value.subject) == (errno.EEXIST, "bridge add", "cni0")
    assert str(caught.value) == "[Errno 17] bridge add: File exists: 'cni0'"


def test_a_veth_is_added_with_its_peer_straight_in_another_namespace(
    netns: Space, route: Netlink, pod: Space, pod_opened: Netns, pod_route: Netlink
) -> None:
    route.request(bridges.add("cni0", up=True))
    bridge = found(route, "cni0")
    _, answer = route.request(
        veths.add(
            "npabc",
            "eth0",
            peer_netns=pod_opened,
            up=True,
            mtu=1420,
            master=bridge.index,
            group=4711,
            peer_mac=MAC,
            peer_txqlen=99,
        ),
        links.query("npabc"),
    )
    assert answer is not None
    host = links.parse(answer)
    inner = found(pod_route, "eth0")
    assert host.kind == inner.kind == "veth"
    assert (host.mtu, host.master, host.group, host.up) == (1420, bridge.index, 4711, True)
    assert (inner.mac, inner.mtu, inner.txqlen, inner.up) == (MAC, 1420, 99, False)
    assert (host.parent, inner.parent) == (inner.index, host.index)
    assert host.parent_netnsid is not None
    assert netns.links() == {"lo", "cni0", "npabc"}
    assert pod.links() == {"lo", "eth0"}


def test_a_veth_whose_inner_name_is_taken_leaves_nothing_outside(
    netns: Space, route: Netlink, pod_opened: Netns, pod_route: Netlink
) -> None:
    pod_route.request(bridges.add("eth0"))
    with pytest.raises(NetlinkError, match="npabc with eth0 in /run/netns/"):
        route.request(veths.add("npabc", "eth0", peer_netns=pod_opened))
    assert netns.links() == {"lo"}


def test_both_ends_may_be_here_with_their_own_mtu(route: Netlink) -> None:
    route.request(veths.add("a", "b", mtu=1400, mac=MAC, txqlen=5, peer_mtu=1300))
    a, b = found(route, "a"), found(route, "b")
    assert (a.mtu, a.mac, a.txqlen, a.parent, a.parent_netnsid) == (1400, MAC, 5, b.index, None)
    assert b.mtu == 1300


def test_each_end_of_a_veth_has_one_queue_whatever_the_number_of_cpus(
    netns: Space, route: Netlink, pod: Space, pod_opened: Netns
) -> None:
    route.request(veths.add("npabc", "eth0", peer_netns=pod_opened))
    for end in (netns.ip("-d", "link", "show", "npabc")[0], pod.ip("-d", "link", "show", "eth0")[0]):
        assert (end["num_tx_queues"], end["num_rx_queues"]) == (1, 1)


def test_what_is_asked_for_alone_is_read_and_the_index_too(route: Netlink) -> None:
    route.request(bridges.add("cni0", up=True, mac=MAC))
    (answer,) = route.request(links.query("cni0"))
    whole, part = links.parse(answer or b""), links.parse(answer or b"", "mac", "operstate")
    assert (part.index, part.flags, part.mac, part.operstate) == (whole.index, whole.flags, MAC, whole.operstate)
    assert (whole.kind, part.kind) == ("bridge", "")
    assert links.parse(answer or b"", "alias", "mac") == whole  # it has no alias, so all was read


def test_deleting_one_end_takes_the_other(netns: Space, route: Netlink, pod: Space, pod_opened: Netns) -> None:
    route.request(veths.add("npabc", "eth0", peer_netns=pod_opened))
    route.request(links.delete("npabc"))
    assert pod.links() == netns.links() == {"lo"}


def test_deleting_an_absent_link_is_a_known_error(route: Netlink) -> None:
    for which in ("absent", 4711, "a-name-longer-than-a-link-can-have"):
        with pytest.raises(NetlinkError, match=f"link delete: No such device: '{which}'") as caught:
            route.request(links.delete(which))
        assert caught.value.errno == errno.ENODEV


def test_every_setting_of_a_link_changes_and_changes_back(netns: Space, route: Netlink) -> None:
    route.request(bridges.add("cni0"), veths.add("a", "b"))
    index, bridge = found(route, "a").index, found(route, "cni0").index
    route.request(
        links.set(
            index,
            name="c",
            up=True,
            promisc=True,
            allmulti=True,
            mtu=1300,
            mac=MAC,
            master=bridge,
            group=12,
            alias="pod ä",
            txqlen=3,
        )
    )
    link = found(route, "c")
    assert (link.index, link.mtu, link.mac, link.master, link.group) == (index, 1300, MAC, bridge, 12)
    assert (link.alias, link.txqlen, link.up, link.port_kind) == ("pod ä", 3, True, "bridge")
    assert link.flags & links.IFF_PROMISC
    assert link.flags & links.IFF_ALLMULTI
    assert link.promiscuity == 2  # the bridge holds it too
    (seen,) = netns.ip("link", "show", "c")
    assert (seen["ifalias"], seen["group"], seen["master"]) == ("pod ä", "12", "cni0")
    route.request(links.set("c", up=False, promisc=False, allmulti=False, master=0, alias="", group=0))
    link = found(route, "c")
    assert (link.master, link.alias, link.up, link.group, link.promiscuity) == (0, "", False, 0, 0)


def test_an_alias_is_ignored_at_birth_so_add_does_not_take_one(netns: Space) -> None:
    netns.run("ip", "link", "add", "name", "a", "alias", "lost", "type", "bridge")
    assert "ifalias" not in netns.ip("link", "show", "a")[0]
    with pytest.raises(TypeError):
        links.add("a", "bridge", alias="lost")  # type: ignore[call-arg]  # that is the test


def test_a_link_moves_to_another_namespace_and_takes_a_new_name_on_the_way(
    netns: Space, route: Netlink, pod: Space, pod_opened: Netns, pod_route: Netlink
) -> None:
    route.request(veths.add("a", "b"))
    route.request(links.set(found(route, "b").index, name="eth0", netns=pod_opened))
    assert netns.links() == {"lo", "a"}
    assert pod.links() == {"lo", "eth0"}
    assert found(pod_route, "eth0").parent == found(route, "a").index


def test_renaming_by_name_is_refused_because_the_message_has_one_name() -> None:
    with pytest.raises(ValueError, match="renaming needs its index"):
        links.set("a", name="b")


def test_an_alternative_name_finds_the_link(netns: Space, route: Netlink) -> None:
    long = "a-name-longer-than-a-link-can-have"
    netns.run("ip", "link", "property", "add", "dev", "lo", "altname", long, "altname", "short").ok()
    assert found(route, long) == found(route, "short") == found(route, "lo")
    assert set(found(route, 1).altnames) == {long, "short"}


def test_a_group_is_deleted_whole_and_nothing_else(netns: Space, route: Netlink) -> None:
    route.request(
        *[veths.add(f"in{n}", f"peer{n}", group=7) for n in range(20)],
        veths.add("out", "outer", group=8),
    )
    assert len(links.dump(route)) == 43
    route.request(links.delete_group(7))
    assert netns.links() == {"lo", "out", "outer"}
    with pytest.raises(NetlinkError, match="group 7"):
        route.request(links.delete_group(7))
    with pytest.raises(ValueError):
        links.delete_group(0)


def test_two_hundred_links_are_dumped_and_filtered_by_master_and_kind(netns: Space, route: Netlink) -> None:
    route.request(bridges.add("cni0"), bridges.add("cni1"))
    one, two = found(route, "cni0").index, found(route, "cni1").index
    route.request(*[veths.add(f"v{n}", f"p{n}", master=one if n % 2 else two) for n in range(100)])
    everything = links.dump(route)
    assert {link.name for link in everything} == netns.links()
    assert len(everything) == 203
    assert {link.name for link in links.dump(route, master=one)} == {f"v{n}" for n in range(1, 100, 2)}
    assert {link.name for link in links.dump(route, kind="bridge")} == {"cni0", "cni1"}
    assert links.dump(route, master=one, kind="bridge") == []
    by_name = {link.name: link for link in everything}
    for seen in netns.call(pyroute2_links):
        link = by_name[seen.get("IFLA_IFNAME")]
        assert link.index == seen["index"]
        assert link.flags == seen["flags"]
        assert link.mac.hex(":") == seen.get("IFLA_ADDRESS")
        assert link.mtu == seen.get("IFLA_MTU")
        assert link.master == (seen.get("IFLA_MASTER") or 0)
        assert link.parent == (seen.get("IFLA_LINK") or 0)
        assert link.kind == (seen.get(("IFLA_LINKINFO", "IFLA_INFO_KIND")) or "")


def pyroute2_links() -> list[dict]:  # type: ignore[type-arg]  # pyroute2's messages are dicts of anything
    with IPRoute() as ip:
        return list(ip.get_links())


def test_port_flags_are_set_in_the_request_that_makes_the_port(netns: Space, route: Netlink) -> None:
    route.request(bridges.add("cni0"))
    route.request(
        veths.add("a", "b", master=found(route, "cni0").index),
        bridges.set_port(
            "a", hairpin=True, isolated=True, learning=False, flood_multicast=False, neighbour_suppression=True
        ),
    )
    port = bridges.port_of(found(route, "a"))
    assert port is not None
    assert (port.hairpin, port.isolated, port.learning) == (True, True, False)
    assert (port.flood_unicast, port.flood_multicast, port.flood_broadcast) == (True, False, True)
    assert (port.neighbour_suppression, port.guard, port.state) == (True, False, bridges.STATE_DISABLED)
    shown = netns.ip("link", "show", "a")[0]["linkinfo"]["info_slave_data"]
    assert (shown["hairpin"], shown["isolated"], shown["learning"]) == (True, True, False)
    route.request(bridges.set_port("a", hairpin=False, isolated=False))
    port = bridges.port_of(found(route, "a"))
    assert port is not None
    assert (port.hairpin, port.isolated, port.learning) == (False, False, False)


def test_port_flags_of_a_link_that_is_no_port_are_refused(route: Netlink) -> None:
    with pytest.raises(NetlinkError, match=r"bridge port set: Operation not supported.*'lo'"):
        route.request(bridges.set_port("lo", hairpin=True))


def test_a_bridge_with_a_given_mac_keeps_it_while_ports_come_and_go(route: Netlink) -> None:
    route.request(bridges.add("kept", mac=MAC), bridges.add("free"))
    kept, free = found(route, "kept"), found(route, "free")
    low = bytes.fromhex("020000000001")
    route.request(
        veths.add("a", "a1", mac=low, master=kept.index),
        veths.add("b", "b1", mac=low, master=free.index),
    )
    assert found(route, "kept").mac == MAC
    assert found(route, "free").mac == low != free.mac


def test_a_batch_that_fails_in_the_middle_does_the_rest_and_says_which(netns: Space, route: Netlink) -> None:
    messages = [bridges.add(name) for name in ("a", "b", "a", "c", "lo")]
    with pytest.raises(NetlinkError) as caught:
        route.request(*messages)
    assert (caught.value.index, caught.value.subject) == (2, "a")
    assert netns.links() == {"lo", "a", "b", "c"}
    outcome = route.attempt(*[links.delete(name) for name in ("a", "absent", "b")])
    assert [item if item is None else item.errno for item in outcome] == [None, errno.ENODEV, None]  # type: ignore[union-attr]  # no payload


def test_the_kernels_own_words_are_in_the_error(route: Netlink) -> None:
    route.request(veths.add("a", "b"))
    with pytest.raises(NetlinkError) as caught:
        route.request(links.set("a", mtu=70000))
    assert caught.value.text == "mtu greater than device maximum"
    assert "mtu greater than device maximum" in str(caught.value)


def test_without_the_right_the_error_names_the_call(opened: Netns) -> None:
    def powerless() -> None:
        with Netlink(NETLINK_ROUTE, netns=opened) as route:
            drop_this_threads_capabilities()
            assert found(route, "lo").index == 1
            with pytest.raises(NetlinkError, match="bridge add: Operation not permitted: 'cni0'") as caught:
                route.request(bridges.add("cni0"))
            assert caught.value.errno == errno.EPERM

    in_a_thread(powerless)


@given(st.binary(max_size=300))
def test_any_payload_is_a_link_or_a_value_error(payload: bytes) -> None:
    try:
        link = links.parse(payload)
    except ValueError:
        assert len(payload) < 16
    else:
        bridges.port_of(link)
        bridges.bridge_of(link)
        repr(link)
