"""ptp's CHECK: whether an attachment is as its result says. Read-only."""

from __future__ import annotations

from nodeplug.cni.plugins import checking, hostlink
from nodeplug.cni.plugins.checking import MEND
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.ptp import plan
from nodeplug.core.errors import Refused, doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import CheckRequest, IpConfig
    from nodeplug.kernel.rtnl.links import Link


def check(request: CheckRequest) -> None:
    """Raise `Refused` for the first thing that is not as it was made."""
    with doing("cannot read the links of host and pod", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
            inner = checking.pods_link(pod, request, hostlink.KIND)
            checking.check_up(inner, request)
            checking.check_addresses(pod, inner, request)
            checking.check_routes(pod, request)
        end = _host_end(host, inner, request)
        _ways(host, end, request)
    if request.config.ip_masq and end.name == request.attachment.identity:  # else the reference plugin's rules do it
        from nodeplug.cni.plugins import masquerade

        masquerade.check(request)


def _host_end(host: Netlink, inner: Link, request: CheckRequest) -> Link:
    """By our name or, where the reference plugin made it, by the result's."""
    names = [request.attachment.identity]
    names += [found.name for found in request.prev_result.interfaces if not found.sandbox and found.name]
    for name in dict.fromkeys(names):
        link = links.find(host, name)
        if link is None or link.kind != hostlink.KIND or link.parent != inner.index or inner.parent != link.index:
            continue
        if not link.up:
            raise Refused(f"{name}, the host's end of {inner.name}, is down", hint=MEND)
        return link
    raise Refused(f"the other end of {inner.name} is not on this host", hint=MEND)


def _ways(host: Netlink, end: Link, request: CheckRequest) -> None:
    """The gateways' addresses on the host's end, and that what is sent to the pod goes there."""
    ips = [ip for ip in request.prev_result.ips if _is_pods(ip, request)]
    have = {address.ip for address in addresses.dump(host, index=end.index)}
    for gateway in plan.gateways(ips):
        if gateway.packed not in have:
            raise Refused(f"{end.name} has not the gateway's address {gateway}", hint=MEND)
    for ip in ips:
        way = routes.find(host, ip.address.ip.packed)
        if way is None or way.oif != end.index:
            raise Refused(f"the host does not reach {ip.address.ip} by {end.name}", hint=MEND)


def _is_pods(ip: IpConfig, request: CheckRequest) -> bool:
    found = request.prev_result.interfaces
    index = ip.interface
    return index is not None and 0 <= index < len(found) and found[index].name == request.ifname
