"""The look that `census` notes the outcome of: whether any pod has rules of the reference's."""

from __future__ import annotations

from nodeplug.cni.reference import names, tables
from nodeplug.cni.reference.names import ENTRIES, FILTER, FORWARD, NAT, PORTS_CHAINS, PORTS_TABLE
from nodeplug.cni.reference.rules import ACCEPT
from nodeplug.cni.reference.tables import NOTHING
from nodeplug.core.errors import doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nodeplug.cni.reference.tables import Change, Plan, Table


def anything() -> bool:
    """Raises errors of the house."""
    seen: list[bool] = []

    def seeing(test: Callable[[Table], bool]) -> Plan:
        def plan(table: Table) -> Change:
            seen.append(test(table))
            return NOTHING

        return plan

    with doing("cannot look for what the reference plugins left"):
        tables.change_iptables(NAT, seeing(_nat))
        tables.change_iptables(FILTER, seeing(_filter), hints=(FORWARD.encode(),))
        tables.change_nft(0, names.MASQUERADE_TABLE, seeing(lambda table: _any(table, (names.MASQUERADE_CHAIN,))))
        for family in (4, 6):
            tables.change_nft(family, PORTS_TABLE, seeing(lambda table: _any(table, PORTS_CHAINS)))
        tables.change_nft(7, NAT, seeing(_guards))
    return any(seen)


def _any(table: Table, chains: Iterable[str]) -> bool:
    return any(table.rules(chain) for chain in chains)


def _nat(table: Table) -> bool:
    masquerades = any(names.is_masquerade_chain(rule.target) for rule in table.rules("POSTROUTING"))
    return masquerades or _any(table, ENTRIES.values())


def _filter(table: Table) -> bool:
    return any(rule.names_host and rule.target == ACCEPT for rule in table.rules(FORWARD))


def _guards(table: Table) -> bool:
    return any(rule.target.startswith(names.GUARD) for rule in table.rules("PREROUTING"))
