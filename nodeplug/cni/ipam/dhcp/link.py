"""The pod's link, as far as an address manager touches it: set up to ask over, and an address that comes or goes.

The first address is given by the plugin that made the link. What is done here is what nobody else does later: a lease
that has ended takes its address with it, and one that was granted anew brings it back.
"""

from __future__ import annotations

import errno

from nodeplug.core.errors import NotFound, doing
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.ipam.dhcp.lease import Lease
    from nodeplug.core.inet import Ip, Net
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.rtnl.links import Link

_ETHERNET, _INFINIBAND = 1, 32
_LONGEST_MAC = 16
_WITHOUT_OWN_MAC = "ipvlan"


def ready(route: Netlink, ifname: str, where: str) -> Link:
    """The link, set up. Raises `NotFound` where there is none."""
    with doing(f"cannot set up {ifname} in {where}"):
        link = links.find(route, ifname)
        if link is None:
            raise NotFound(
                f"there is no interface {ifname} in {where}", hint="the plugin that makes it asks for leases"
            )
        if not link.up:
            route.request(links.set(link.index, up=True))
    return link


def hardware(link: Link) -> tuple[int, bytes, bool]:
    """What a server is told of it: its type, its address, and whether answers must go to everybody.

    A link that shares its parent's address (ipvlan) hears nothing that is sent to an IP address it does not have yet;
    one with an address too long for a message (InfiniBand) cannot be named in it (RFC 4390).
    """
    if len(link.mac) > _LONGEST_MAC:
        return _INFINIBAND, b"", True
    return _ETHERNET, link.mac, link.kind == _WITHOUT_OWN_MAC


def take(route: Netlink, index: int, address: Ip) -> bool:
    """Take the address from the link, its routes with it; False when it was not there, or the link was not."""
    try:
        held = [one for one in addresses.dump(route, index=index) if one.ip == address.packed]
        for one in held:
            route.request(addresses.delete(one))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL):
            raise
        return False
    return bool(held)


def give(route: Netlink, link: Link, lease: Lease, net: Net) -> None:
    """Give the link the lease's address and routes; what it has already stays."""
    messages: list[Message] = [addresses.add(_address(link.index, net), replace=True)]
    messages += [
        routes.add(
            routes.Route(
                dst=one.dst.ip.packed,
                prefix=one.dst.prefix,
                oif=link.index,
                gateway=None if one.gw is None else one.gw.packed,
                priority=one.priority,
                scope=one.scope,
                mtu=one.mtu,
            ),
            replace=True,
        )
        for one in lease.routes(link.mtu)
    ]
    for answer in route.attempt(*messages):
        if isinstance(answer, NetlinkError):
            raise answer


def _address(index: int, net: Net) -> addresses.Address:
    broadcast = net.last.to_bytes(4, "big") if net.prefix < 31 else None
    return addresses.Address(index=index, ip=net.ip.packed, prefix=net.prefix, broadcast=broadcast)
