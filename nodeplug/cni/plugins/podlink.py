"""A link made straight in a pod's namespace: first under a name derived from the attachment, then labelled and renamed.

Shared by the plugins whose links have no end on the host. By that name, or the label, DEL and GC know what is theirs,
also what a killed ADD left. Such a link ends with its namespace; where a DEL is not told which that is, and for GC, it
is looked for in every one that a mount keeps.
"""

from __future__ import annotations

import errno

from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import Unavailable, doing
from nodeplug.core.naming import digest
from nodeplug.core.steps import Steps
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from nodeplug.cni.contract import AddRequest, Attachment, DelRequest
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.rtnl.links import Link

OPTIONS = {
    "macvlan": "CONFIG_MACVLAN",
    "ipvlan": "CONFIG_IPVLAN",
    "vlan": "CONFIG_VLAN_8021Q",
    "dummy": "CONFIG_DUMMY",
    "tun": "CONFIG_TUN",
}
"""What a kernel is built with that knows the kind."""


def called(kind: str) -> str:
    """What people call links of that kind."""
    return "tap" if kind == "tun" else kind


def name_of(attachment: Attachment) -> str:
    """What the link is called until it is labelled, which is done from another socket and so not in the same moment.

    GC knows by its beginning what network it is of. It is not the name of a veth of the same attachment: the kernel
    wants this one to be free on the host as well.
    """
    return _beginning(attachment.network) + digest(f"{attachment.container}\0{attachment.ifname}", 8)


def _beginning(network: str) -> str:
    return "np" + digest(network, 5)


def check_support(kind: str) -> None:
    """Raise `Unavailable` where the kernel has no such links. It makes none, but may load the kind's module."""
    with doing(f"cannot ask the kernel for {kind} links", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        (refused,) = host.attempt(links.trial(kind))
    if isinstance(refused, NetlinkError) and refused.errno == errno.EOPNOTSUPP:
        raise Unavailable(
            f"this kernel has no {kind} links",
            hint=f"it needs {OPTIONS[kind]}, or the module that was built of it: modprobe {kind}",
        )


def inside(netns: Netns) -> Netlink:
    """A socket in the pod's namespace."""
    with doing(f"cannot enter {netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=netns)


def make(pod: Netlink, request: AddRequest, kind: str, add: Callable[[str], object], undo: Undo) -> int:
    """The index of a new link that has its real name and says that it is not finished; `add` makes one of a name."""
    name, ifname, path = name_of(request.attachment), request.ifname, request.netns.path
    undo.push(lambda: hostlink.remove(pod, name))
    lacking = f"this kernel has no {called(kind)} links ({OPTIONS[kind]})"
    with doing(
        f"cannot make {called(kind)} {ifname} in {path}",
        hints={**HINTS, errno.EOPNOTSUPP: lacking, errno.ENOENT: lacking},
    ):
        add(name)
        (answer,) = pod.request(links.query(name))
        index = links.parse(answer or b"").index
        undo.push(lambda: hostlink.remove(pod, index))
        pod.request(links.set(index, name=ifname, alias=hostlink.label(request.attachment, finished=False)))
    return index


def finish(pod: Netlink, index: int, attachment: Attachment) -> None:
    """Say that a pod uses the link."""
    with doing(f"cannot label {attachment.ifname}", hints=HINTS):
        pod.request(links.set(index, alias=hostlink.label(attachment, finished=True)))


def is_unfinished(link: Link, attachment: Attachment, kind: str) -> bool:
    """Whether an ADD of the attachment made it and has not come to its end."""
    if link.kind != kind:
        return False
    unlabelled = link.name == name_of(attachment) and not link.alias
    return unlabelled or link.alias == hostlink.label(attachment, finished=False)


def is_finished(link: Link, attachment: Attachment, kind: str) -> bool:
    """Whether it is the attachment's, in use."""
    return link.kind == kind and link.alias == hostlink.label(attachment, finished=True)


def remove(request: DelRequest, kind: str, belongs: Callable[[Link], bool] | None = None) -> None:
    """Take the attachment's link away, whichever plugin made it; nothing there is success.

    A runtime also deletes after an ADD that was refused because the pod has an interface of that name, which stays.
    `belongs` is asked of one that neither a label nor a result names whether this network's configuration makes such:
    for the reference plugin's, where the configuration is of a version whose DEL is given no result.
    """
    if request.netns is None:
        for pod in _namespaces():
            _remove_own(pod, request.attachment, kind)
        return
    with inside(request.netns) as pod:
        if _remove_own(pod, request.attachment, kind):
            return
        with doing(f"cannot look for {request.ifname} in {request.netns.path}", hints=HINTS):
            link = links.find(pod, request.ifname)
        if link is None or link.kind != kind or link.alias:
            return
        if request.prev_result is not None:
            ours = any(found.name == link.name and found.sandbox for found in request.prev_result.interfaces)
        else:
            ours = belongs is not None and belongs(link)
        if ours:
            hostlink.remove(pod, link.index)


def _remove_own(pod: Netlink, attachment: Attachment, kind: str) -> bool:
    """Whatever it is called by now: a program in the pod may have renamed it."""
    there = _dump(pod, kind)
    found = [link for link in there if is_finished(link, attachment, kind) or is_unfinished(link, attachment, kind)]
    for link in found:
        hostlink.remove(pod, link.index)
    return bool(found)


def remove_stale(network: str, valid: Collection[Attachment], kind: str) -> None:
    """Delete the network's links that belong to no attachment of `valid`, while none of its ADDs is at work."""
    steps, beginning = Steps(), _beginning(network)
    for pod in _namespaces():
        for link in _dump(pod, kind):
            attachment = hostlink.parse_label(link.alias)
            stale = attachment is not None and attachment.network == network and attachment not in valid
            if stale or (not link.alias and link.name.startswith(beginning)):
                steps.run(_removal(pod, link))
    steps.close()


def _removal(pod: Netlink, link: Link) -> Callable[[], bool]:
    return lambda: hostlink.remove(pod, link.index)


def owners() -> Iterator[Attachment]:
    """Whom the labels on links in all pods of the node name.

    A label can be changed by programs in the pod that have the right to, on links of that pod only.
    """
    for pod in _namespaces():
        for link in _dump(pod, ""):
            attachment = hostlink.parse_label(link.alias)
            if attachment is not None:
                yield attachment


def _dump(pod: Netlink, kind: str) -> list[Link]:
    with doing("cannot list the links of a pod", hints=HINTS):
        return links.dump(pod, kind=kind)


def _namespaces() -> Iterator[Netlink]:
    """A socket in each namespace that a mount keeps, but the thread's own.

    Those that cannot be entered are passed over: whoever has not the right to has made no link there.
    """
    own = namespaces.own_identity()
    for path in namespaces.pinned():
        try:
            netns = Netns.open(path)
        except OSError:
            continue  # gone meanwhile
        with netns:
            if netns.identity() == own:
                continue
            try:
                pod = Netlink(NETLINK_ROUTE, netns=netns)
            except OSError:
                continue
            with pod:
                yield pod
