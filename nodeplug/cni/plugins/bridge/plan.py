"""What bridge makes of an address manager's answer: gateways, default routes, the shape of its result. Pure."""

from __future__ import annotations

from nodeplug.cni.contract import Interface, Result, Route
from nodeplug.cni.plugins import addressing
from nodeplug.core import inet
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Ip, Net

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, IpConfig
    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.kernel.rtnl.links import Link

_POD = 2
"""Index of the pod's interface in a result: the bridge, the host's end, the pod's end, a VLAN's gateway."""


def planned(request: AddRequest, bridge: Link, port: Link, given: Result) -> Result:
    """The result, MAC addresses apart: with gateways and default routes as the configuration wants them."""
    config: BridgeConf = request.config
    ips = tuple([_with_gateway(ip, config) for ip in given.ips])
    defaults: list[Route] = []
    for ip in ips if config.is_default_gateway else ():
        default = inet.default(ip.address.family)
        if not any(route.gw is not None and route.dst == default for route in (*given.routes, *defaults)):
            defaults.append(Route(dst=default, gw=ip.gateway))
    return Result(
        interfaces=(
            Interface(name=bridge.name),
            Interface(name=port.name),
            Interface(name=request.ifname, sandbox=request.netns.path),
        ),
        ips=ips,
        routes=(*given.routes, *defaults),
        dns=given.dns if config.dns is None else config.dns,
    )


def gateways(result: Result) -> list[Net]:
    """The addresses that whoever is the pods' gateway has."""
    return [Net(ip=ip.gateway, prefix=ip.address.prefix) for ip in result.ips if ip.gateway is not None]


def _with_gateway(ip: IpConfig, config: BridgeConf) -> IpConfig:
    """The address on the pod's interface; where this host is the gateway, with one on the address's own network."""
    net = ip.address
    addressing.check_mtu(net, config.mtu)
    if not config.gateway:
        return ip.replace(interface=_POD)
    gateway = ip.gateway or Ip.of(net.first + 1, net.family)
    if not net.holds(gateway) or gateway == net.ip:
        raise ConfigInvalid(
            f"{gateway} cannot be the gateway of {net}: "
            + ("it is the pod's own address" if gateway == net.ip else "it is not on that network"),
            hint='mend the gateway of the address manager\'s range, or leave "isGateway" out',
        )
    return ip.replace(interface=_POD, gateway=gateway)


def with_macs(result: Result, macs: list[bytes], others: list[Link]) -> Result:
    """The result with the MAC addresses of its interfaces, and an interface more for each other link."""
    named = [interface.replace(mac=mac.hex(":")) for interface, mac in zip(result.interfaces, macs, strict=True)]
    more = [Interface(name=link.name, mac=link.mac.hex(":")) for link in others]
    return result.replace(interfaces=(*named, *more))
