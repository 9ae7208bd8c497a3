"""Joining a VRF without losing what the interface has.

The kernel sets a link down and up when its master changes. Its direct routes follow into the VRF's table; routes by a
gateway are lost, and IPv6 addresses are, unless keep_addr_on_down is set.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from nodeplug.kernel.rtnl import addresses, links, routes, watch
from nodeplug.kernel.rtnl.addresses import DADFAILED, NODAD, PERMANENT, SCOPE_UNIVERSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.core.undo import Undo
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.addresses import Address
    from nodeplug.kernel.rtnl.links import Link
    from nodeplug.kernel.rtnl.routes import Route

_ALL_TABLES = 0
_WITHIN = 2.5
"""Seconds; it takes a millisecond where the kernel is not busy."""


def join(pod: Netlink, link: Link, vrf: Link, table: int, undo: Undo) -> None:
    """Make the VRF the link's master, with its addresses and routes; those of the main table then are in `table`.

    `undo` puts it back as it was.
    """
    held = _global_addresses(pod, link)
    ways = _routes(pod, link)
    undo.push(lambda: _settle(pod, link, held, [(way, way.table) for way in ways]))
    undo.push(lambda: pod.attempt(links.set(link.index, master=0)))
    pod.request(links.set(link.index, master=vrf.index))
    _settle(pod, link, held, [(way, table if way.table == routes.TABLE_MAIN else way.table) for way in ways])
    if held:
        watch.wait_for_local_routes(pod, link.index, [address.ip for address in held], table=table, timeout=_WITHIN)


def _settle(pod: Netlink, link: Link, held: Iterable[Address], ways: Iterable[tuple[Route, int]]) -> None:
    """Give the link the addresses it has lost, then the routes, which need them."""
    now = {address.ip for address in _global_addresses(pod, link)}
    messages = [
        # They were in use a moment ago: nobody else has them, and waiting to see would cost a second or two.
        addresses.add(address.replace(flags=address.flags & addresses.NOPREFIXROUTE | NODAD))
        for address in held
        if address.ip not in now
    ]
    messages += [
        routes.add(way.replace(table=table, flags=way.flags & routes.ONLINK), replace=True) for way, table in ways
    ]
    if messages:
        pod.request(*messages)


def _global_addresses(pod: Netlink, link: Link) -> list[Address]:
    """The link's IPv6 addresses that somebody gave it; the kernel makes link-local ones, and routers' ones, anew."""
    return [
        address
        for address in addresses.dump(pod, index=link.index, family=AF_INET6)
        if address.scope == SCOPE_UNIVERSE and address.flags & PERMANENT and not address.flags & DADFAILED
    ]


def _routes(pod: Netlink, link: Link) -> list[Route]:
    """The routes by this link that nobody adds anew by himself: all but the kernel's own, direct ones before those by
    a gateway, which is looked up in them.
    """
    found = [
        way for family in (AF_INET, AF_INET6) for way in routes.dump(pod, family, table=_ALL_TABLES, oif=link.index)
    ]
    kept = [way for way in found if way.protocol != routes.BY_KERNEL and way.table != routes.TABLE_LOCAL]
    return sorted(kept, key=lambda way: way.gateway is not None or bool(way.nexthops))
