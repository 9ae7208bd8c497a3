"""The pod's link, as far as an address manager touches it: set up to ask over, and an address that comes or goes.

The first address is given by the plugin that made the link. What is done here is what nobody else does later: a lease
that has ended takes its address with it, and one that was granted anew brings it back.
"""

from __future__ import annotations

import errno

from nodeplug.core.errors import NotFound, Refused, doing
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.ipam.dhcp.lease import Lease
    from nodeplug.core.inet import Ip, Net
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.rtnl.links import Link

_ETHERNET = 6
_PASSING = (links.OPER_UP, links.OPER_UNKNOWN)  # some kinds of link never say
_CARRIER = 2.0  # seconds


def ready(route: Netlink, ifname: str, where: str) -> Link:
    """The link, set up and with a carrier if it gets one soon. Raises `NotFound` where there is none, `Refused` for
    one that is no Ethernet.
    """
    with doing(f"cannot set up {ifname} in {where}"):
        link = links.find(route, ifname)
        if link is None:
            raise NotFound(
                f"there is no interface {ifname} in {where}", hint="the plugin that makes it asks for leases"
            )
        if len(link.mac) != _ETHERNET:
            raise Refused(
                f"{ifname} in {where} is no Ethernet link: its hardware address has {len(link.mac)} bytes",
                hint="dhcp asks over Ethernet; host-local and static do not mind",
            )
        if not link.up:
            route.request(links.set(link.index, up=True))
        if link.operstate in _PASSING:
            return link
        # A bridge passes nothing on before it has seen the carrier: what was said until then would have to be repeated.
        from nodeplug.kernel.rtnl import watch

        try:
            return watch.wait_for_operstate(route, link.index, timeout=_CARRIER, states=_PASSING)
        except TimeoutError:
            return link


def is_deaf(link: Link) -> bool:
    """Whether it hears only what is sent to everybody as long as it has no address.

    A link that shares its parent's hardware address (ipvlan) is told apart by IP addresses.
    """
    return link.kind == "ipvlan"


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
