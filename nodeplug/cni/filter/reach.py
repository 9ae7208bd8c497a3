"""What else has to be open for a host port to be reached from the host itself and from the pod.

route_localnet on the host's interface to the pod, or the kernel drops what comes from 127.0.0.1 before it leaves. The
hairpin flag on the pod's bridge port: with bridge-nf-call-iptables set, a connection of the pod to its own host port is
translated while the bridge still has the frame, which then would have to leave by the port it came in by.
"""

from __future__ import annotations

from nodeplug.core.errors import from_os
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import bridges, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Result
    from nodeplug.cni.filter.plan import Share
    from nodeplug.cni.filter.table import Table
    from nodeplug.kernel.rtnl.links import Link

_ON = "1"


def open_way(table: Table, result: Result, share: Share) -> None:
    """Open the way for a share that was added. Raises errors of `nodeplug.core.errors`."""
    try:
        with Netlink(NETLINK_ROUTE) as route:
            for name in _loopback_interfaces(route, result, share):
                setting = _setting(name)
                if sysctl.read(*setting) != _ON:
                    table.ensure_loopback_guard()
                    sysctl.write(_ON, *setting)
            route.request(
                *(bridges.set_port(port.index, hairpin=True) for port in _straight_ports(route, result, share))
            )
    except OSError as error:
        raise from_os(error, "cannot open the way to a host port") from error


def closed(result: Result, share: Share) -> list[str]:
    """What of it is not open, as sentences."""
    try:
        with Netlink(NETLINK_ROUTE) as route:
            found = [
                f"route_localnet of {name} is off, so 127.0.0.1 does not reach the pod"
                for name in _loopback_interfaces(route, result, share)
                if sysctl.read(*_setting(name)) != _ON
            ]
            ports = _straight_ports(route, result, share)
            return found + [f"bridge port {port.name} has no hairpin flag" for port in ports]
    except OSError as error:
        raise from_os(error, "cannot see whether the way to a host port is open") from error


def _setting(name: str) -> tuple[str, ...]:
    return "net", "ipv4", "conf", name, "route_localnet"


def _loopback_interfaces(route: Netlink, result: Result, share: Share) -> list[str]:
    """The host's interfaces to the pod that 127.0.0.1 has to pass: those of the result, and any bridge or veth.

    Not the uplink that the route to a pod on macvlan leads by: the pod does not answer the host there anyway.
    """
    listed = {interface.name for interface in result.interfaces if not interface.sandbox}
    found = []
    for address in share.reached_by_loopback:
        way = routes.find(route, address)
        link = links.find(route, way.oif) if way is not None and way.type == routes.UNICAST and way.oif else None
        if link is not None and (link.name in listed or link.kind in ("bridge", "veth")):
            found.append(link.name)
    return found


def _straight_ports(route: Netlink, result: Result, share: Share) -> list[Link]:
    """The result's bridge ports on the host that do not send back what came in by them."""
    if not share.is_masqueraded:
        return []
    found = []
    for interface in result.interfaces:
        link = links.find(route, interface.name) if interface.name and not interface.sandbox else None
        port = bridges.port_of(link) if link is not None else None
        if link is not None and port is not None and not port.hairpin:
            found.append(link)
    return found
