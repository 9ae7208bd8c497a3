"""bridge, called by the door: each command as steps, the work itself beside this module.

What belongs to one attachment is named by its identity, so DEL and GC find it without a result, a configuration or a
netns. The bridge belongs to the node: no command takes it away.
"""

from __future__ import annotations

from nodeplug.cni.contract import Plugin
from nodeplug.cni.plugins import addressing, forwarding, hostlink, veth
from nodeplug.cni.plugins.bridge import device, ports
from nodeplug.cni.plugins.bridge.config import BridgeConf, validate
from nodeplug.cni.plugins.bridge.plan import gateways, planned, with_macs
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.keys import requested_mac
from nodeplug.cni.plugins.withdrawal import may_be_foreign, withdraw
from nodeplug.core import company
from nodeplug.core.errors import doing
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, route
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        GcRequest,
        Result,
        StatusRequest,
    )
    from nodeplug.kernel.rtnl.links import Link


class Bridge(Plugin):
    """Called by the door; see the module."""

    name = "bridge"
    config = BridgeConf
    args = ("MAC", "IP", "GATEWAY")  # the last two are for address managers, which are given the same

    def add(self, request: AddRequest) -> Result:
        config: BridgeConf = request.config
        validate(config, addresses=request.ipam is not None)
        mac = requested_mac(config.runtime_config, config.args, request.args) or veth.new_mac()
        with company.present().lend(route) as host, Undo() as undo:
            pod = _inside(request)
            undo.push(pod.close)
            bridge = _ensure_bridge(host, request)
            port = ports.connect(host, bridge, request, undo, mac=mac)
            if config.macspoofchk:
                _guard(request, mac, undo)
            if config.uses_vlans:
                _set_vlans(host, bridge, port, request)
            given = addressing.ask(request, undo, lambda: hostlink.remove(host, port.index))
            result = planned(request, bridge, port, given)
            if not config.disable_container_interface:
                addressing.configure(
                    pod, request.netns, port.parent, request.ifname, result, detect_duplicates=config.enabledad
                )
            gateway = _ensure_gateways(host, bridge, request, result)
            _masquerade(request, result, undo)
            now, end, *others = _finished(host, request, bridge, port, gateway)
            undo.commit()
        company.present().later(lambda: _announce(pod, port.parent, mac, result))
        return with_macs(result, [now.mac, end.mac, mac], others)

    def delete(self, request: DelRequest) -> None:
        _withdraw(request, lambda: ports.disconnect(request), foreign=True)

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.bridge import verify

        validate(request.config, addresses=request.ipam is not None)
        verify.check(request)
        if request.ipam is not None:
            request.ipam.check()

    def gc(self, request: GcRequest) -> None:
        from nodeplug.cni.plugins import masquerade
        from nodeplug.cni.plugins.bridge import spoofing, takeover

        steps = Steps()
        gone = steps.run(lambda: hostlink.remove_stale(request.network, request.valid))
        if gone and request.ipam is not None:
            steps.run(request.ipam.gc)
        steps.run(lambda: masquerade.collect(request))
        steps.run(lambda: spoofing.collect(request.network, request.valid))
        steps.run(lambda: takeover.collect_rules(request.network, request.valid))
        steps.close()

    def status(self, request: StatusRequest) -> None:
        from nodeplug.cni.plugins.bridge import verify

        validate(request.config, addresses=request.ipam is not None)
        verify.status(request)
        if request.ipam is not None:
            request.ipam.status()


def _withdraw(request: AttachmentRequest, disconnect: Callable[[], object], *, foreign: bool = False) -> None:
    config: BridgeConf = request.config
    foreign = foreign and not ports.is_guarded(request.attachment.identity)
    foreign = foreign and may_be_foreign(ruled=config.ip_masq or config.macspoofchk)
    withdraw(request, disconnect, besides=lambda: _unguard(request), foreign=foreign)


def _inside(request: AddRequest) -> Netlink:
    with doing(f"cannot enter {request.netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=request.netns)


def _ensure_bridge(host: Netlink, request: AddRequest) -> Link:
    """The bridge, after what a killed ADD of this attachment left has gone."""
    config: BridgeConf = request.config
    with doing(f"cannot look for bridge {config.bridge}", hints=HINTS):
        bridge, leftover = links.find_each(host, config.bridge, request.attachment.identity)
    if leftover is not None and hostlink.is_leftover(leftover, request.attachment):
        request.warn(f"replaced link {leftover.name}, which an ADD that was killed left behind")
        _withdraw(request, lambda: hostlink.remove(host, leftover.index))
    return device.ensure(host, bridge, config)


def _set_vlans(host: Netlink, bridge: Link, port: Link, request: AddRequest) -> None:
    from nodeplug.cni.plugins.bridge import vlans

    vlans.warn_unless_filtering(bridge, request.warn)
    vlans.set_port(host, port.index, request.config)


def _guard(request: AddRequest, mac: bytes, undo: Undo) -> None:
    """Before the pod can send anything."""
    from nodeplug.cni.plugins.bridge import spoofing

    undo.push(lambda: spoofing.remove(request.attachment))
    spoofing.add(request.attachment, mac)


def _unguard(request: AttachmentRequest) -> None:
    if ports.is_guarded(request.attachment.identity):
        from nodeplug.cni.plugins.bridge import spoofing

        spoofing.remove(request.attachment)


def _ensure_gateways(host: Netlink, bridge: Link, request: AddRequest, result: Result) -> Link | None:
    """Make the host the pods' gateway where it should be; the link that is it in a VLAN, where there is one."""
    config: BridgeConf = request.config
    wanted = gateways(result)
    if not config.gateway or not wanted:
        return None
    link = bridge
    if config.vlan:
        from nodeplug.cni.plugins.bridge import vlans

        link = vlans.ensure_gateway_link(host, bridge, config)
    device.ensure_gateways(host, link, wanted, force=config.force_address)
    families = {net.family for net in wanted}
    forwarding.enable(families)
    forwarding.warn_where_dropped(families, request.warn)
    return link if config.vlan else None


def _masquerade(request: AddRequest, result: Result, undo: Undo) -> None:
    if not request.config.ip_masq or not result.ips:
        return
    from nodeplug.cni.plugins import masquerade

    undo.push(lambda: masquerade.remove(request))
    masquerade.add(request, [ip.address for ip in result.ips])


def _finished(host: Netlink, request: AddRequest, *found: Link | None) -> list[Link]:
    """The names and MAC addresses that the bridge, the port and what else there is have now; the port is labelled.

    Once frames pass between the pod and the bridge; a pod's end that is left down lets none pass. A bridge that
    somebody else made takes its first port's MAC address.
    """
    label = hostlink.labelled(request.attachment.identity, request.attachment, finished=True)
    with doing("cannot read the links that were made", hints=HINTS):
        *answers, _ = host.request(*[links.query(link.index) for link in found if link is not None], label)
    bridge, port, *others = [links.parse(answer or b"", "name", "mac", "operstate") for answer in answers]
    if not request.config.disable_container_interface:
        port = ports.wait_until_forwarding(host, port)
    return [bridge, port, *others]


def _announce(pod: Netlink, index: int, mac: bytes, result: Result) -> None:
    with pod:
        if result.ips:
            addressing.announce(pod, index, mac)
