"""bandwidth, called by the door.

What the pod receives, its veth's end on the host sends: a token bucket filter there. What the pod sends, that end
receives, which cannot be queued: it is redirected to an IFB, a link of the pod's own, with a filter there. Filters end
with the veth; the IFB is named by the attachment and labelled with it, so DEL and GC find it without a result.
"""

from __future__ import annotations

import errno

from nodeplug.cni.contract import VERSIONS, Attachment, Interface, Plugin
from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.bandwidth.config import DIRECTIONS, BandwidthConf, Limits, bucket, effective
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import company
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, doing
from nodeplug.core.naming import identity
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError, route
from nodeplug.kernel.rtnl import links, qdiscs
from nodeplug.kernel.rtnl.qdiscs import INGRESS, ROOT

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
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link
    from nodeplug.kernel.rtnl.qdiscs import Bucket

IFB = "ifb"
_LONGEST_ALIAS = 255


class Bandwidth(Plugin):
    name = "bandwidth"
    config = BandwidthConf
    versions = VERSIONS[2:]  # older results name no interfaces

    def add(self, request: AddRequest) -> Result:
        """The result before it, with the IFB where there is one."""
        limits = effective(request.config)
        result = _previous(request)
        if limits == Limits():
            return result
        with company.present().lend(route) as host, Undo() as undo:
            end, before = _host_end(host, request, request.netns, result)
            ingress, egress = _buckets(limits, end.mtu, request.warn)
            ifb = None if egress is None else _add_ifb(host, request.attachment, end, before, undo)
            with doing(f"cannot limit the bandwidth of {end.name}", hints=HINTS):
                shaped = []
                if ingress is not None:
                    undo.push(lambda: host.attempt(qdiscs.delete(end.index, ROOT)))
                    shaped.append(qdiscs.shape(end.index, ingress))
                if ifb is not None and egress is not None:
                    shaped += [links.set(ifb.index, up=True), qdiscs.shape(ifb.index, egress)]
                host.request(*shaped)
                if ifb is not None:
                    _listen(host, end)
                    undo.push(lambda: host.attempt(qdiscs.delete(end.index, INGRESS)))
                    host.request(qdiscs.redirect(end.index, ifb.index))
            undo.commit()
        if ifb is None:
            return result
        return result.replace(interfaces=(*result.interfaces, Interface(name=ifb.name, mac=ifb.mac.hex(":"))))

    def delete(self, request: DelRequest) -> None:
        """The IFB goes, by whichever plugin it was made; the filters of the veth go with the veth."""
        from nodeplug.cni.reference import names

        steps = Steps()
        with company.present().lend(route) as host:
            for name in (ifb_name(request.attachment), names.ifb(request.network, request.container)):
                steps.run(_removal(host, name))
        steps.close()

    def check(self, request: CheckRequest) -> None:
        limits = effective(request.config)
        if limits == Limits():
            return
        with _host() as host, doing("cannot read how the pod's bandwidth is limited", hints=HINTS):
            end, ifb = _host_end(host, request, request.netns, request.prev_result)
            ingress, egress = _buckets(limits, end.mtu, _silent)
            found = [] if ingress is None else _shaping_faults(host, end, ingress)
            if egress is not None:
                found += _redirection_faults(host, end, ifb or _reference_ifb(host, request), egress)
        if found:
            raise Refused(
                f"{request.attachment} is not limited as bandwidth left it: {'; '.join(found)}",
                hint="somebody changed it; `tc qdisc show` tells what is there",
            )

    def gc(self, request: GcRequest) -> None:
        """Delete the IFBs of the network that belong to no valid attachment, and those of the reference's that nothing
        leads to any more.
        """
        from nodeplug.cni.reference import ifbs

        with _host() as host, doing("cannot delete the IFBs that no container uses any more", hints=HINTS):
            owners = [(link, owner(link)) for link in links.dump(host, kind=IFB)]
            stale = [
                link
                for link, whose in owners
                if whose is not None and whose.network == request.network and whose not in request.valid
            ]
            stale += ifbs.unused(host, request.network, request.valid)
            for answer in host.attempt(*[links.delete(link.index) for link in stale]):
                if isinstance(answer, NetlinkError) and answer.errno != errno.ENODEV:
                    raise answer

    def status(self, request: StatusRequest) -> None:
        effective(request.config)
        _host().close()


