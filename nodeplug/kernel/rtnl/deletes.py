"""Deleting links, without waiting longer than it takes until they are gone.

A deleted link is gone within a millisecond: nobody finds it any more, it passes no packet, its name is free, its
addresses and routes have gone with it. Who sent the message waits some fifteen more, until the kernel has freed what it
was made of. `delete` has a thread beside (`core.company`) do that waiting, and returns when the link is gone: it asks
for it, and the kernel answers once it is done with the links that it was at.

`delete_all` deletes many for one caller, by a group of their own: their freeing takes the time of one. A group delete
takes every member, foreign ones too, and fails whole on one that cannot be deleted; so the group's number is made up
for the occasion, who is in it is looked at before, and what is left afterwards is deleted singly.
"""

from __future__ import annotations

import errno
import os
import struct

from nodeplug.core import company
from nodeplug.kernel import netlink
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.core.company import Job
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

_OURS = 0x6E700000
"""What our numbers have in common, in their upper half ("np"): by it the leftovers of a killed process are known."""

_BEGUN = 0.0002
"""Seconds in which a thread beside this one has begun. Who asks after that is kept waiting by the kernel."""

_LONGEST_PAUSE = 0.01
_ATTEMPTS = 4
_GROUP = struct.Struct("=HHI")
_IFLA_GROUP = 27


def delete(route: Netlink, which: int | str) -> bool:
    """Delete a link; False when there is none. Raises `NetlinkError` where it cannot be deleted."""
    (found,) = _look([which], route)
    if isinstance(found, Exception):
        raise found
    if found is None:
        return False
    # By its index: another link may have the name as soon as this one is gone.
    done = company.present().aside(_request(route, links.delete(found.index)))
    pause = _BEGUN
    while not _over(done, pause):
        if _look([found.index], route) == [None]:
            return True
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


def delete_all(route: Netlink, wanted: list[int | str]) -> list[bool | Exception]:
    """Delete links, each by index or name; for each whether it was there, or why it could not be deleted."""
    found = _look(wanted, route)
    distinct = {link.index: link for link in found if isinstance(link, links.Link)}
    if len(distinct) > 1:
        _delete_group(route, list(distinct.values()))
    left = {
        index: _outcome(answer)
        for index, answer in zip(distinct, route.attempt(*[links.delete(n) for n in distinct]), strict=True)
    }
    # By index, and nobody gives an index again so soon: one that is not there now was deleted by the group.
    return [
        _present(left[link.index]) if isinstance(link, links.Link) else link if isinstance(link, Exception) else False
        for link in found
    ]


def restore_leftovers(route: Netlink, prefix: str) -> list[str]:
    """Put links whose name begins with `prefix` back into group 0, if a killed process left them in one of ours.

    Returns their names. A process that is at work on them deletes them singly then.
    """
    stale = [link for link in links.dump(route) if link.name.startswith(prefix) and link.group & 0xFFFF0000 == _OURS]
    route.attempt(*[links.set(link.index, group=0) for link in stale])
    return [link.name for link in stale]


def _request(route: Netlink, message: Message) -> Callable[[], None]:
    """What requests it by another socket of the same namespace, wherever the thread is that calls it."""
    here = company.present()
    lent = here.lend(netlink.route) if route.netns is None else Netlink(NETLINK_ROUTE, netns=route.netns)
    other = lent.__enter__()

    def request() -> None:
        try:
            other.request(message)
        except OSError as error:
            lent.__exit__(OSError, error, None)
            raise
        lent.__exit__(None, None, None)

    return request


def _over(done: Job, within: float) -> bool:
    """Whether the kernel has answered. Raises what it refused; that somebody else was quicker is none."""
    try:
        return done.over(within)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return True


def _look(wanted: list[int | str], route: Netlink) -> list[Link | Exception | None]:
    found: list[Link | Exception | None] = []
    for answer in route.attempt(*[links.query(which) for which in wanted]):
        if isinstance(answer, NetlinkError):
            found.append(None if answer.errno in (errno.ENODEV, errno.ERANGE) else answer)
        else:
            found.append(links.parse(answer or b""))
    return found


def _delete_group(route: Netlink, members: list[Link]) -> None:
    """Delete them in one go if that can be; those it could not are where they were."""
    for _ in range(_ATTEMPTS):
        group = _OURS | int.from_bytes(os.urandom(2), "big")
        moved = _move(route, members, group)
        inside = _members(route, group)
        if inside and inside <= moved:
            (refused,) = route.attempt(links.delete_group(group))
            if not isinstance(refused, NetlinkError):
                return
            _put_back(route, members)  # one of them cannot be deleted, and so none was
            return
        _put_back(route, members)
        if not inside - moved:
            return  # they are gone, or were put back by somebody


def _move(route: Netlink, members: list[Link], group: int) -> set[int]:
    """Move them into the group; returns the indexes of those that are in."""
    answers = route.attempt(*[links.set(link.index, group=group) for link in members])
    return {link.index for link, answer in zip(members, answers, strict=True) if not isinstance(answer, NetlinkError)}


def _put_back(route: Netlink, members: list[Link]) -> None:
    messages: list[Message] = [links.set(link.index, group=link.group) for link in members]
    route.attempt(*messages)


def _members(route: Netlink, group: int) -> set[int]:
    """The indexes of all links in the group."""
    # Of thousands of links nearly none is: the attribute's bytes are looked for before a message is taken apart.
    marked = _GROUP.pack(_GROUP.size, _IFLA_GROUP, group)
    found = [links.parse(payload) for payload in links.dump_raw(route) if marked in payload]
    return {link.index for link in found if link.group == group}


def _outcome(answer: bytes | NetlinkError | None) -> bool | Exception:
    if not isinstance(answer, NetlinkError):
        return True
    return False if answer.errno in (errno.ENODEV, errno.ERANGE) else answer


def _present(outcome: bool | Exception) -> bool | Exception:
    return outcome if isinstance(outcome, Exception) else True
