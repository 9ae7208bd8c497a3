"""bridge's CHECK and STATUS: whether an attachment is as its result says, and whether an ADD could succeed.

Read-only. CHECK is given the result of the whole chain, and leaves alone what plugins behind this one may change.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import files
from nodeplug.core.errors import PermissionRefused, Refused, Unavailable, doing
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import addresses, bridges, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import CheckRequest, Interface, Route, StatusRequest
    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.kernel.rtnl.links import Link

_CAP_NET_ADMIN = 12
_STATUS_BYTES = 64 * 1024
_MEND = "if nothing else repairs it, delete the pod and let it be made again"


def check(request: CheckRequest) -> None:
    """Raise `Refused` for the first thing that is not as it was made."""
    with doing("cannot read the links of host and pod", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        bridge = _bridge(host, request)
        with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
            end = _end(pod, request)
            port = _port(host, end, bridge, request)
            _addresses(pod, end, request)
            _routes(pod, end, request)
        _port_settings(port, request.config)
        _gateways(host, bridge, request)
        if request.config.uses_vlans:
            from nodeplug.cni.plugins.bridge import vlans

            vlans.check_port(host, port.index, request.config)
        if port.name == request.attachment.identity:  # else the reference plugin made it, and its rules
            _filters(request)


def status(request: StatusRequest) -> None:
    """Raise `Unavailable` when no ADD can succeed: the bridge's name is another link's, or nf_tables is lacking."""
    with doing("cannot read the host's links", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        found = links.find(host, request.config.bridge)
        if found is not None and request.config.uses_vlans:
            from nodeplug.cni.plugins.bridge import vlans

            vlans.check_support(host, found)
    if found is not None and found.kind != bridges.KIND:
        raise Unavailable(
            f"{found.name!r} already exists but is not a bridge: it is of kind {found.kind or 'hardware'!r}",
            hint='give another name as "bridge", or take that link away',
        )
    if request.config.ip_masq or request.config.macspoofchk:
        from nodeplug.cni.plugins import masquerade

        masquerade.usable(request)
    _may_change_links()


def _may_change_links() -> None:
    """Raise `PermissionRefused` for a process without the right that every ADD needs; see capabilities(7)."""
    status = files.read_bounded("/proc/thread-self/status", _STATUS_BYTES).decode("ascii", "replace")
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_NET_ADMIN & 1:
            raise PermissionRefused("this process lacks CAP_NET_ADMIN", hint="run the plugin with the runtime's rights")


def _filters(request: CheckRequest) -> None:
    if request.config.ip_masq and request.prev_result.ips:
        from nodeplug.cni.plugins import masquerade

        masquerade.check(request)
    if request.config.macspoofchk:
        from nodeplug.cni.plugins.bridge import spoofing

        spoofing.check(request.attachment)


def _named(request: CheckRequest, name: str, *, inside: bool) -> Interface:
    for interface in request.prev_result.interfaces:
        if interface.name == name and bool(interface.sandbox) == inside:
            return interface
    raise Refused(
        f"prevResult names no interface {name} {'in a sandbox' if inside else 'of the host'}",
        hint="CHECK is given the result of the ADD that this configuration made",
    )


def _bridge(host: Netlink, request: CheckRequest) -> Link:
    config: BridgeConf = request.config
    _named(request, config.bridge, inside=False)
    link = links.find(host, config.bridge)
    if link is None or link.kind != bridges.KIND:
        raise Refused(f"there is no bridge {config.bridge} any more", hint=_MEND)
    if not link.up:
        raise Refused(f"bridge {config.bridge} is down", hint=f"ip link set {config.bridge} up")
    if config.promisc_mode and not link.flags & links.IFF_PROMISC:
        raise Refused(
            f"bridge {config.bridge} is not in promiscuous mode", hint=f"ip link set {config.bridge} promisc on"
        )
    return link


def _end(pod: Netlink, request: CheckRequest) -> Link:
    said = _named(request, request.ifname, inside=True)
    if said.sandbox != request.netns.path:
        raise Refused(
            f"prevResult has {request.ifname} in {said.sandbox}, and CNI_NETNS is {request.netns.path}", hint=_MEND
        )
    link = links.find(pod, request.ifname)
    if link is None or link.kind != hostlink.KIND:
        raise Refused(f"the pod in {request.netns.path} has no veth {request.ifname} any more", hint=_MEND)
    if said.mac and link.mac.hex(":") != said.mac.lower():
        raise Refused(f"{request.ifname} has the MAC address {link.mac.hex(':')}, not {said.mac}", hint=_MEND)
    return link


def _port(host: Netlink, end: Link, bridge: Link, request: CheckRequest) -> Link:
    """The host's end, by our name or, where the reference plugin made it, by the result's."""
    names = [request.attachment.identity]
    names += [found.name for found in request.prev_result.interfaces if not found.sandbox and found.name]
    for name in dict.fromkeys(names):
        link = links.find(host, name)
        if link is None or link.kind != hostlink.KIND or link.parent != end.index or end.parent != link.index:
            continue
        if link.master != bridge.index:
            raise Refused(f"{name}, the host's end of {request.ifname}, is no port of bridge {bridge.name}", hint=_MEND)
        return link
    raise Refused(f"the other end of {request.ifname} is not on this host", hint=_MEND)


def _port_settings(port: Link, config: BridgeConf) -> None:
    """What is asked for is on. More may be: portmap, behind this one, turns hairpin mode on for a pod's own port."""
    found = bridges.port_of(port)
    for wanted, have, what in (
        (config.hairpin_mode, found is not None and found.hairpin, "hairpin mode"),
        (config.port_isolation, found is not None and found.isolated, "port isolation"),
    ):
        if wanted and not have:
            raise Refused(f"{what} of port {port.name} is off", hint=_MEND)


