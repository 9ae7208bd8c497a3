"""`ipMasq` of the reference's bridge and ptp: a chain of iptables for each pod, or rules in an nft table of its own."""

from __future__ import annotations

from nodeplug.cni.reference import names, tables
from nodeplug.cni.reference.names import MASQUERADE_CHAIN, MASQUERADE_TABLE, NAT
from nodeplug.cni.reference.tables import NOTHING, Change
from nodeplug.core.errors import doing
from nodeplug.core.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.reference.rules import Rule
    from nodeplug.cni.reference.tables import Table

_BASE = "POSTROUTING"
_INET = 0


def remove(attachment: Attachment, addresses: Collection[bytes] = ()) -> None:
    """Remove the attachment's rules; none there is success.

    A chain serves all interfaces of a container in a network: of those that lead to it only the ones of `addresses` go
    where they are among them, and the chain with the last.
    """
    chain = names.chain(attachment.network, attachment.container)

    def plan(table: Table) -> Change:
        if not table.has(chain):
            return NOTHING
        jumps = [rule for rule in table.rules(_BASE) if rule.target == chain]
        mine = [rule for rule in jumps if rule.source in addresses] or jumps
        return Change(rules=tuple(mine), chains=() if len(mine) < len(jumps) else (chain,))

    mark = names.mark(attachment.network, attachment.container, attachment.ifname)
    with doing(f"cannot remove the reference plugin's masquerade of {attachment}"):
        _everywhere(plan, lambda rule: rule.comment.startswith(mark), hints=(chain.encode(),))


def collect(network: str, valid: Collection[Attachment]) -> None:
    """Remove the rules of the network that belong to no attachment of `valid`."""
    whole = names.masquerade_comments(network)
    kept = {names.masquerade_comment(network, attachment.container) for attachment in valid}

    def is_stale(rule: Rule) -> bool:
        return rule.comment.startswith(whole) and rule.comment not in kept

    def plan(table: Table) -> Change:
        jumps = [rule for rule in table.rules(_BASE) if is_stale(rule) and names.is_masquerade_chain(rule.target)]
        chains = {rule.target for rule in jumps}
        for chain in table.chains():
            # What an ADD that was killed had made, before anything led to it.
            if names.is_masquerade_chain(chain) and chain not in chains and any(map(is_stale, table.rules(chain))):
                chains.add(chain)
        return Change(rules=tuple(jumps), chains=tuple(sorted(chains)))

    theirs = names.network_mark(network)
    marks = tuple(names.mark(network, attachment.container, attachment.ifname) for attachment in valid)
    with doing(f"cannot remove the reference plugins' masquerades of network {network}"):
        _everywhere(plan, lambda rule: rule.comment.startswith(theirs) and not rule.comment.startswith(marks))


def free(addresses: Collection[bytes]) -> None:
    """Remove the rules about these addresses, which have been given to a new pod."""

    def plan(table: Table) -> Change:
        jumps = [rule for rule in table.rules(_BASE) if names.is_masquerade_chain(rule.target)]
        stale = [rule for rule in jumps if rule.source in addresses]
        kept = {rule.target for rule in jumps if rule not in stale}
        return Change(rules=tuple(stale), chains=tuple(sorted({rule.target for rule in stale} - kept)))

    with doing("cannot remove the reference plugins' masquerades of addresses that are given anew"):
        _everywhere(plan, lambda rule: rule.source in addresses, hints=addresses)


def _everywhere(
    plan: Callable[[Table], Change], chosen: Callable[[Rule], bool], *, hints: Collection[bytes] = (names.PREFIX,)
) -> None:
    def of_nft(table: Table) -> Change:
        return Change(rules=tuple(filter(chosen, table.rules(MASQUERADE_CHAIN))))

    steps = Steps()
    steps.run(lambda: tables.change_iptables(NAT, plan, hints=hints))
    steps.run(lambda: tables.change_nft(_INET, MASQUERADE_TABLE, of_nft))
    steps.close()
