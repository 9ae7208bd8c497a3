"""What CHECK and STATUS look at for every plugin that puts a link into a pod: the link as its result says, the rights.

Read-only. CHECK is given the result of the whole chain, and leaves alone what plugins behind this one may change.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from nodeplug.core import files
from nodeplug.core.errors import PermissionRefused, Refused
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import CheckRequest, Interface, Route
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

MEND = "if nothing else repairs it, delete the pod and let it be made again"

_CAP_NET_ADMIN = 12
_STATUS_BYTES = 64 * 1024


def named(request: CheckRequest, name: str, *, inside: bool) -> Interface:
    """The interface of that name in the result, in the pod or on the host. Raises `Refused`."""
    for interface in request.prev_result.interfaces:
        if interface.name == name and bool(interface.sandbox) == inside:
            return interface
    raise Refused(
        f"prevResult names no interface {name} {'in a sandbox' if inside else 'of the host'}",
        hint="CHECK is given the result of the ADD that this configuration made",
    )


def pods_link(pod: Netlink, request: CheckRequest, kind: str, *, called: str = "") -> Link:
    """The pod's interface, of that kind and with the MAC address of the result. Raises `Refused`."""
    said = named(request, request.ifname, inside=True)
    if said.sandbox != request.netns.path:
        raise Refused(
            f"prevResult has {request.ifname} in {said.sandbox}, and CNI_NETNS is {request.netns.path}", hint=MEND
        )
    link = links.find(pod, request.ifname)
    if link is None or link.kind != kind:
        raise Refused(f"the pod in {request.netns.path} has no {called or kind} {request.ifname} any more", hint=MEND)
    if said.mac and link.mac.hex(":") != said.mac.lower():
        raise Refused(f"{request.ifname} has the MAC address {link.mac.hex(':')}, not {said.mac}", hint=MEND)
    return link


def check_up(link: Link, request: CheckRequest) -> None:
    """Raise `Refused` for a pod's link that is down."""
    if not link.up:
        raise Refused(f"{request.ifname} in {request.netns.path} is down", hint=MEND)


def check_addresses(pod: Netlink, link: Link, request: CheckRequest) -> None:
    """Raise `Refused` for an address of the result that the pod's link has not."""
    result = request.prev_result
    inside = {
        n for n, interface in enumerate(result.interfaces) if interface.sandbox and interface.name == request.ifname
    }
    have = {Net(ip=Ip(packed=found.ip), prefix=found.prefix) for found in addresses.dump(pod, index=link.index)}
    for ip in result.ips:
        if ip.interface in inside and ip.address not in have:
            raise Refused(f"{request.ifname} has not the address {ip.address}", hint=MEND)


def check_routes(pod: Netlink, request: CheckRequest) -> None:
    """Raise `Refused` for a route of the result that the pod has in no table: sbr and vrf, behind this, move them."""
    for family, number in ((4, AF_INET), (6, AF_INET6)):
        wanted = [route for route in request.prev_result.routes if route.dst.family == family]
        have = routes.dump(pod, number, table=0) if wanted else []
        for route in wanted:
            if not any(_matches(route, found) for found in have):
                via = f" via {route.gw}" if route.gw is not None else ""
                raise Refused(f"the pod has not the route {route.dst}{via}", hint=MEND)


def _matches(route: Route, found: routes.Route) -> bool:
    net = route.dst.network
    if (found.dst, found.prefix) != (net.ip.packed, net.prefix):
        return False
    return route.gw is None or route.gw.packed in (found.gateway, *[hop.gateway for hop in found.nexthops])


def check_rights() -> None:
    """Raise `PermissionRefused` for a process without the right that every ADD needs; see capabilities(7)."""
    status = files.read_bounded("/proc/thread-self/status", _STATUS_BYTES).decode("ascii", "replace")
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_NET_ADMIN & 1:
            raise PermissionRefused("this process lacks CAP_NET_ADMIN", hint="run the plugin with the runtime's rights")
