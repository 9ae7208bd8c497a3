"""What source based routing needs, from what a pod has: values in, changes out. No I/O."""

from __future__ import annotations

from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import Record
from nodeplug.kernel.rtnl import routes, rules
from nodeplug.kernel.rtnl.routes import Route
from nodeplug.kernel.rtnl.rules import Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

PROTOCOL = 110
"""By which our rules are known: `ip rule` shows it. The kernel leaves numbers from 19 on to who wants them."""

_FIRST_TABLE = 100
_RESERVED = (253, 254, 255)  # default, main, local


class Source(Record):
    """One address of the interface, and the gateway its packets leave by, where there is one."""

    address: Net
    gateway: Ip | None


class Plan(Record):
    """Routes to add, rules to add, then routes to remove, each in this order."""

    added: tuple[Route, ...]
    rules: tuple[Rule, ...]
    removed: tuple[Route, ...]
    replaced: tuple[Route, ...]
    """What stands in the main table and is to be `added` anew with a source."""


def rule(address: Net, table: int) -> Rule:
    """Packets from this address ask that table."""
    packed = address.ip.packed
    family = rules.family_of(packed)
    return Rule(family=family, src=packed, prefix=8 * len(packed), table=table, protocol=PROTOCOL)


def by_table(sources: Iterable[Source], table: int) -> Plan:
    """Rules alone."""
    return Plan(added=(), rules=tuple([rule(source.address, table) for source in sources]), removed=(), replaced=())


def free_tables(standing: Iterable[Rule], known: Iterable[Route]) -> Iterator[int]:
    """Tables that no rule leads to and that no route is in, ascending."""
    used = {rule.table for rule in standing} | {route.table for route in known} | set(_RESERVED)
    table = _FIRST_TABLE
    while True:
        if table not in used:
            yield table
        table += 1


def by_source(
    sources: Sequence[Source], own: Sequence[Route], tables: Iterator[int], index: int, *, hints: bool
) -> Plan:
    """A table for each address, with the interface's routes and a default route, and a rule that leads to it.

    `own` are the routes of the main table that leave by the interface `index`. Those that are copied are removed there;
    with `hints` the direct ones stay, with the address as source. One that fits no address stays as it is, and so does
    that of the link-local network, without which the pod hears no IPv6 neighbour.
    """
    added: dict[tuple[object, ...], Route] = {}
    led: list[Rule] = []
    copied: list[Route] = []
    for source, table in zip(sources, tables, strict=False):
        mine = [route for route in own if _fits(route, source.address)]
        copies = [route.replace(table=table, flags=0, protocol=routes.BY_BOOT) for route in mine]
        copies += _direct(source.address, mine, table, index)
        if source.gateway is not None:
            copies.append(_default(source.gateway, table, index))
        # Gateways are looked up when a route is added: the direct routes go first. The last of equal ones counts.
        for route in sorted(copies, key=_has_gateway):
            added[_identity(route)] = route
        led.append(rule(source.address, table))
        copied += [route for route in mine if route not in copied]
    removed = [route for route in copied if not _is_link_local(route)]
    replaced: list[Route] = []
    hinted: list[Route] = []
    if hints:
        for source in sources:
            for route in removed:
                if not _has_gateway(route) and _names(route, source.address.network) and route not in replaced:
                    replaced.append(route)
                    hinted.append(route.replace(src=source.address.ip.packed, flags=0))
        removed = [route for route in removed if _has_gateway(route)]
    # A route that goes by a gateway goes first, or the kernel would know no way to the gateway any more.
    removed.sort(key=_has_gateway, reverse=True)
    return Plan(added=(*added.values(), *hinted), rules=tuple(led), removed=tuple(removed), replaced=tuple(replaced))


def stale(
    standing: Iterable[Rule], addresses: Collection[bytes], present: Collection[bytes], table: int | None
) -> list[Rule]:
    """The rules to delete with an interface that has, or had, these addresses.

    Those of other plugins of this kind are known by the address alone. Ours whose address no interface of the pod has
    (`present`) go as well: theirs is gone, and nothing else tells which it was.
    """
    return [
        rule
        for rule in standing
        if rule.src
        and rule.prefix == 8 * len(rule.src)
        and table in (None, rule.table)
        and (rule.src in addresses or (rule.protocol == PROTOCOL and rule.src not in present))
    ]


def faults(
    sources: Iterable[Source], standing: Sequence[Rule], known: Sequence[Route], index: int, table: int | None
) -> list[str]:
    """What is not as ADD left it, as sentences."""
    found = []
    by_table: Mapping[int, list[Route]] = {
        number: [route for route in known if route.table == number] for number in {route.table for route in known}
    }
    for source in sources:
        packed = source.address.ip.packed
        led = [rule.table for rule in standing if rule.src == packed and rule.prefix == 8 * len(packed)]
        if not led or table not in (None, *led):
            where = f"table {table}" if table is not None else "a table of its own"
            found.append(f"no rule leads packets from {source.address.ip} to {where}")
            continue
        if table is not None or source.gateway is None:
            continue
        ways = [route for number in led for route in by_table.get(number, ()) if _is_default(route, source)]
        if not any(route.gateway == source.gateway.packed and route.oif == index for route in ways):
            found.append(f"table {led[0]} has no default route by {source.gateway} for {source.address.ip}")
    return found


def _fits(route: Route, address: Net) -> bool:
    """Whether packets from the address may want the route: it is for its network's gateway or source, or for all."""
    if len(route.dst) != len(address.ip.packed):
        return False
    via = [hop.gateway for hop in route.nexthops] or [route.gateway]
    if route.src is None and not any(via):
        return True
    return any(known is not None and address.holds(Ip(packed=known)) for known in (route.src, *via))


def _direct(address: Net, known: Sequence[Route], table: int, index: int) -> list[Route]:
    """The route to the address's own network where none is known, as after an ADD that was killed."""
    network = address.network
    if address.prefix == address.ip.bits or any(_names(route, network) for route in known):
        return []
    return [Route(dst=network.ip.packed, prefix=network.prefix, oif=index, table=table)]


def _default(gateway: Ip, table: int, index: int) -> Route:
    return Route(dst=bytes(len(gateway.packed)), prefix=0, gateway=gateway.packed, oif=index, table=table)


def _identity(route: Route) -> tuple[object, ...]:
    return route.table, route.dst, route.prefix, route.priority


def _has_gateway(route: Route) -> bool:
    return route.gateway is not None or any(hop.gateway is not None for hop in route.nexthops)


def _names(route: Route, network: Net) -> bool:
    return route.dst == network.ip.packed and route.prefix == network.prefix


def _is_link_local(route: Route) -> bool:
    return len(route.dst) == 16 and route.type == routes.UNICAST and Ip(packed=route.dst).is_link_local


def _is_default(route: Route, source: Source) -> bool:
    return route.prefix == 0 and len(route.dst) == len(source.address.ip.packed)
