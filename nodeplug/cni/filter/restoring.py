"""The table made again: the transaction for what is missing, from the shares of all attachments that live.

Loaded only then.
"""

from __future__ import annotations

from nodeplug.cni.filter import layout
from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.table import add_entry, element
from nodeplug.core.errors import Error
from nodeplug.kernel.nft import elements, messages
from nodeplug.kernel.nft.wire import INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nodeplug.cni.filter.index import Holding
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.nft.elements import Element


def messages_for(live: list[Holding], present: frozenset[str] | set[str]) -> list[Message]:
    """The transaction that makes what is not `present`; all of the table when nothing is."""
    change: list[Message] = []
    names: set[str] = set()
    if not present:
        # The idiom of nft scripts: a table that is added first can be deleted whether it was there or not.
        change = [messages.add_table(INET, TABLE), messages.delete_table(INET, TABLE), *layout.table()]
        names |= layout.SETS
    for subnet in dict.fromkeys(subnet for holding in live for subnet in holding.share.subnets):
        if subnet.set_name not in present:
            change += layout.subnet(subnet)
            names.update(subnet.set_names)
    found: dict[str, dict[bytes, Element]] = {}
    for holding in live:
        for entry in holding.share.entries:
            if entry.set in names and not entry.chain:
                found.setdefault(entry.set, {})[entry.key] = element(entry, holding.comment)
    for name, held in found.items():
        change += elements.add_elements(INET, TABLE, name, held.values())
    return change


def conditions(netlink: Netlink, live: Iterable[Holding], warn: Callable[[str], None]) -> None:
    """The chains of those that have conditions, and what leads to them."""
    for holding in live:
        if not holding.share.conditions:
            continue
        from nodeplug.cni.filter import conditions

        try:
            conditions.compile_chain(holding)
        except Error as error:
            warn(f"the conditions of {holding.owner.attachment} could not be restored: {error}")
            continue
        conditional = [entry for entry in holding.share.entries if entry.chain]
        messages.commit(netlink, [m for entry in conditional for m in add_entry(entry, holding.comment)])
