"""The host's end of a pod's veth: named by the attachment's identity, labelled with the attachment, found by either.

Shared by the plugins that join a pod to the host by a veth. The label is the link's alias: DEL needs only the name,
but GC has to tell which links belong to its network, and a name cannot be read backwards.
"""

from __future__ import annotations

import errno

from nodeplug.cni.contract import Attachment
from nodeplug.core import company
from nodeplug.core.errors import Refused, TimedOut, doing
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import deletes, links, veths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from nodeplug.cni.contract import AddRequest, DelRequest, Result
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

KIND = "veth"
HINTS = {
    errno.EPERM: "it needs CAP_NET_ADMIN in the namespaces of the host and of the pod",
    errno.EACCES: "it needs CAP_NET_ADMIN in the namespaces of the host and of the pod",
    errno.EOPNOTSUPP: "this kernel lacks the feature; the configuration must do without it",
}

_UNFINISHED = "unfinished "
_UP_WITHIN = 5.0
"""Seconds."""
_TOGETHER = 64
_LONGEST_LABEL = 255 - len(_UNFINISHED)  # the kernel's IFALIASZ less one


def label(attachment: Attachment, *, finished: bool) -> str:
    """The alias. Until ADD is done it says so, by which the leftover of a killed one is told from what is in use."""
    return ("" if finished else _UNFINISHED) + str(attachment)[:_LONGEST_LABEL]


def labelled(which: str, attachment: Attachment, *, finished: bool) -> Message:
    """A message that gives the link its alias."""
    return links.set(which, alias=label(attachment, finished=finished))


def parse_label(alias: str) -> Attachment | None:
    """Whom a label names; None for what is no label of ours, or had to be cut."""
    said = alias.removeprefix(_UNFINISHED)
    parts = said.split("/")
    if len(parts) != 3 or len(said) >= _LONGEST_LABEL:
        return None
    return Attachment(network=parts[0], container=parts[1], ifname=parts[2])


def owner(link: Link) -> Attachment | None:
    """Whose end it is; None for a link that is no plugin's of ours, or whose label had to be cut.

    Believed only where the name is the identity of what the label says.
    """
    found = parse_label(link.alias) if link.kind == KIND else None
    return found if found is not None and found.identity == link.name else None


def is_leftover(link: Link | None, attachment: Attachment) -> bool:
    """Whether `link`, found by the attachment's name, is what a killed ADD of this attachment left.

    Nobody works on the attachment beside the caller, so an unfinished one has no ADD that would finish it. Raises
    `Refused` for a finished one, which a pod uses, and for what is no attachment of ours at all.
    """
    if link is None:
        return False
    if link.kind == KIND and link.alias in ("", label(attachment, finished=False)):
        return True
    if link.kind == KIND and link.alias == label(attachment, finished=True):
        raise Refused(
            f"container {attachment.container} has interface {attachment.ifname} in network {attachment.network}"
            f" already, by link {link.name}",
            hint="a runtime runs DEL before it adds the same interface again",
        )
    raise Refused(
        f"link {link.name} has the name that belongs to this attachment, and is not its own:"
        f" kind {link.kind or 'none'!r}, alias {link.alias!r}",
        hint="find out who made it; delete or rename it",
    )


def connect(
    host: Netlink,
    request: AddRequest,
    undo: Undo,
    *,
    to: str,
    mtu: int,
    mac: bytes | None = None,
    master: int | None = None,
    settings: Iterable[Message] = (),
) -> Link:
    """The host's end of a new veth, up; its `parent` is the index of the pod's end, which is down.

    `to` is what a failure is told to have kept the pod from; `mac` is the pod's; `settings` are sent along, once the
    link is there. Raises `Refused` when the pod has an interface of that name.
    """
    name, ifname, path = request.attachment.identity, request.ifname, request.netns.path
    pair = veths.add(name, ifname, peer_netns=request.netns, up=True, mtu=mtu or None, master=master, peer_mac=mac)
    label_it = labelled(name, request.attachment, finished=False)
    with doing(f"cannot connect {ifname} in {path} to {to}", hints=HINTS):
        made, *answers = host.attempt(pair, label_it, *settings, links.query(name))
        if isinstance(made, NetlinkError):
            if made.errno == errno.EEXIST and isinstance(answers[-1], NetlinkError):
                raise Refused(
                    f"interface {ifname} already exists in {path}",
                    hint="a pod's interface names differ; it was left as it is",
                ) from made
            raise made
        undo.push(lambda: remove(host, name))
        for answer in answers:
            if isinstance(answer, NetlinkError):
                raise answer
    # No router advertisement is to change the host's routes.
    sysctl.prefer("0", "net", "ipv6", "conf", name, "accept_ra")
    return links.parse(answers[-1] or b"")  # type: ignore[arg-type]  # no error, as was just seen