def ifb_name(attachment: Attachment) -> str:
    """Of the pod's IFB. Its veth has the attachment's own identity."""
    return identity(IFB, attachment.network, attachment.container, attachment.ifname)


def _buckets(limits: Limits, mtu: int, warn: Callable[[str], None]) -> list[Bucket | None]:
    """Those of `DIRECTIONS`."""
    found = []
    for direction in DIRECTIONS:
        rate, burst = limits.of(direction)
        made = bucket(rate, burst, mtu)
        if made is not None and made.burst > burst // 8:
            warn(
                f"{direction}Burst of {burst} bits is less than one frame of the pod, which would never pass;"
                f" {made.burst * 8} are used"
            )
        found.append(made)
    return found


def _silent(_sentence: str) -> None:
    """ADD has said it."""


def _previous(request: AddRequest) -> Result:
    if request.prev_result is None:
        raise ConfigInvalid("must be called as chained plugin", hint="list bandwidth after bridge or ptp in plugins")
    return request.prev_result


def _removal(host: Netlink, name: str) -> Callable[[], bool]:
    return lambda: hostlink.remove(host, name)


def _host() -> Netlink:
    with doing("cannot reach the host's network"):
        return Netlink(NETLINK_ROUTE)


def _host_end(host: Netlink, request: AttachmentRequest, netns: Netns, result: Result) -> tuple[Link, Link | None]:
    """The host's end of the pod's veth; and what has the name of the pod's IFB.

    By its index alone it could be another's: two namespaces number their links alike. So the result must name it.
    """
    if not result.interfaces:
        raise ConfigInvalid("no interfaces provided", hint="the result before it names none; chain it after bridge")
    with doing(f"cannot look for the host's end of {request.ifname}", hints=HINTS):
        with Netlink(NETLINK_ROUTE, netns=netns) as pod:
            inner = links.find(pod, request.ifname)
        if inner is None:
            raise NotFound(f"there is no interface {request.ifname} in {netns.path}")
        if inner.kind != "veth" or not inner.parent:
            raise Refused(
                f"container interface {request.ifname} has no veth peer: it is of kind {inner.kind or 'none'!r}",
                hint="the bandwidth of other kinds of links cannot be limited from the host",
            )
        outer, ifb = links.find_each(host, inner.parent, ifb_name(request.attachment))
    if outer is None or outer.kind != "veth" or outer.parent != inner.index:
        raise Refused(f"the veth peer of {request.ifname}, with index {inner.parent}, is not on the host")
    if not any(found.name == outer.name and not found.sandbox for found in result.interfaces):
        raise Refused(
            f"no veth peer of container interface {request.ifname} found in the result: it has no {outer.name}",
            hint="the plugin that made the veth tells of both ends",
        )
    return outer, ifb


def _add_ifb(host: Netlink, attachment: Attachment, end: Link, before: Link | None, undo: Undo) -> Link:
    """The pod's IFB, down, after what a killed ADD left of it (`before`) has gone. It speaks no IPv6 of its own."""
    name = ifb_name(attachment)
    with doing(f"cannot make the IFB {name}", hints=_IFB_HINTS), company.present().by_turns(hostlink.LINKS):
        if before is not None and (before.kind != IFB or before.alias not in ("", _label(attachment))):
            raise Refused(
                f"link {name} has the name that belongs to this pod's IFB, and is not it:"
                f" kind {before.kind!r}, alias {before.alias!r}",
                hint="find out who made it; delete or rename it",
            )
        if before is not None:
            host.request(links.delete(before.index))
        made, *answers = host.attempt(
            links.add(name, IFB, mtu=end.mtu, txqlen=0), links.set(name, alias=_label(attachment)), links.query(name)
        )
        if isinstance(made, NetlinkError):
            raise made
        undo.push(lambda: host.attempt(links.delete(name)))
        for answer in answers:
            if isinstance(answer, NetlinkError):
                raise answer
        sysctl.prefer("1", "net", "ipv6", "conf", name, "disable_ipv6")
    return links.parse(answers[-1] or b"")  # type: ignore[arg-type]  # no error, as was just seen


