"""ptp, called by the door: each command as steps.

All that belongs to an attachment is named by its identity, so DEL and GC find it without a result, a configuration or a
netns. The host's address and routes end with the link.
"""

from __future__ import annotations

import errno

from nodeplug.cni.contract import Plugin
from nodeplug.cni.plugins import addressing, forwarding, hostlink, veth
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.ptp import plan
from nodeplug.cni.plugins.ptp.config import PtpConf
from nodeplug.cni.plugins.withdrawal import may_be_foreign, withdraw
from nodeplug.core.errors import Refused, doing
from nodeplug.core.inet import Ip
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import (
        AddRequest,
        CheckRequest,
        DelRequest,
        GcRequest,
        Result,
        StatusRequest,
    )
    from nodeplug.kernel.rtnl.links import Link


class Ptp(Plugin):
    """Called by the door; see the module."""

    name = "ptp"
    config = PtpConf

    def add(self, request: AddRequest) -> Result:
        addressing.require_manager(request)
        with Netlink(NETLINK_ROUTE) as host, _inside(request) as pod, Undo() as undo:
            _make_room(host, request)
            end = veth.connect(host, request, undo, to="the host", mtu=request.config.mtu)
            given = addressing.ask(request, undo, lambda: hostlink.remove(host, end.index))
            result = plan.planned(request, end.name, given)
            inner = _configure_pod(pod, request, end.parent, result)
            _configure_host(host, end, result)
            families = {ip.address.family for ip in result.ips}
            forwarding.enable(families)
            forwarding.warn_where_dropped(families, request.warn)
            _masquerade(request, result, undo)
            end = _finished(host, request, end)
            undo.commit()
        return plan.with_macs(result, end, inner)

    def delete(self, request: DelRequest) -> None:
        foreign = may_be_foreign(ruled=request.config.ip_masq)
        withdraw(request, lambda: veth.disconnect(request, _is_point_to_point), foreign=foreign)

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.ptp import verify

        addressing.require_manager(request)
        verify.check(request)
        if request.ipam is not None:
            request.ipam.check()

    def gc(self, request: GcRequest) -> None:
        from nodeplug.cni.plugins import masquerade
        from nodeplug.cni.plugins.bridge import takeover

        steps = Steps()
        gone = steps.run(lambda: hostlink.remove_stale(request.network, request.valid))
        if gone and request.ipam is not None:
            steps.run(request.ipam.gc)
        steps.run(lambda: masquerade.collect(request))
        steps.run(lambda: takeover.collect_rules(request.network, request.valid))
        steps.close()

    def status(self, request: StatusRequest) -> None:
        from nodeplug.cni.plugins import checking

        addressing.require_manager(request)
        checking.check_rights()
        if request.config.ip_masq:
            from nodeplug.cni.plugins import masquerade

            masquerade.usable(request)
        if request.ipam is not None:
            request.ipam.status()


def _is_point_to_point(host: Netlink, end: Link) -> bool:
    """Whether a veth's end on the host, which somebody else made, is as ptp leaves it: with a gateway and no bridge."""
    own = addresses.dump(host, index=end.index) if not end.master else []
    return any(address.prefix == 8 * len(address.ip) for address in own)


def _inside(request: AddRequest) -> Netlink:
    with doing(f"cannot enter {request.netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=request.netns)


def _make_room(host: Netlink, request: AddRequest) -> None:
    """Take away what a killed ADD of this attachment left."""
    with doing("cannot look for the pod's link", hints=HINTS):
        leftover = links.find(host, request.attachment.identity)
    if leftover is not None and hostlink.is_leftover(leftover, request.attachment):
        request.warn(f"replaced link {leftover.name}, which an ADD that was killed left behind")
        withdraw(request, lambda: hostlink.remove(host, leftover.index), foreign=False)


def _configure_pod(pod: Netlink, request: AddRequest, index: int, result: Result) -> Link:
    """The pod's end as it is then, up, with its addresses and routes."""
    ifname, path = request.ifname, request.netns.path
    with doing(f"cannot configure {ifname} in {path}", hints=HINTS):
        # Nobody but the host is on the link, so there is nobody to have the same address.
        families = {ip.address.family for ip in result.ips}
        addressing.prepare(request.netns, ifname, families, detect_duplicates=False)
        *_, answer = pod.request(
            *plan.pods_addresses(result, index),
            *addressing.set_up(index, families),
            *plan.pods_routes(result, index),
            links.query(index),
        )
    return links.parse(answer or b"")


def _configure_host(host: Netlink, end: Link, result: Result) -> None:
    """The gateways' addresses and the ways to the pod. Raises `Refused` where another link has such a way already."""
    own, ways = plan.hosts_addresses(result, end.index), [plan.hosts_route(ip, end.index) for ip in result.ips]
    with doing(f"cannot route to the pod by {end.name}", hints=HINTS):
        if any(ip.address.family == 6 for ip in result.ips):
            # No router advertisement of the pod's is to change the host's routes.
            sysctl.prefer("0", "net", "ipv6", "conf", end.name, "accept_ra")
            sysctl.ensure("0", "net", "ipv6", "conf", end.name, "disable_ipv6")
        answers = host.attempt(*own, *[routes.add(way) for way in ways])
        for way, answer in zip(ways, answers[len(own) :], strict=True):
            if isinstance(answer, NetlinkError) and answer.errno == errno.EEXIST:
                raise Refused(
                    f"the host has a route to {Ip(packed=way.dst)} already, by {_holder(host, way)}",
                    hint="two pods have one address: `ip route` tells more, `nodeplug cni gc` collects what none uses",
                ) from answer
        for answer in answers:
            if isinstance(answer, NetlinkError):
                raise answer


def _holder(host: Netlink, way: routes.Route) -> str:
    found = routes.find(host, way.dst)
    link = links.find(host, found.oif) if found is not None and found.oif else None
    return f"link {link.name}" if link is not None else "no link"


def _masquerade(request: AddRequest, result: Result, undo: Undo) -> None:
    if not request.config.ip_masq:
        return
    from nodeplug.cni.plugins import masquerade

    undo.push(lambda: masquerade.remove(request))
    masquerade.add(request, [ip.address for ip in result.ips])


def _finished(host: Netlink, request: AddRequest, end: Link) -> Link:
    """The host's end once packets pass by it, labelled as one in use. udev may have changed its MAC address."""
    with doing(f"cannot read link {end.name}", hints=HINTS):
        (answer,) = host.request(links.query(end.index))
        end = veth.wait_until_up(host, links.parse(answer or b""), f"link {end.name} does not come up:")
        host.request(hostlink.labelled(end.name, request.attachment, finished=True))
    return end
