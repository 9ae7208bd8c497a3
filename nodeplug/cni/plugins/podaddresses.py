"""The addresses of a pod that is to be deleted: what the reference plugins made is found by them."""

from __future__ import annotations

from nodeplug.core.errors import doing
from nodeplug.core.inet import Ip
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import addresses, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Result
    from nodeplug.kernel.netns import Netns


def packed(result: Result | None) -> frozenset[bytes]:
    """Those of a result, if there is one."""
    return frozenset(ip.address.ip.packed for ip in result.ips) if result is not None else frozenset()


def of_interface(netns: Netns | None, ifname: str) -> list[Ip]:
    """Those that the interface has, link-local ones apart; none where it or the namespace is gone."""
    if netns is None:
        return []
    with doing(f"cannot read the addresses of {ifname} in {netns.path}"), Netlink(NETLINK_ROUTE, netns=netns) as pod:
        link = links.find(pod, ifname)
        found = addresses.dump(pod, index=link.index) if link is not None else []
    return [ip for ip in (Ip(packed=each.ip) for each in found) if not ip.is_link_local]
