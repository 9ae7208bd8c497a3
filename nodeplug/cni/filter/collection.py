"""What GC finds in the table itself: elements whose file is lost, sets that no pod of the network needs any more."""

from __future__ import annotations

import errno

from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.removal import delete, drop_chain
from nodeplug.core.naming import identity
from nodeplug.kernel.attributes import text
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.nft import elements, messages
from nodeplug.kernel.nft.wire import INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.filter.index import Index
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.nft.messages import Rule

_LOOKUP_SET = 1
_ATTEMPTS = 4


def strays(netlink: Netlink, index: Index, network: str, valid: frozenset[Attachment]) -> int:
    """Delete elements and chains that carry the network's name and belong to no valid attachment; returns how many.

    Those of attachments that are in the index stay: whoever removes them removes their files as well.
    """
    kept = {attachment.identity for attachment in valid}
    kept |= {holding.identity for holding in index.holdings(network)}

    def stray(comment: str) -> bool:
        owner, _, name = comment.partition(" ")
        return name.startswith(f"{network}/") and owner not in kept and _is_identity(owner)

    found = []
    for item in messages.sets(netlink, INET, TABLE):
        if item.count != 0:
            found += [
                (item.name, element.key)
                for element in elements.dump_elements(netlink, INET, TABLE, item.name)
                if stray(element.comment)
            ]
    removed = delete(netlink, found)
    chains = {rule.chain for rule in messages.rules(netlink, INET, TABLE) if stray(rule.comment)}
    for name in chains:
        drop_chain(netlink, name)
    return removed + len(chains)


def empty_subnets(netlink: Netlink, index: Index, network: str) -> None:
    """Delete the network's sets that hold nothing and serve no attachment, with their rules."""
    for _ in range(_ATTEMPTS):
        generation = messages.generation(netlink)
        used = {subnet.set_name for holding in index.holdings(network) for subnet in holding.share.subnets}
        unused = [
            item.name
            for item in messages.sets(netlink, INET, TABLE)
            if item.name.startswith(("masq-", "hairpin-"))
            and item.comment.rpartition(" ")[0] == network
            and item.name not in used
            and not elements.dump_elements(netlink, INET, TABLE, item.name)
        ]
        if not unused:
            return
        change = [
            messages.delete_rule(INET, TABLE, rule.chain, rule.handle)
            for rule in messages.rules(netlink, INET, TABLE)
            if _looks_into(rule) & set(unused)
        ]
        change += [messages.delete_set(INET, TABLE, name) for name in unused]
        try:
            messages.commit(netlink, change, generation=generation)
        except NetlinkError as error:
            if error.errno == errno.ERESTART:
                continue  # an ADD may have put a pod into one of them
            raise
        return


def _looks_into(rule: Rule) -> set[str]:
    return {text(dict(part.attributes).get(_LOOKUP_SET)) for part in rule.expressions if part.name == "lookup"}


def _is_identity(name: str) -> bool:
    return len(name) == len(identity()) and name.startswith("np")
