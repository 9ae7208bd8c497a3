"""What of the reference plugins' is there of any pod: `census` asks whether, `nodeplug cni takeover` for all of it.

Read-only. Shared chains, which stay when the last pod has gone, are nobody's and not told.
"""

from __future__ import annotations

from nodeplug.cni.reference import hostports, known, names, tables
from nodeplug.cni.reference.names import FILTER, FORWARD, MASQUERADE_CHAIN, MASQUERADE_TABLE, NAT
from nodeplug.cni.reference.rules import ACCEPT
from nodeplug.cni.reference.tables import NOTHING
from nodeplug.core.errors import doing
from nodeplug.core.inet import Ip
from nodeplug.core.record import Record
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nodeplug.cni.reference.rules import Rule
    from nodeplug.cni.reference.tables import Change, Table

_BRIDGE, _INET = 7, 0
_QUOTED = ' id: "'


class Left(Record):
    """One thing of one pod. `network` and `container` are empty where it does not say."""

    what: str  # masquerade, host port, firewall, MAC guard, IFB
    network: str = ""
    container: str = ""
    detail: str = ""


def everything() -> list[Left]:
    """Rules and links. Raises errors of the house."""
    with doing("cannot look for the IFBs that the reference plugins left"), Netlink(NETLINK_ROUTE) as route:
        ifbs = [link.name for link in links.dump(route, kind="ifb") if names.is_ifb(link.name)]
    return [*rules(), *(Left(what="IFB", detail=name) for name in ifbs)]


def rules() -> list[Left]:
    """Those of netfilter alone. Raises errors of the house."""
    found: list[Left] = []
    with doing("cannot look for what the reference plugins left"):
        tables.change_iptables(NAT, _reading(found, _masquerades))
        tables.change_nft(_INET, MASQUERADE_TABLE, _reading(found, _own_masquerades))
        for mapping in hostports.mappings():
            detail = f"{mapping} to {Ip(packed=mapping.rule.to)}:{mapping.rule.to_port}"
            network = mapping.network
            found.append(Left(what="host port", network=network, container=mapping.container, detail=detail))
        tables.change_iptables(FILTER, _reading(found, _firewall), hints=(FORWARD.encode(),))
        tables.change_nft(_BRIDGE, NAT, _reading(found, _guards))
    return list(dict.fromkeys(found))


def _reading(into: list[Left], read: Callable[[Table], Iterable[Left]]) -> tables.Plan:
    def plan(table: Table) -> Change:
        into.extend(read(table))
        return NOTHING

    return plan


def _masquerades(table: Table) -> Iterable[Left]:
    for rule in table.rules("POSTROUTING"):
        if names.is_masquerade_chain(rule.target):
            network, _, container = rule.comment.removeprefix('name: "').partition(f'"{_QUOTED}')
            yield Left(what="masquerade", network=network, container=container.removesuffix('"'), detail=_host(rule))


def _own_masquerades(table: Table) -> Iterable[Left]:
    for rule in table.rules(MASQUERADE_CHAIN):
        said = dict(part.partition(": ")[::2] for part in rule.comment.split(", "))
        yield Left(what="masquerade", network=said.get("net", ""), container=said.get("id", ""), detail=_host(rule))


def _firewall(table: Table) -> Iterable[Left]:
    owners = {text: container for container, texts in (known.addresses() or {}).items() for text in texts}
    for rule in table.rules(FORWARD):
        if rule.names_host and rule.target == ACCEPT:
            address = _host(rule)
            yield Left(what="firewall", container=owners.get(address, ""), detail=address)


def _guards(table: Table) -> Iterable[Left]:
    for rule in table.rules("PREROUTING"):
        if rule.target.startswith(names.GUARD):
            container, _, _ifname = rule.target.removeprefix(names.GUARD).rpartition("-")
            yield Left(what="MAC guard", container=container, detail=rule.link)


def _host(rule: Rule) -> str:
    address = rule.source or rule.destination
    return str(Ip(packed=address)) if address else ""
