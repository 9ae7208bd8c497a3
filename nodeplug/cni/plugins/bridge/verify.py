"""bridge's CHECK and STATUS: whether an attachment is as its result says, and whether an ADD could succeed.

Read-only. CHECK is given the result of the whole chain, and leaves alone what plugins behind this one may change.
"""

from __future__ import annotations

from nodeplug.cni.plugins import checking, hostlink
from nodeplug.cni.plugins.checking import MEND
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import Refused, Unavailable, doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import addresses, bridges, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import CheckRequest, StatusRequest
    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.kernel.rtnl.links import Link


def check(request: CheckRequest) -> None:
    """Raise `Refused` for the first thing that is not as it was made."""
    with doing("cannot read the links of host and pod", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        bridge = _bridge(host, request)
        with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
            end = checking.pods_link(pod, request, hostlink.KIND)
            port = _port(host, end, bridge, request)
            checking.check_addresses(pod, end, request)
            checking.check_routes(pod, request)
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
    checking.check_rights()


def _filters(request: CheckRequest) -> None:
    if request.config.ip_masq and request.prev_result.ips:
        from nodeplug.cni.plugins import masquerade

        masquerade.check(request)
    if request.config.macspoofchk:
        from nodeplug.cni.plugins.bridge import spoofing

        spoofing.check(request.attachment)


def _bridge(host: Netlink, request: CheckRequest) -> Link:
    config: BridgeConf = request.config
    checking.named(request, config.bridge, inside=False)
    link = links.find(host, config.bridge)
    if link is None or link.kind != bridges.KIND:
        raise Refused(f"there is no bridge {config.bridge} any more", hint=MEND)
    if not link.up:
        raise Refused(f"bridge {config.bridge} is down", hint=f"ip link set {config.bridge} up")
    if config.promisc_mode and not link.flags & links.IFF_PROMISC:
        raise Refused(
            f"bridge {config.bridge} is not in promiscuous mode", hint=f"ip link set {config.bridge} promisc on"
        )
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
            raise Refused(f"{name}, the host's end of {request.ifname}, is no port of bridge {bridge.name}", hint=MEND)
        return link
    raise Refused(f"the other end of {request.ifname} is not on this host", hint=MEND)


def _port_settings(port: Link, config: BridgeConf) -> None:
    """What is asked for is on. More may be: portmap, behind this one, turns hairpin mode on for a pod's own port."""
    found = bridges.port_of(port)
    for wanted, have, what in (
        (config.hairpin_mode, found is not None and found.hairpin, "hairpin mode"),
        (config.port_isolation, found is not None and found.isolated, "port isolation"),
    ):
        if wanted and not have:
            raise Refused(f"{what} of port {port.name} is off", hint=MEND)


def _gateways(host: Netlink, bridge: Link, request: CheckRequest) -> None:
    config: BridgeConf = request.config
    link: Link | None = bridge
    if config.vlan:
        link = links.find(host, f"{bridge.name}.{config.vlan}")
    wanted = [ip for ip in request.prev_result.ips if ip.gateway is not None] if config.gateway else []
    have = {found.ip for found in addresses.dump(host, index=link.index)} if link is not None and wanted else set()
    for ip in wanted:
        if ip.gateway is not None and ip.gateway.packed not in have:
            raise Refused(f"bridge {bridge.name} has not the gateway's address {ip.gateway}", hint=MEND)
