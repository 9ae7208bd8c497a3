"""What ptp makes of an address manager's answer: the pod's addresses and routes, the host's, the result. Pure.

The pod has its address with the prefix length of its network, but no neighbour in it: all it sends goes to the gateway,
which is the host's end of the link, whatever the network the gateway's address is of.
"""

from __future__ import annotations

from nodeplug.cni.contract import Interface, Result
from nodeplug.cni.plugins import addressing
from nodeplug.core import inet
from nodeplug.core.errors import ConfigInvalid
from nodeplug.kernel.rtnl import addresses, routes
from nodeplug.kernel.rtnl.addresses import NODAD, NOPREFIXROUTE, Address
from nodeplug.kernel.rtnl.routes import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.cni.contract import AddRequest, IpConfig
    from nodeplug.cni.plugins.ptp.config import PtpConf
    from nodeplug.core.inet import Ip, Net
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

_POD = 1
"""Index of the pod's interface in a result: the host's end is before it."""


def planned(request: AddRequest, host_end: str, given: Result) -> Result:
    """The result, MAC addresses apart. Raises `ConfigInvalid` for an address without a gateway that can be one."""
    config: PtpConf = request.config
    for ip in given.ips:
        addressing.check_mtu(ip.address, config.mtu)
        if ip.gateway is None or ip.gateway == ip.address.ip:
            raise ConfigInvalid(
                f"{ip.gateway or 'nothing'} cannot be the gateway of {ip.address}, and ptp reaches everything by it",
                hint="the address manager must give a gateway that is not the pod's own address",
            )
    return Result(
        interfaces=(Interface(name=host_end), Interface(name=request.ifname, sandbox=request.netns.path)),
        ips=tuple([ip.replace(interface=_POD) for ip in given.ips]),
        routes=given.routes,
        dns=given.dns if config.dns is None else config.dns,
    )


def with_macs(result: Result, host_end: Link, pods_end: Link) -> Result:
    """The result with the MAC addresses of both ends."""
    ends = zip(result.interfaces, (host_end, pods_end), strict=True)
    return result.replace(interfaces=tuple([interface.replace(mac=link.mac.hex(":")) for interface, link in ends]))


def gateways(ips: Iterable[IpConfig]) -> list[Ip]:
    """Each once."""
    return list(dict.fromkeys([ip.gateway for ip in ips if ip.gateway is not None]))


def pods_addresses(result: Result, index: int) -> list[Message]:
    """The pod's addresses, without the route to their network that the kernel would add."""
    return [
        addresses.add(
            Address(
                index=index,
                ip=ip.address.ip.packed,
                prefix=ip.address.prefix,
                flags=NOPREFIXROUTE | (0 if ip.address.family == 4 else NODAD),
                broadcast=_broadcast(ip.address),
            )
        )
        for ip in result.ips
    ]


def _broadcast(net: Net) -> bytes | None:
    return net.last.to_bytes(4, "big") if net.family == 4 and net.prefix < 31 else None


def pods_routes(result: Result, index: int) -> list[Message]:
    """The pod's ways to its gateways, then by them to the networks of its addresses, then those of the result.

    Of equal ones the first stands, and a route of the result before one that is only implied.
    """
    ways: dict[Net, Route] = {}
    said = {route.dst.network for route in result.routes}
    for ip in result.ips:
        if ip.gateway is not None:
            ways.setdefault(inet.host(ip.gateway), _way(inet.host(ip.gateway), index, ip))
    for ip in result.ips:
        net = ip.address.network
        if net.prefix < net.ip.bits and net not in said:
            ways.setdefault(net, _way(net, index, ip, via=ip.gateway))
    return [
        *[routes.add(way) for way in ways.values()],
        *addressing.route_messages(index, result.routes, list(result.ips)),
    ]


def _way(net: Net, index: int, ip: IpConfig, *, via: Ip | None = None) -> Route:
    return Route(
        dst=net.ip.packed,
        prefix=net.prefix,
        oif=index,
        gateway=None if via is None else via.packed,
        src=ip.address.ip.packed,
    )


def hosts_addresses(result: Result, index: int) -> list[Message]:
    """The gateways' addresses, for the host's end."""
    return [
        addresses.add(Address(index=index, ip=ip.packed, prefix=ip.bits, flags=0 if ip.family == 4 else NODAD))
        for ip in gateways(result.ips)
    ]


def hosts_route(ip: IpConfig, index: int) -> Route:
    """The host's way to one address of the pod."""
    return Route(dst=ip.address.ip.packed, prefix=ip.address.ip.bits, oif=index)
