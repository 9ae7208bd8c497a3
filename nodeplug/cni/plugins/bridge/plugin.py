"""bridge, called by the door: each command as steps, the work itself beside this module.

What belongs to one attachment is named by its identity, so DEL and GC find it without a result, a configuration or a
netns. The bridge belongs to the node: no command takes it away.
"""

from __future__ import annotations

from nodeplug.cni.contract import Interface, Plugin, Result, Route
from nodeplug.cni.plugins import addressing, forwarding, hostlink
from nodeplug.cni.plugins.bridge import device, ports
from nodeplug.cni.plugins.bridge.config import BridgeConf, validate
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.keys import requested_mac
from nodeplug.core import inet
from nodeplug.core.errors import ConfigInvalid, Refused, doing
from nodeplug.core.inet import Ip, Net
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, IpConfig, StatusRequest
    from nodeplug.kernel.rtnl.links import Link

_POD = 2
"""Index of the pod's interface in a result: the bridge, the host's end, the pod's end, a VLAN's gateway."""

_LEAST_MTU_OF_IPV6 = 1280


class Bridge(Plugin):
    name = "bridge"
    config = BridgeConf
    args = ("MAC", "IP", "GATEWAY")  # the last two are for address managers, which are given the same

    def add(self, request: AddRequest) -> Result:
        config: BridgeConf = request.config
        validate(config, addresses=request.ipam is not None)
        mac = requested_mac(config.runtime_config, config.args, request.args)
        with Netlink(NETLINK_ROUTE) as host, _inside(request) as pod, Undo() as undo:
            bridge = _ensure_bridge(host, request)
            port = ports.connect(host, bridge, request, undo, mac=mac)
            if config.uses_vlans:
                _set_vlans(host, bridge, port, request)
            result = _planned(request, bridge, port, _ask_for_addresses(host, port, request, undo))
            end = _configure(pod, port, request, result)
            gateway = _ensure_gateways(host, bridge, request, result)
            _masquerade(request, result, undo)
            _wait(host, port, request)
            if result.ips:
                addressing.announce(pod, end)
            bridge, port, *others = _finished(host, request, bridge, port, gateway)
            undo.commit()
        return _with_macs(result, [bridge, port, end, *others])

    def delete(self, request: DelRequest) -> None:
        """Each step is tried; an address is released only once no link has it."""
        steps = Steps()
        gone = steps.run(lambda: ports.disconnect(request))
        if gone and request.ipam is not None:
            steps.run(request.ipam.delete)
        from nodeplug.cni.plugins import masquerade

        steps.run(lambda: masquerade.remove(request))
        steps.close()

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.bridge import verify

        validate(request.config, addresses=request.ipam is not None)
        verify.check(request)
        if request.config.ip_masq and request.prev_result.ips:
            from nodeplug.cni.plugins import masquerade

            masquerade.check(request)
        if request.ipam is not None:
            request.ipam.check()

    def status(self, request: StatusRequest) -> None:
        from nodeplug.cni.plugins.bridge import verify

        validate(request.config, addresses=request.ipam is not None)
        verify.status(request)
        if request.config.ip_masq:
            from nodeplug.cni.plugins import masquerade

            masquerade.usable(request)
        if request.ipam is not None:
            request.ipam.status()

    def gc(self, request: GcRequest) -> None:
        steps = Steps()
        gone = steps.run(lambda: hostlink.remove_stale(request.network, request.valid))
        if gone and request.ipam is not None:
            steps.run(request.ipam.gc)
        from nodeplug.cni.plugins import masquerade

        steps.run(lambda: masquerade.collect(request))
        steps.close()


