"""Deletes from the table: only what an identity owns, gathered into one transaction.

The kernel frees what was deleted only after a grace period, and whoever closes a netfilter socket in that time waits
for it (15 ms seen). A process that keeps its socket never waits, however many deletes it sends.
"""

from __future__ import annotations

import errno

from nodeplug.cni.filter.layout import TABLE
from nodeplug.core.errors import TryAgain
from nodeplug.kernel.nft import elements, messages
from nodeplug.kernel.nft.wire import INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.cni.filter.plan import Entry
    from nodeplug.kernel.netlink import Netlink

ATTEMPTS = 8


def delete_owned(netlink: Netlink, identity: str, entries: Iterable[Entry]) -> int:
    """Delete those of the elements that carry the identity; returns how many. One gone meanwhile is no fault.

    Raises `NetlinkError`.
    """
    keys = list(dict.fromkeys((TABLE, entry.set, entry.key) for entry in entries))
    found = elements.get_elements(netlink, INET, keys)
    mine = [
        (name, key)
        for (_, name, key), element in zip(keys, found, strict=True)
        if element is not None and element.comment.startswith(f"{identity} ")
    ]
    return delete(netlink, mine)


def delete(netlink: Netlink, wanted: list[tuple[str, bytes]]) -> int:
    """Delete these (set, key) in one transaction, sent again without those that were gone; returns how many."""
    for _ in range(ATTEMPTS):
        change = [message for name, key in wanted for message in elements.delete_elements(INET, TABLE, name, [key])]
        refused = messages.attempt(netlink, change)
        for error in refused:
            if error.errno != errno.ENOENT:
                raise error
        if not refused:
            return len(wanted)
        gone = {error.index for error in refused}
        wanted = [item for n, item in enumerate(wanted) if n not in gone]
    raise TryAgain(f"the elements of the nft table inet {TABLE} kept changing while some were deleted")


def drop_chain(netlink: Netlink, name: str) -> None:
    """Delete an attachment's own chain with its rules; no matter whether it is there."""
    for error in messages.attempt(netlink, [messages.delete_chain(INET, TABLE, name)]):
        if error.errno != errno.ENOENT:
            raise error
