"""Deleting links of the host, several in one go: each deletion alone waits for the kernel's grace period (15 ms).

`delete` is work for `core.company`: one link is deleted plainly, many by a group of their own. A group delete takes
every member, foreign ones too, and fails whole on one that cannot be deleted; so the group's number is made up for the
occasion, who is in it is looked at before, and what is left afterwards is deleted singly.

    company.present().together(deletes.delete, (route, name))    # True, or False where there was none
"""

from __future__ import annotations

import errno
import os
import struct

from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.rtnl.links import Link

_OURS = 0x6E700000
"""What our numbers have in common, in their upper half ("np"): by it the leftovers of a killed process are known."""

_ATTEMPTS = 4
_GROUP = struct.Struct("=HHI")
_IFLA_GROUP = 27


def delete(wanted: list[tuple[Netlink, int | str]]) -> list[bool | Exception]:
    """Delete links, each by index or name; for each whether it was there, or why it could not be deleted.

    The sockets are all of one network namespace, and that of the first is used.
    """
    route = wanted[0][0]
    if len(wanted) == 1:
        return [_outcome(route.attempt(links.delete(wanted[0][1]))[0])]
    found = _look([which for _, which in wanted], route)
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
