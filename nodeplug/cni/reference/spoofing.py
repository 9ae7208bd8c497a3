"""`macspoofchk` of the reference's bridge: two chains for each pod in the nft table bridge nat."""

from __future__ import annotations

from nodeplug.cni.reference import names, tables
from nodeplug.cni.reference.tables import NOTHING, Change
from nodeplug.core.errors import doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.reference.tables import Table

_BRIDGE = 7
_TABLE = "nat"
_BASE = "PREROUTING"
_MAC = "-mac"


def remove(attachment: Attachment) -> None:
    """Remove the attachment's chains; none there is success."""
    chain = names.guard(attachment.container, attachment.ifname)
    with doing(f"cannot remove the reference plugin's MAC guard of {attachment}"):
        tables.change_nft(_BRIDGE, _TABLE, lambda table: _without(table, {chain}) if table.has(chain) else NOTHING)


def collect(valid: Collection[Attachment]) -> None:
    """Remove the chains of pods whose port is gone, unless they are in `valid`: names tell of no network."""
    kept = {names.guard(attachment.container, attachment.ifname) for attachment in valid}

    def plan(table: Table) -> Change:
        jumps = [rule for rule in table.rules(_BASE) if rule.target.startswith(names.GUARD)]
        with Netlink(NETLINK_ROUTE) as route:
            gone = [rule for rule in jumps if rule.target not in kept and links.find(route, rule.link) is None]
        return _without(table, {rule.target for rule in gone})

    with doing("cannot remove the reference plugins' MAC guards of ports that are gone"):
        tables.change_nft(_BRIDGE, _TABLE, plan)


def _without(table: Table, guards: Collection[str]) -> Change:
    """The second chain of each is jumped to by the first, so it goes after it."""
    if not guards:
        return NOTHING
    jumps = [rule for rule in table.rules(_BASE) if rule.target in guards]
    chains = [chain for guard in sorted(guards) for chain in (guard, guard + _MAC) if table.has(chain)]
    return Change(rules=tuple(jumps), chains=tuple(chains))