def _listen(host: Netlink, end: Link) -> None:
    """Let filters look at what the host's end receives, in place of what an earlier ADD left.

    Raises `Refused` where somebody else's do already.
    """
    (answer,) = host.attempt(qdiscs.receive(end.index))
    if not isinstance(answer, NetlinkError):
        return
    if answer.errno != errno.EEXIST:
        raise answer
    there = qdiscs.find(host, end.index, INGRESS)
    standing = qdiscs.filters(host, end.index)
    targets = [links.find(host, found.to) for found in standing if found.to]
    ours = all(found.kind == "u32" for found in standing) and len(standing) <= 1
    if (
        there is None
        or there.kind != "ingress"
        or not ours
        or any(link is not None and link.kind != IFB for link in targets)
    ):
        raise Refused(
            f"somebody else filters what {end.name} receives: {there.kind if there else 'a filter'} is there",
            hint=f"`tc filter show dev {end.name} ingress` tells what; leave egressRate out, or that filter",
        ) from answer
    host.request(qdiscs.delete(end.index, INGRESS), qdiscs.receive(end.index))


def _label(attachment: Attachment) -> str:
    return str(attachment)[:_LONGEST_ALIAS]


def owner(link: Link) -> Attachment | None:
    """Whose IFB it is; believed only where its name is that of what the label says."""
    parts = link.alias.split("/")
    if len(parts) != 3:
        return None
    found = Attachment(network=parts[0], container=parts[1], ifname=parts[2])
    return found if ifb_name(found) == link.name else None


def _reference_ifb(host: Netlink, request: CheckRequest) -> Link | None:
    from nodeplug.cni.reference import names

    return links.find(host, names.ifb(request.network, request.container))


def _shaping_faults(host: Netlink, link: Link, wanted: Bucket) -> list[str]:
    found = qdiscs.find(host, link.index)
    if found is None or found.bucket is None:
        return [f"{link.name} sends by {found.kind if found else 'nothing'}, not by tbf"]
    have = found.bucket
    faults = []
    if have.rate != wanted.rate:
        faults.append(f"Rate doesn't match: {link.name} sends {have.rate} bytes a second, not {wanted.rate}")
    if have.limit != wanted.limit:
        faults.append(f"Limit doesn't match: up to {have.limit} bytes wait at {link.name}, not {wanted.limit}")
    # The kernel keeps the depth as a time, rounded, and tells 32 bits of it.
    off = (found.ticks - wanted.ticks) & 0xFFFFFFFF
    if min(off, (1 << 32) - off) > (wanted.ticks >> 8) + 2:
        faults.append(f"Buffer doesn't match: the bucket of {link.name} has not {wanted.burst} bytes")
    return faults


def _redirection_faults(host: Netlink, end: Link, ifb: Link | None, wanted: Bucket) -> list[str]:
    if ifb is None:
        return ["the IFB that the pod's packets should go to is not there"]
    faults = _shaping_faults(host, ifb, wanted)
    if not ifb.up:
        faults.append(f"{ifb.name} is down")
    if [found.to for found in qdiscs.filters(host, end.index)] != [ifb.index]:
        faults.append(f"what {end.name} receives is not redirected to {ifb.name}")
    return faults


_IFB_HINTS = {**HINTS, errno.EOPNOTSUPP: "this kernel has no IFB (CONFIG_IFB), which egress limits need"}
