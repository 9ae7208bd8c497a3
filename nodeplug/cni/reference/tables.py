"""One plan carried out in iptables' tables, of both kinds and both families; and in tables of nft's own.

A plan looks at a table and says which rules and chains are to go. It is asked again when somebody has changed the table
meanwhile. iptables-nft's tables are nf_tables' and changed as such, without a child.
"""

from __future__ import annotations

import errno

from nodeplug.cni.filter.removal import ATTEMPTS
from nodeplug.cni.reference.names import PREFIX
from nodeplug.cni.reference.rules import Rule, listed
from nodeplug.core import company
from nodeplug.core.errors import TryAgain
from nodeplug.core.record import Record
from nodeplug.core.steps import Steps
from nodeplug.kernel.netlink import NetlinkError, netfilter
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import BRIDGE, INET, IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Protocol

    from nodeplug.kernel.netlink import Netlink

    class Table(Protocol):
        """One table at one moment. Raises OSError and the errors of `nodeplug.core.errors`."""

        @property
        def family(self) -> int:
            """4 or 6; of nft's own tables also 0 (inet) and 7 (bridge)."""

        def chains(self) -> Sequence[str]: ...

        def has(self, chain: str) -> bool: ...

        def rules(self, chain: str) -> Sequence[Rule]: ...

        def remove(self, rules: Sequence[Rule], chains: Sequence[str]) -> bool: ...

    Plan = Callable[[Table], "Change"]

_FAMILIES = {4: IPV4, 6: IPV6, 0: INET, 7: BRIDGE}
_IP = (4, 6)


class Change(Record):
    """Rules to remove, and chains to remove with all rules in them; what jumps to a chain is named before it."""

    rules: tuple[Rule, ...] = ()
    chains: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rules or self.chains)


NOTHING = Change()


class NftTable:
    """A table of nf_tables, iptables-nft's among them; each chain is read when it is asked for."""

    def __init__(self, netlink: Netlink, family: int, table: str) -> None:
        self.family = family
        self._netlink = netlink
        self._family = _FAMILIES[family]
        self._table = table

    def chains(self) -> list[str]:
        return [chain.name for chain in messages.chains(self._netlink, self._family, self._table)]

    def has(self, chain: str) -> bool:
        return messages.chain(self._netlink, self._family, self._table, chain) is not None

    def rules(self, chain: str) -> list[Rule]:
        return listed(self._netlink, self._family, self._table, chain)

    def remove(self, rules: Sequence[Rule], chains: Sequence[str]) -> bool:
        """In one transaction; False when somebody has changed the table meanwhile."""
        place = self._family, self._table
        change = [
            *[messages.delete_rule(*place, rule.chain, int(rule.key)) for rule in rules if rule.chain not in chains],
            *[messages.delete_rule(*place, chain) for chain in chains],
            *[messages.delete_chain(*place, chain) for chain in chains],
        ]
        for error in messages.attempt(self._netlink, change):
            if error.errno in (errno.ENOENT, errno.EBUSY):
                return False
            raise error
        return True


def change_iptables(table: str, plan: Plan, *, hints: Collection[bytes] = (PREFIX,)) -> None:
    """Carry out the plan in each of iptables' tables of that name; iptables-legacy's only where it has one of `hints`.

    It goes on after an error, and raises the first one at the end.
    """
    steps = Steps()
    with company.present().lend(netfilter) as netlink:
        if has_nf_tables(netlink):
            for native in [NftTable(netlink, family, table) for family in _IP]:
                steps.run(lambda native=native: _carry_out(lambda: native, plan))  # type: ignore[misc]  # bound now
    for family in _IP:
        steps.run(lambda family=family: _carry_out(lambda: _legacy(family, table, hints), plan))  # type: ignore[misc]  # likewise
    steps.close()


def change_nft(family: int, table: str, plan: Plan) -> None:
    """Carry out the plan in one nft table; one that is not there has no rules."""
    with company.present().lend(netfilter) as netlink:
        if has_nf_tables(netlink):
            _carry_out(lambda: NftTable(netlink, family, table), plan)


def _legacy(family: int, table: str, hints: Collection[bytes]) -> Table | None:
    from nodeplug.kernel import xtables

    if table not in xtables.tables(family):
        return None
    from nodeplug.cni.reference.legacy import LegacyTable

    return LegacyTable.look(family, table, hints)


def _carry_out(look: Callable[[], Table | None], plan: Plan) -> None:
    for _ in range(ATTEMPTS):
        table = look()
        change = NOTHING if table is None else plan(table)
        if not change or (table is not None and table.remove(change.rules, change.chains)):
            return
    raise TryAgain("the tables of iptables kept changing while the reference plugins' rules were removed from them")


def has_nf_tables(netlink: Netlink) -> bool:
    """False on a kernel without it, where the reference's rules are those of iptables-legacy."""
    try:
        messages.generation(netlink)
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True
