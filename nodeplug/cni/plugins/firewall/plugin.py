"""firewall, called by the door.

What belongs to a pod is elements of nodeplug's nft table: its addresses, and its ingress policy. What other tables have
to be told is told once on a node: that packets with nodeplug's mark pass (`nodeplug.cni.filter.gates`).
"""

from __future__ import annotations

from nodeplug.cni.contract import VERSIONS, Plugin
from nodeplug.cni.filter import plan
from nodeplug.cni.filter.index import Index, Owner
from nodeplug.cni.filter.plan import PASSAGE
from nodeplug.cni.filter.table import filtering
from nodeplug.cni.plugins.firewall.config import ISOLATED, SAME_BRIDGE, FirewallConf
from nodeplug.cni.plugins.firewall.zones import Zone
from nodeplug.core.errors import ConfigInvalid, Refused, Unavailable, doing
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import bridges, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        GcRequest,
        Request,
        Result,
        StatusRequest,
    )
    from nodeplug.cni.filter.plan import Share
    from nodeplug.core.inet import Ip
    from nodeplug.kernel.rtnl.links import Link

_FORWARDING = {4: ("net", "ipv4", "ip_forward"), 6: ("net", "ipv6", "conf", "all", "forwarding")}


class Firewall(Plugin):
    name = "firewall"
    config = FirewallConf
    versions = VERSIONS[4:]

    def add(self, request: AddRequest) -> Result:
        """The result before it, unchanged."""
        config: FirewallConf = request.config
        result = request.prev_result
        if result is None:
            raise ConfigInvalid("missing prevResult from earlier plugin", hint="list firewall after bridge or ptp")
        share = _share(config, result)
        if not share.entries:
            return result
        addresses = _addresses(result)
        with Zone(config, request.env) as zone, filtering(warn=request.warn) as table, Undo() as undo:
            table.add(Owner.of(request.attachment, request.netns), share)
            undo.push(lambda: table.remove(request.attachment, PASSAGE))
            if config.ingress_policy == ISOLATED:
                _isolate_ports(result)
            undo.push(lambda: zone.leave(addresses))
            zone.join(addresses)
            table.open_gates(_families(share), admin=config.iptables_admin_chain_name)
            undo.commit()
        return result

    def delete(self, request: DelRequest) -> None:
        """By the index alone: the runtime may have lost the result."""
        index, identity = Index(), request.attachment.identity
        if not index.has(identity, PASSAGE):
            _remove_reference(request)
            return
        held = index.read(identity, PASSAGE)
        steps = Steps()
        steps.run(lambda: _remove(request))
        if held is not None:
            steps.run(lambda: _leave(request, plan.forwarded_addresses(held.share)))
        steps.close()

    def check(self, request: CheckRequest) -> None:
        config: FirewallConf = request.config
        share = _share(config, request.prev_result)
        if not share.entries:
            return
        if not Index().has(request.attachment.identity, PASSAGE) and _is_reference_whole(request):
            return
        with filtering(warn=request.warn) as table:
            found = table.missing(request.attachment, share)
            gates = table.closed_gates(_families(share), admin=config.iptables_admin_chain_name)
        found += [f"{gate} drops what the pod sends and gets" for gate in gates if not gate.obstacle]
        if config.ingress_policy == ISOLATED:
            found += [f"bridge port {port.name} is not isolated" for port in _straight_ports(request.prev_result)]
        with Zone(config, request.env) as zone:
            found += zone.faults(_addresses(request.prev_result))
        if found:
            raise Refused(
                f"{request.attachment} is not as firewall left it: {'; '.join(found)}",
                hint="`nodeplug cni repair` puts the table and the chains of others right",
            )

    def gc(self, request: GcRequest) -> None:
        stale = [
            ip
            for holding in Index().holdings(request.network)
            if holding.share.part == PASSAGE and holding.owner.attachment not in request.valid
            for ip in plan.forwarded_addresses(holding.share)
        ]
        from nodeplug.cni.reference import firewall

        steps = Steps()
        steps.run(lambda: _collect(request))
        steps.run(lambda: _leave(request, stale))
        steps.run(lambda: firewall.collect(request.valid))
        steps.close()

    def status(self, request: StatusRequest) -> None:
        """Names every chain that drops what pods send and get, and that no ADD could open."""
        with filtering(warn=request.warn) as table:
            table.usable()
            gates = table.closed_gates([family for family in (4, 6) if _forwards(family)])
        closed = [f"{gate}: {reason}" for gate in gates if (reason := table.obstacle(gate))]
        if closed:
            raise Unavailable(
                f"what pods send and get is dropped, and cannot be let through, by {'; '.join(closed)}",
                hint="let packets with the mark 0x1000/0x1000 pass there, or change what drops them",
            )
        with Zone(request.config, request.env):
            pass  # it raises where firewalld is asked for and does not run


