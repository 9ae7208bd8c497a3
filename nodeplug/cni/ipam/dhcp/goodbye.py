"""Giving a lease back: the address leaves the link, the server hears of it, the file goes. For DEL, GC, and whoever was
granted something in vain.
"""

from __future__ import annotations

from nodeplug.cni.ipam.dhcp import link
from nodeplug.cni.ipam.dhcp.exchange import release
from nodeplug.cni.ipam.dhcp.lease import LOST
from nodeplug.cni.ipam.dhcp.store import Unreadable
from nodeplug.cni.ipam.dhcp.talk import Broadcast
from nodeplug.core.errors import doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.ipam.dhcp.lease import Lease
    from nodeplug.cni.ipam.dhcp.store import Leases
    from nodeplug.kernel.netns import Netns


def give_back(leases: Leases, attachment: Attachment, netns: Netns | None, warn: Callable[[str], None]) -> None:
    """Release the attachment's lease, over its link where there is one, and forget it. A server that is not there does
    not matter: it forgets by itself.
    """
    with leases.lock(attachment):
        try:
            lease = leases.read(attachment)
        except Unreadable as unreadable:
            warn(str(unreadable))
            lease = None
        if lease is not None and netns is not None:
            try:
                farewell(lease, netns)
            except OSError as error:
                warn(f"the server was not told that {lease.address} is free again: {error.strerror}")
        leases.remove(attachment)


def farewell(lease: Lease, netns: Netns) -> None:
    """Take the address from the link, then tell the server; nothing where the link has gone. Raises OSError.

    In that order, and past the routes that went with the address: a server may give it to somebody else at once.
    """
    if lease.state == LOST:
        return
    with Netlink(NETLINK_ROUTE, netns=netns) as route:
        found = links.find(route, lease.ifname)
        if found is None:
            return
        link.take(route, found.index, lease.address)
    if not found.up:
        return
    line = Broadcast(netns, lease.ifname, source=lease.address)
    try:
        line.send_to(lease.server, lease.station, release(lease.client, lease.address, lease.server))
    finally:
        line.close()


def collect(leases: Leases, lease: Lease, warn: Callable[[str], None]) -> None:
    """Give back the lease of a pod that nobody asks for any more, over its link where that is still there."""
    with doing(f"cannot look for the pod of {lease.attachment}"):
        pod = lease.sandbox.enter(lease.ifname)
    if pod is None:
        give_back(leases, lease.attachment, None, warn)
        return
    with pod:
        give_back(leases, lease.attachment, pod.netns, warn)