def _addresses(pod: Netlink, end: Link, request: CheckRequest) -> None:
    result = request.prev_result
    inside = {
        n for n, interface in enumerate(result.interfaces) if interface.sandbox and interface.name == request.ifname
    }
    have = {Net(ip=Ip(packed=found.ip), prefix=found.prefix) for found in addresses.dump(pod, index=end.index)}
    for ip in result.ips:
        if ip.interface in inside and ip.address not in have:
            raise Refused(f"{request.ifname} has not the address {ip.address}", hint=_MEND)


def _routes(pod: Netlink, end: Link, request: CheckRequest) -> None:
    """In any table: plugins behind this one move routes, as sbr and vrf do."""
    for family, number in ((4, AF_INET), (6, AF_INET6)):
        wanted = [route for route in request.prev_result.routes if route.dst.family == family]
        have = routes.dump(pod, number, table=0) if wanted else []
        for route in wanted:
            if not any(_matches(route, found) for found in have):
                via = f" via {route.gw}" if route.gw is not None else ""
                raise Refused(f"the pod has not the route {route.dst}{via}", hint=_MEND)


def _matches(route: Route, found: routes.Route) -> bool:
    net = route.dst.network
    if (found.dst, found.prefix) != (net.ip.packed, net.prefix):
        return False
    return route.gw is None or route.gw.packed in (found.gateway, *[hop.gateway for hop in found.nexthops])


def _gateways(host: Netlink, bridge: Link, request: CheckRequest) -> None:
    config: BridgeConf = request.config
    link: Link | None = bridge
    if config.vlan:
        link = links.find(host, f"{bridge.name}.{config.vlan}")
    wanted = [ip for ip in request.prev_result.ips if ip.gateway is not None] if config.gateway else []
    have = {found.ip for found in addresses.dump(host, index=link.index)} if link is not None and wanted else set()
    for ip in wanted:
        if ip.gateway is not None and ip.gateway.packed not in have:
            raise Refused(f"bridge {bridge.name} has not the gateway's address {ip.gateway}", hint=_MEND)