def wait_until_up(host: Netlink, link: Link, failing: str) -> Link:
    """The link once packets pass by it, as they do when the pod's end is up. Raises `TimedOut`, which `failing` opens.

    The kernel follows a carrier in its own time, a millisecond where it is not busy with other links.
    """
    if link.operstate == links.OPER_UP:
        return link
    from nodeplug.kernel.rtnl import watch

    try:
        return watch.wait_for_operstate(host, link.index, timeout=_UP_WITHIN)
    except TimeoutError as error:
        raise TimedOut(
            f"{failing}: {error.strerror}", hint=f"is the pod's end of {link.name}, or its own, being set down?"
        ) from error


def disconnect(request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> None:
    """Take the attachment's link away, whichever plugin made it; nothing there is success.

    The reference plugins' have random names, which only a result and the pod's end tell. A runtime also deletes after
    an ADD that was refused because the pod has an interface of that name, of another network, which stays: `belongs`
    is asked of an unlabelled one's end on the host whether this network's configuration makes such.
    """
    with doing("cannot look for the pod's link", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        if remove(host, request.attachment.identity):
            return
        if not _remove_inside(host, request, belongs) and request.prev_result is not None:
            _remove_outside(host, request.prev_result)


def _remove_inside(host: Netlink, request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> bool:
    if request.netns is None:
        return False
    with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
        link = links.find(pod, request.ifname)
        if link is None or link.kind != KIND or not _is_ours(host, link, request, belongs):
            return False
        return remove(pod, link.index)


def _is_ours(host: Netlink, link: Link, request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> bool:
    if request.prev_result is not None:
        return any(found.name == link.name and found.sandbox for found in request.prev_result.interfaces)
    port = links.find(host, link.parent) if link.parent else None
    if port is None or port.parent != link.index or port.kind != KIND or owner(port) is not None:
        return False
    return belongs(host, port)


def _remove_outside(host: Netlink, result: Result) -> None:
    """By the host's end in the result, as long as it is still that one: names come again, with other MAC addresses."""
    for interface in result.interfaces:
        link = links.find(host, interface.name) if interface.name and not interface.sandbox else None
        if link is None or link.kind != KIND or owner(link) is not None:
            continue
        # The gateway's link of a VLAN is a veth too, with both its ends on the host.
        if link.parent_netnsid is not None and link.mac.hex(":") == interface.mac.lower():
            remove(host, link.index)


def remove(route: Netlink, which: int | str) -> bool:
    """Delete a link, and with it the other end of a veth; False when it was not there."""
    with doing(f"cannot delete link {which}", hints=HINTS):
        if route.netns is not None:
            with company.present().waiting():
                (outcome,) = deletes.delete([(route, which)])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return company.present().together(deletes.delete, (route, which))


def remove_stale(network: str, valid: Collection[Attachment]) -> None:
    """Delete the links of the network that belong to no attachment of `valid`."""
    with doing("cannot delete the links that no container uses any more", hints=HINTS), Netlink(NETLINK_ROUTE) as route:
        found = [(link, owner(link)) for link in links.dump(route, kind=KIND)]
        stale = [link for link, whose in found if whose is not None and whose.network == network and whose not in valid]
        failures: list[Exception] = []
        for start in range(0, len(stale), _TOGETHER):
            outcomes = deletes.delete([(route, link.index) for link in stale[start : start + _TOGETHER]])
            failures += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            raise failure
