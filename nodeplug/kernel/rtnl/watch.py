"""Waiting for links and addresses: by the kernel's announcements, never by sleeping, and never without an end.

The `Netns` that a `Netlink` was opened with must still be open: the announcements need a socket there too.
"""

from __future__ import annotations

import errno
import time
from _socket import AF_INET6

from nodeplug.kernel.listener import RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_LINK, Listener
from nodeplug.kernel.netlink import NETLINK_ROUTE
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import TypeVar

    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.addresses import Address
    from nodeplug.kernel.rtnl.links import Link

    T = TypeVar("T")

OPERSTATES = ("unknown", "not present", "down", "lower layer down", "testing", "dormant", "up")
"""In words, by OPER_* value."""


def wait_for_operstate(
    route: Netlink, which: int | str, *, timeout: float, states: tuple[int, ...] = (links.OPER_UP,)
) -> Link:
    """The link once its operational state is one of `states`, after `timeout` seconds at most.

    A veth that was set up is not "up" at once: the kernel follows its carrier a moment later. Raises TimeoutError with
    the state it has instead, and OSError(ENODEV) when the link is not there or goes away.
    """

    def look() -> tuple[Link, bool]:
        link = links.find(route, which)
        if link is None:
            raise OSError(errno.ENODEV, "link wait: No such device", str(which))
        return link, link.operstate in states

    link, done = _wait(route, RTNLGRP_LINK, look, timeout)
    if done:
        return link
    is_now = OPERSTATES[link.operstate] if link.operstate < len(OPERSTATES) else str(link.operstate)
    raise TimeoutError(errno.ETIMEDOUT, f"link wait: still {is_now} after {timeout:g} s", link.name)


def wait_for_addresses(route: Netlink, index: int, *, timeout: float) -> list[Address]:
    """The link's addresses once duplicate address detection is over for all of them, after `timeout` seconds at most.

    Whoever called looks for DADFAILED among their flags. Raises TimeoutError while some are still tentative, and
    OSError(ENODEV) when the link goes away.
    """

    def look() -> tuple[list[Address], bool]:
        found = addresses.dump(route, index=index)
        return found, all(address.settled for address in found)

    found, done = _wait(route, RTNLGRP_IPV6_IFADDR, look, timeout)
    if done:
        return found
    raise TimeoutError(errno.ETIMEDOUT, f"address wait: still tentative after {timeout:g} s", f"link {index}")


def wait_for_local_routes(route: Netlink, index: int, ips: Collection[bytes], *, table: int, timeout: float) -> None:
    """Until `table` has the routes by which the host knows these IPv6 addresses of the link for its own.

    The kernel adds them a moment after the addresses. Raises TimeoutError with how many are lacking.
    """

    def look() -> tuple[int, bool]:
        found = {way.dst for way in routes.dump(route, AF_INET6, table=table, oif=index) if way.prefix == 128}
        lacking = len([ip for ip in ips if ip not in found])
        return lacking, not lacking

    lacking, done = _wait(route, RTNLGRP_IPV6_ROUTE, look, timeout)
    if not done:
        raise TimeoutError(errno.ETIMEDOUT, f"route wait: {lacking} still lacking after {timeout:g} s", f"link {index}")


def _wait(route: Netlink, group: int, look: Callable[[], tuple[T, bool]], timeout: float) -> tuple[T, bool]:
    """What `look` sees once it says that it is done, or in the end."""
    deadline = time.monotonic() + timeout
    seen = look()
    if seen[1]:
        return seen
    with Listener(NETLINK_ROUTE, group, netns=route.netns) as listener:
        while True:
            # The first look in here closes the gap before the subscription; an announcement only says when to look.
            seen = look()
            remaining = deadline - time.monotonic()
            if seen[1] or remaining <= 0:
                return seen
            try:
                listener.receive(remaining)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