def _remove(request: AttachmentRequest) -> None:
    with filtering(warn=request.warn) as table:
        table.remove(request.attachment, PASSAGE)


def _is_reference_whole(request: CheckRequest) -> bool:
    """Whether the reference plugin made it. Raises `Refused` when something is missing of that."""
    from nodeplug.cni.reference import firewall

    found = firewall.faults({ip.packed for ip in _addresses(request.prev_result)})
    if found:
        raise Refused(
            f"{request.attachment} is not as the reference plugin firewall left it: {'; '.join(found)}",
            hint="delete the pod; the one that comes in its place has nodeplug's own rules",
        )
    return found is not None


def _remove_reference(request: DelRequest) -> None:
    """What the reference plugin made, by the pod's addresses: those of the result, or else of its interface."""
    from nodeplug.cni.plugins import podaddresses

    if request.prev_result is not None:
        addresses = _addresses(request.prev_result)
    else:
        addresses = podaddresses.of_interface(request.netns, request.ifname)
    if not addresses:
        return
    from nodeplug.cni.reference import firewall

    steps = Steps()
    steps.run(lambda: firewall.remove({ip.packed for ip in addresses}, request.container))
    steps.run(lambda: _leave(request, addresses))
    steps.close()


def _collect(request: GcRequest) -> None:
    with filtering(warn=request.warn) as table:
        table.collect(request.network, request.valid)


def _share(config: FirewallConf, result: Result) -> Share:
    """What the configuration and the result before ask for. Raises `ConfigInvalid`."""
    addresses = _addresses(result)
    if not config.guarded:
        return plan.forwarded(addresses)
    bridge = result.interfaces[0].name if result.interfaces else ""
    if not bridge:
        raise ConfigInvalid(
            f'interface needs to be set for ingress policy "{config.ingress_policy}",'
            ' make sure to chain "firewall" plugin with "bridge"',
            hint="the result before it names no interface of the host",
        )
    near = bridge if config.ingress_policy == SAME_BRIDGE else ""
    return plan.forwarded(addresses, guarded=True, bridge=near)


def _addresses(result: Result) -> list[Ip]:
    """All of the pod's, as with the reference plugin."""
    return list(dict.fromkeys(ip.address.ip for ip in result.ips))


def _families(share: Share) -> list[int]:
    return sorted({subnet.net.family for subnet in share.subnets})


def _isolate_ports(result: Result) -> None:
    """Frames between two isolated ports of a bridge never come to any table, where bridge-nf-call-iptables is off."""
    with doing("cannot isolate the pod's bridge port"), Netlink(NETLINK_ROUTE) as host:
        host.request(*[bridges.set_port(port.index, isolated=True) for port in _ports(host, result)])


def _straight_ports(result: Result) -> list[Link]:
    """The result's bridge ports that are not isolated."""
    with doing("cannot read the pod's bridge port"), Netlink(NETLINK_ROUTE) as host:
        return _ports(host, result)


def _ports(host: Netlink, result: Result) -> list[Link]:
    found = []
    for interface in result.interfaces:
        link = links.find(host, interface.name) if interface.name and not interface.sandbox else None
        port = bridges.port_of(link) if link is not None else None
        if link is not None and port is not None and not port.isolated:
            found.append(link)
    return found


def _forwards(family: int) -> bool:
    """Whether the host forwards packets of the family at all, or will as soon as a pod is there (IPv4)."""
    if family == 4:
        return True
    try:
        return sysctl.read(*_FORWARDING[family]) == "1"
    except OSError:
        return False  # a kernel without IPv6


def _leave(request: Request, addresses: list[Ip]) -> None:
    """Take the addresses out of the zone. firewalld being gone means that they are."""
    if not addresses:
        return
    try:
        with Zone(request.config, request.env) as zone:
            zone.leave(addresses)
    except Unavailable:
        pass