def _inside(request: AddRequest) -> Netlink:
    with doing(f"cannot enter {request.netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=request.netns)


def _ensure_bridge(host: Netlink, request: AddRequest) -> Link:
    """The bridge, after what a killed ADD of this attachment left has gone."""
    config: BridgeConf = request.config
    with doing(f"cannot look for bridge {config.bridge}", hints=HINTS):
        bridge, leftover = links.find(host, config.bridge), links.find(host, request.attachment.identity)
    if leftover is not None and hostlink.is_leftover(leftover, request.attachment):
        request.warn(f"replaced link {leftover.name}, which an ADD that was killed left behind")
        hostlink.remove(host, leftover.index)
        if request.ipam is not None:
            request.ipam.delete()
    return device.ensure(host, bridge, config)


def _set_vlans(host: Netlink, bridge: Link, port: Link, request: AddRequest) -> None:
    from nodeplug.cni.plugins.bridge import vlans

    vlans.warn_unless_filtering(bridge, request.warn)
    vlans.set_port(host, port.index, request.config)


def _ask_for_addresses(host: Netlink, port: Link, request: AddRequest, undo: Undo) -> Result:
    """What the address manager says; nothing for a network without one."""
    if request.ipam is None:
        return Result()
    # Also when the address manager fails: one that was killed half-way has not undone what it did (CNI specification,
    # section 4). The link goes before the address, so that nobody gets an address that is still in use.
    undo.push(request.ipam.delete)
    undo.push(lambda: hostlink.remove(host, port.index))
    given = request.ipam.add()
    if not given.ips:
        raise Refused("IPAM plugin returned missing IP config", hint="the address manager answered without an address")
    return given


def _planned(request: AddRequest, bridge: Link, port: Link, given: Result) -> Result:
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


def _with_gateway(ip: IpConfig, config: BridgeConf) -> IpConfig:
    """The address on the pod's interface; where this host is the gateway, with one on the address's own network."""
    net = ip.address
    if net.family == 6 and 0 < config.mtu < _LEAST_MTU_OF_IPV6:
        raise ConfigInvalid(
            f"IPv6 needs an MTU of {_LEAST_MTU_OF_IPV6} or more, and address {net} is to have {config.mtu}",
            hint='mend "mtu", or give no IPv6 addresses',
        )
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


def _configure(pod: Netlink, port: Link, request: AddRequest, result: Result) -> Link:
    """The pod's end, as it is in the end."""
    config: BridgeConf = request.config
    if not config.disable_container_interface:
        return addressing.configure(
            pod, request.netns, port.parent, request.ifname, result, detect_duplicates=config.enabledad
        )
    with doing(f"cannot read {request.ifname} in {request.netns.path}", hints=HINTS):
        (answer,) = pod.request(links.query(port.parent))
    return links.parse(answer or b"")


def _ensure_gateways(host: Netlink, bridge: Link, request: AddRequest, result: Result) -> Link | None:
    """Make the host the pods' gateway where it should be; the link that is it in a VLAN, where there is one."""
    config: BridgeConf = request.config
    wanted = [Net(ip=ip.gateway, prefix=ip.address.prefix) for ip in result.ips if ip.gateway is not None]
    if not config.gateway or not wanted:
        return None
    link = bridge
    if config.vlan:
        from nodeplug.cni.plugins.bridge import vlans

        link = vlans.ensure_gateway_link(host, bridge, config)
    device.ensure_gateways(host, link, wanted, force=config.force_address)
    forwarding.enable({net.family for net in wanted})
    return link if config.vlan else None


def _masquerade(request: AddRequest, result: Result, undo: Undo) -> None:
    if not request.config.ip_masq or not result.ips:
        return
    from nodeplug.cni.plugins import masquerade

    undo.push(lambda: masquerade.remove(request))
    masquerade.add(request, [ip.address for ip in result.ips])


def _wait(host: Netlink, port: Link, request: AddRequest) -> None:
    """Until frames pass between the pod and the bridge; a pod's end that is left down lets none pass."""
    if request.config.disable_container_interface:
        return
    with doing(f"cannot read link {port.name}", hints=HINTS):
        (answer,) = host.request(links.query(port.index))
    ports.wait_until_forwarding(host, links.parse(answer or b""))


def _finished(host: Netlink, request: AddRequest, *found: Link | None) -> list[Link]:
    """The links as they are now, with the pod's labelled as one in use. Their MAC addresses may have changed: udev sets
    a new link's, and a bridge that somebody else made takes its first port's.
    """
    label = hostlink.labelled(request.attachment.identity, request.attachment, finished=True)
    with doing("cannot read the links that were made", hints=HINTS):
        *answers, _ = host.request(*[links.query(link.index) for link in found if link is not None], label)
    return [links.parse(answer or b"") for answer in answers]


def _with_macs(result: Result, found: list[Link]) -> Result:
    """The result with the MAC addresses of these links, and an interface more for one it does not name."""
    named = [*result.interfaces, *[Interface(name=link.name) for link in found[len(result.interfaces) :]]]
    return result.replace(
        interfaces=tuple(
            [interface.replace(mac=link.mac.hex(":")) for interface, link in zip(named, found, strict=True)]
        )
    )
