"""sbr, called by the door. All it makes is in the pod's namespace and ends with it; nothing is kept on the host."""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from nodeplug.cni.contract import VERSIONS, Plugin
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.sbr import plan
from nodeplug.cni.plugins.sbr.config import SbrConf, gateways
from nodeplug.cni.plugins.sbr.plan import Source
from nodeplug.core import files, paths
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, doing
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import addresses, links, routes, rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        IpConfig,
        Result,
        StatusRequest,
    )
    from nodeplug.cni.plugins.sbr.plan import Plan
    from nodeplug.core.files import RangeLock
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.rules import Rule

_FAMILIES = (AF_INET, AF_INET6)
_ALL_TABLES = 0


class Sbr(Plugin):
    name = "sbr"
    config = SbrConf
    versions = VERSIONS[2:]  # chaining came with 0.3.0

    def add(self, request: AddRequest) -> Result:
        """The result before it, unchanged."""
        result = request.prev_result
        if result is None:
            raise ConfigInvalid(
                "This plugin must be called as chained plugin", hint="list it after the one for the link"
            )
        sources = _sources(request, result)
        if not sources:
            raise ConfigInvalid(
                f"No IP addresses supplied on interface: {request.ifname}", hint="the plugin before it must give some"
            )
        with _inside(request.netns) as pod, _alone(request.netns), Undo() as undo:
            with doing(f"cannot set up source based routing for {request.ifname}", hints=HINTS):
                _delete_rules(pod, request, sources)
                _carry_out(pod, _planned(pod, request, sources), undo)
            undo.commit()
        return result

    def delete(self, request: DelRequest) -> None:
        """Routes go with the interface; the rules are deleted here. The namespace or the interface gone is success."""
        if request.netns is None:
            return
        known = _sources(request, request.prev_result) if request.prev_result is not None else []
        deleting = doing(f"cannot delete the routing rules of {request.ifname}", hints=HINTS)
        with _inside(request.netns) as pod, _alone(request.netns), deleting:
            _delete_rules(pod, request, known)

    def check(self, request: CheckRequest) -> None:
        config: SbrConf = request.config
        sources = _sources(request, request.prev_result)
        with _inside(request.netns) as pod, doing(f"cannot read the routing of {request.ifname}", hints=HINTS):
            link = links.find(pod, request.ifname)
            if link is None:
                raise NotFound(f"{request.ifname} is gone from {request.netns.path}")
            known = [route for family in _FAMILIES for route in routes.dump(pod, family, table=_ALL_TABLES)]
            found = plan.faults(sources, _rules(pod), known, link.index, config.table)
        if found:
            raise Refused(
                f"{request.attachment} is not routed by source as sbr left it: {'; '.join(found)}",
                hint="something in the pod changed it; `ip rule` and `ip route show table all` tell what is there",
            )

    def status(self, request: StatusRequest) -> None:
        gateways(request.config)


def _inside(netns: Netns) -> Netlink:
    with doing(f"cannot enter {netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=netns)


def _alone(netns: Netns) -> RangeLock:
    """No other call of this plugin is in the namespace: two would choose the same free table."""
    device, inode = netns.identity()
    return files.range_lock(f"{paths.LOCKS}/sbr", f"{device}:{inode}")


def _sources(request: AttachmentRequest, result: Result) -> list[Source]:
    """The interface's addresses, each with its gateway. Those that tell no interface count as its own."""
    static = gateways(request.config)
    return [
        Source(address=ip.address, gateway=static.get(ip.address.family, ip.gateway))
        for ip in result.ips
        if _is_of(ip, result, request.ifname)
    ]


def _is_of(ip: IpConfig, result: Result, ifname: str) -> bool:
    if ip.interface is None or not 0 <= ip.interface < len(result.interfaces):
        return True
    return result.interfaces[ip.interface].name == ifname


def _rules(pod: Netlink) -> list[Rule]:
    found = []
    for family in _FAMILIES:
        try:
            found += rules.dump(pod, family)
        except NetlinkError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # a kernel without IPv6
                raise
    return found


def _planned(pod: Netlink, request: AddRequest, sources: list[Source]) -> Plan:
    config: SbrConf = request.config
    if config.table is not None:
        return plan.by_table(sources, config.table)
    link = links.find(pod, request.ifname)
    if link is None:
        raise NotFound(
            f"Cannot find network interface {request.ifname} in {request.netns.path}",
            hint="list sbr after the plugin that makes the interface",
        )
    own = [route for family in _FAMILIES for route in routes.dump(pod, family, oif=link.index)]
    known = [route for family in _FAMILIES for route in routes.dump(pod, family, table=_ALL_TABLES)]
    tables = plan.free_tables(_rules(pod), known)
    return plan.by_source(sources, own, tables, link.index, hints=config.add_source_hints)


def _carry_out(pod: Netlink, wanted: Plan, undo: Undo) -> None:
    """Tables and rules first, then the main table's routes: the pod is never without a way."""
    for route in wanted.replaced:
        undo.push(_reverse(pod, routes.add(route.replace(flags=0), replace=True)))
    for route in wanted.added:
        undo.push(_reverse(pod, routes.delete(route)))
        pod.request(routes.add(route, replace=True))
    for rule in wanted.rules:
        pod.request(rules.add(rule))
        undo.push(_reverse(pod, rules.delete(rule)))
    for route in wanted.removed:
        undo.push(_reverse(pod, routes.add(route.replace(flags=0), replace=True)))
        pod.request(routes.delete(route))


def _reverse(pod: Netlink, message: Message) -> Callable[[], object]:
    return lambda: pod.attempt(message)


def _delete_rules(pod: Netlink, request: AttachmentRequest, known: list[Source]) -> None:
    """Rules of the interface's addresses: of those that it has, and of those that the result says it had."""
    config: SbrConf = request.config
    everybody = addresses.dump(pod)
    link = links.find(pod, request.ifname)
    own = {address.ip for address in everybody if link is not None and address.index == link.index}
    own |= {source.address.ip.packed for source in known}
    gone = plan.stale(_rules(pod), own, {address.ip for address in everybody}, config.table)
    for answer in pod.attempt(*[rules.delete(rule) for rule in gone]):
        if isinstance(answer, NetlinkError) and answer.errno != errno.ENOENT:
            raise answer
