"""The reference's firewall: two rules of iptables for each address of a pod, and rules for bridges with a policy.

They name no pod. Rules of an address go with the pod that a result says has it, or when no runtime knows of anybody who
does. Rules of bridges are not removed by the reference; here they go with the last rule of an address, because the pods
that are left have nodeplug's own policies.
"""

from __future__ import annotations

from nodeplug.cni.reference import known, tables
from nodeplug.cni.reference.names import FILTER, FORWARD, STAGES
from nodeplug.cni.reference.rules import ACCEPT
from nodeplug.cni.reference.tables import NOTHING, Change
from nodeplug.core.errors import doing
from nodeplug.core.inet import Ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.reference.rules import Rule
    from nodeplug.cni.reference.tables import Table

_BASE = "FORWARD"


def remove(addresses: Collection[bytes], container: str) -> None:
    """Remove the rules of a container's addresses; none there is success.

    One that a runtime says another container has by now is that one's: a DEL may come late, and more than once.
    """

    def plan(table: Table) -> Change:
        theirs = {rule.source or rule.destination for rule in table.rules(FORWARD)} & set(addresses)
        mine = theirs - _of_others(container) if theirs else theirs
        return _without(table, lambda rule: rule.source in mine or rule.destination in mine)

    if addresses:
        with doing("cannot remove the reference plugin's rules for the pod's addresses"):
            tables.change_iptables(FILTER, plan, hints=addresses)


def faults(addresses: Collection[bytes]) -> list[str] | None:
    """What is missing of a pod's rules where the reference plugin made them, as sentences; None where it did not."""
    sources: set[bytes] = set()
    destinations: set[bytes] = set()

    def plan(table: Table) -> Change:
        for rule in table.rules(FORWARD):
            sources.update({rule.source} & set(addresses))
            destinations.update({rule.destination} & set(addresses))
        return NOTHING

    with doing("cannot read the reference plugin's rules for the pod's addresses"):
        tables.change_iptables(FILTER, plan, hints=addresses)
    if not sources | destinations:
        return None
    return [
        f"{FORWARD} of iptables accepts nothing {way} {Ip(packed=address)}"
        for way, found in (("from", sources), ("to", destinations))
        for address in sorted(set(addresses) - found)
    ]


def free(addresses: Collection[bytes]) -> None:
    """Remove the rules of addresses that have been given to a new pod."""

    def plan(table: Table) -> Change:
        return _without(table, lambda rule: rule.source in addresses or rule.destination in addresses)

    with doing("cannot remove the reference plugins' rules for addresses that are given anew"):
        tables.change_iptables(FILTER, plan, hints=addresses)


def collect(valid: Collection[Attachment]) -> None:
    """Remove the rules of addresses that nobody has: no runtime knows of a container with them.

    Where a valid attachment is not known of, its addresses are not either, and nothing is removed.
    """
    found = known.addresses()
    if found is None or any(attachment.container not in found for attachment in valid):
        return
    living = {_packed(text) for texts in found.values() for text in texts}

    def is_stale(rule: Rule) -> bool:
        return not {address for address in (rule.source, rule.destination) if address} <= living

    with doing("cannot remove the reference plugins' rules for addresses that nobody has"):
        tables.change_iptables(FILTER, lambda table: _without(table, is_stale), hints=(FORWARD.encode(),))


def _without(table: Table, chosen: Callable[[Rule], bool]) -> Change:
    of_hosts = [rule for rule in table.rules(FORWARD) if rule.names_host and rule.target == ACCEPT]
    stale = [rule for rule in of_hosts if chosen(rule)]
    if not stale:
        return NOTHING
    if len(stale) < len(of_hosts):
        return Change(rules=tuple(stale))
    stages = tuple(chain for chain in STAGES if table.has(chain))
    jumps = [rule for rule in table.rules(_BASE) if rule.target in stages]
    return Change(rules=(*stale, *jumps), chains=stages)


def _of_others(container: str) -> frozenset[bytes]:
    found = known.addresses() or {}
    return frozenset(_packed(text) for other, texts in found.items() if other != container for text in texts)


def _packed(text: str) -> bytes:
    try:
        return Ip.parse(text).packed
    except ValueError:
        return b""
