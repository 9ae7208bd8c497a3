"""The host's end of a pod's veth: named by the attachment's identity, labelled with the attachment, found by either.

Shared by the plugins that join a pod to the host by a veth. The label is the link's alias: DEL needs only the name,
but GC has to tell which links belong to its network, and a name cannot be read backwards.
"""

from __future__ import annotations

import errno

from nodeplug.cni.contract import Attachment
from nodeplug.core import company
from nodeplug.core.errors import Refused, doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import deletes, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

KIND = "veth"
LINKS = "links"
"""What making and deleting them is called where calls take turns (`core.company`): the kernel does one at a time."""
HINTS = {
    errno.EPERM: "it needs CAP_NET_ADMIN in the namespaces of the host and of the pod",
    errno.EACCES: "it needs CAP_NET_ADMIN in the namespaces of the host and of the pod",
    errno.EOPNOTSUPP: "this kernel lacks the feature; the configuration must do without it",
}

_UNFINISHED = "unfinished "
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


def remove(route: Netlink, which: int | str) -> bool:
    """Delete a link, and with it the other end of a veth; False when it was not there."""
    here = company.present()
    with doing(f"cannot delete link {which}", hints=HINTS), here.waiting(), here.by_turns(LINKS):
        return deletes.delete(route, which)


def remove_stale(network: str, valid: Collection[Attachment]) -> None:
    """Delete the links of the network that belong to no attachment of `valid`."""
    with doing("cannot delete the links that no container uses any more", hints=HINTS), Netlink(NETLINK_ROUTE) as route:
        found = [(link, owner(link)) for link in links.dump(route, kind=KIND)]
        stale = [link for link, whose in found if whose is not None and whose.network == network and whose not in valid]
        failures: list[Exception] = []
        for start in range(0, len(stale), _TOGETHER):
            with company.present().by_turns(LINKS):
                outcomes = deletes.delete_all(route, [link.index for link in stale[start : start + _TOGETHER]])
            failures += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            raise failure
