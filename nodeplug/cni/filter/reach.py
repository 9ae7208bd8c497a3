"""What else has to be open for a host port to be reached from the host itself and from the pod.

route_localnet on the host's interface to the pod, or the kernel drops what comes from 127.0.0.1 before it leaves. The
hairpin flag on the pod's bridge port: with bridge-nf-call-iptables set, a connection of the pod to its own host port is
translated while the bridge still has the frame, which then would have to leave by the port it came in by.
"""

from __future__ import annotations

from nodeplug.core import company
from nodeplug.core.errors import from_os
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import route
from nodeplug.kernel.rtnl import bridges, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Result
    from nodeplug.cni.filter.plan import Share
    from nodeplug.cni.filter.table import Table
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

_ON = "1"


def open_way(table: Table, result: Result, share: Share) -> None:
    """Open the way for a share that was added. Raises errors of `nodeplug.core.errors`."""
    try:
        with company.present().lend(route) as host:
            named = _named(host, result)
            for name in _loopback_interfaces(host, named, share):
                setting = _setting(name)
                if sysctl.read(*setting) != _ON:
                    table.ensure_loopback_guard()
                    sysctl.write(_ON, *setting)
            host.request(*(bridges.set_port(port.index, hairpin=True) for port in _straight_ports(named, share)))
    except OSError as error:
        raise from_os(error, "cannot open the way to a host port") from error


def closed(result: Result, share: Share) -> list[str]:
    """What of it is not open, as sentences."""
    try:
        with company.present().lend(route) as host:
            named = _named(host, result)
            found = [
                f"route_localnet of {name} is off, so 127.0.0.1 does not reach the pod"
                for name in _loopback_interfaces(host, named, share)
                if sysctl.read(*_setting(name)) != _ON
            ]
            ports = _straight_ports(named, share)
            return found + [f"bridge port {port.name} has no hairpin flag" for port in ports]
    except OSError as error:
        raise from_os(error, "cannot see whether the way to a host port is open") from error


def _named(host: Netlink, result: Result) -> list[Link]:
    """The links on the host that the result names, those that are there."""
    names = [interface.name for interface in result.interfaces if interface.name and not interface.sandbox]
    return [link for link in links.find_each(host, *names) if link is not None]


def _setting(name: str) -> tuple[str, ...]:
    return "net", "ipv4", "conf", name, "route_localnet"


def _loopback_interfaces(host: Netlink, named: list[Link], share: Share) -> list[str]:
    """The host's interfaces to the pod that 127.0.0.1 has to pass: those of the result, and any bridge or veth.

    Not the uplink that the route to a pod on macvlan leads by: the pod does not answer the host there anyway.
    """
    known = {link.index: link for link in named}
    found = []
    for address in share.reached_by_loopback:
        way = routes.find(host, address)
        if way is None or way.type != routes.UNICAST or not way.oif:
            continue
        link = known.get(way.oif) or links.find(host, way.oif)
        if link is not None and (link.index in known or link.kind in ("bridge", "veth")):
            found.append(link.name)
    return found


def _straight_ports(named: list[Link], share: Share) -> list[Link]:
    """The bridge ports among them that do not send back what came in by them."""
    if not share.is_masqueraded:
        return []
    ports = [(link, bridges.port_of(link)) for link in named]
    return [link for link, port in ports if port is not None and not port.hairpin]
