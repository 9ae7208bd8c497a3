"""Waiting by announcements, with a second socket that makes the changes."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from nodeplug.core.inet import Ip
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel import sysctl
from nodeplug.kernel.listener import RTNLGRP_LINK, Listener
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import addresses, bridges, links, veths, watch
from nodeplug.kernel.rtnl.addresses import Address
from tests.needs import needs

pytestmark = needs("sandbox")

LONG = 600.0
"""Seconds: a wait that hears of no change outlasts what a test may take, and so fails."""


@contextmanager
def meanwhile(change: Callable[[], object]) -> Iterator[None]:
    """Make the change in another thread, some time after the body has begun."""
    thread = threading.Timer(0.05, change)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def find(route: Netlink, name: str) -> links.Link:
    link = links.find(route, name)
    assert link is not None
    return link


def test_a_link_comes_up(route: Netlink, opened: Netns) -> None:
    route.request(veths.add("a", "b", up=True))
    with Netlink(NETLINK_ROUTE, netns=opened) as other, meanwhile(lambda: other.request(links.set("b", up=True))):
        link = watch.wait_for_operstate(route, "a", timeout=LONG)
    assert (link.name, link.operstate) == ("a", links.OPER_UP)


def test_a_link_that_is_up_needs_no_wait(route: Netlink) -> None:
    assert watch.wait_for_operstate(route, 1, timeout=0, states=(links.OPER_UNKNOWN,)).name == "lo"


def test_a_link_that_stays_down_ends_the_wait_and_says_what_it_is(route: Netlink) -> None:
    route.request(veths.add("a", "b", up=True))
    watch.wait_for_operstate(route, "a", timeout=LONG, states=(links.OPER_LOWERLAYERDOWN,))
    with pytest.raises(TimeoutError, match=r"link wait: still lower layer down after 0.05 s.*'a'"):
        watch.wait_for_operstate(route, "a", timeout=0.05)


def test_a_link_that_is_absent_or_goes_away_ends_the_wait(route: Netlink, opened: Netns) -> None:
    with pytest.raises(OSError, match=r"link wait: No such device: 'absent'") as caught:
        watch.wait_for_operstate(route, "absent", timeout=LONG)
    assert caught.value.errno == errno.ENODEV
    route.request(veths.add("a", "b"))
    with (
        Netlink(NETLINK_ROUTE, netns=opened) as other,
        meanwhile(lambda: other.request(links.delete("a"))),
        pytest.raises(OSError, match=r"link wait: No such device"),
    ):
        watch.wait_for_operstate(route, "a", timeout=LONG)


def test_a_bridge_port_that_leaves_its_bridge_is_no_link_that_goes_away(route: Netlink, opened: Netns) -> None:
    route.request(bridges.add("cni0", up=True), veths.add("a", "b", up=True))
    route.request(links.set("a", master=find(route, "cni0").index))

    def change() -> None:
        with Netlink(NETLINK_ROUTE, netns=opened) as other:
            other.request(links.set("a", master=0), links.set("b", up=True))

    with meanwhile(change):
        assert watch.wait_for_operstate(route, "a", timeout=LONG).master == 0


def test_an_ipv6_address_settles_and_a_duplicate_is_told(opened: Netns, route: Netlink) -> None:
    with namespaces.entered(opened):
        for name in ("all", "default"):
            sysctl.write("1", "net", "ipv6", "conf", name, "accept_dad")
    route.request(veths.add("a", "b", up=True), links.set("b", up=True))
    a, b = watch.wait_for_operstate(route, "a", timeout=LONG), watch.wait_for_operstate(route, "b", timeout=LONG)
    fine, taken = Ip.parse("fd00::1").packed, Ip.parse("fd00::2").packed
    route.request(
        addresses.add(Address(index=b.index, ip=taken, prefix=64, flags=addresses.NODAD)),
        addresses.add(Address(index=a.index, ip=fine, prefix=64)),
        addresses.add(Address(index=a.index, ip=taken, prefix=64)),
    )
    with pytest.raises(TimeoutError, match=f"address wait: still tentative after 0 s.*'link {a.index}'"):
        watch.wait_for_addresses(route, a.index, timeout=0)
    settled = {address.ip: address for address in watch.wait_for_addresses(route, a.index, timeout=LONG)}
    assert not settled[fine].flags & (addresses.TENTATIVE | addresses.DADFAILED)
    assert settled[taken].flags & addresses.DADFAILED


def test_a_listener_hears_of_its_namespace_only(opened: Netns, route: Netlink, pod_route: Netlink) -> None:
    with Listener(NETLINK_ROUTE, RTNLGRP_LINK, netns=opened) as listener:
        pod_route.request(bridges.add("elsewhere"))
        assert listener.receive(0) == []
        assert select.select([listener], [], [], 0)[0] == []
        route.request(bridges.add("here"))
        assert select.select([listener], [], [], 5)[0] == [listener]
        heard = [links.parse(payload) for type, payload in listener.receive(5) if type == links.RTM_NEWLINK]
        assert {link.name for link in heard} == {"here"}


def test_a_listener_says_when_announcements_were_lost_and_goes_on(opened: Netns, route: Netlink) -> None:
    with Listener(NETLINK_ROUTE, RTNLGRP_LINK, netns=opened) as listener:
        route.request(bridges.add("cni0", up=True))  # of links that are down less is announced
        route.request(*[links.set("cni0", alias=f"{n}") for n in range(600)])
        with pytest.raises(OSError, match="netlink announcements were lost") as caught:
            while listener.receive(0):
                pass
        assert caught.value.errno == errno.ENOBUFS
        while listener.receive(0):
            pass
        route.request(links.delete("cni0"))
        assert listener.receive(5)
