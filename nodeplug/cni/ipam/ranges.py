"""Which addresses a network may give: the rules of host-local's ranges, pure.

A range set gives one address; its ranges are tried one after the other, round and round. The rules are those of the
reference plugin, with the departures its page (docs/cni/host-local.md) names. Used by `host_local`; no I/O.
"""

from __future__ import annotations

from nodeplug.cni.contract import ip_or_none
from nodeplug.core.document import net
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Ip
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nodeplug.core.inet import Net

    Problems = list[tuple[str, str]]


_INVALID = "the address ranges are not valid"


class RangeConf(Record):
    """One range as a configuration writes it."""

    subnet: Net = key(net, help="the network, whose prefix length the pod's address gets")
    range_start: Ip | None = key(
        ip_or_none,
        default=None,
        name="rangeStart",
        help="first address to give; the network's first host (.1) if unset",
    )
    range_end: Ip | None = key(
        ip_or_none, default=None, name="rangeEnd", help="last address to give; the network's last host if unset"
    )
    gateway: Ip | None = key(
        ip_or_none, default=None, help="named in the result, given to nobody; the network's first host (.1) if unset"
    )


class Range(Record):
    """Addresses `first` to `last` by numeric value, both included, but for those `withheld`."""

    subnet: Net
    first: int
    last: int
    gateway: Ip
    withheld: frozenset[int]

    def holds(self, address: Ip) -> bool:
        """Whether it lies between the ends; it may still be withheld."""
        return address.family == self.subnet.family and self.first <= address.value <= self.last

    @property
    def capacity(self) -> int:
        """How many addresses it can give."""
        return self.last - self.first + 1 - len(self.withheld)

    def __str__(self) -> str:
        return f"{Ip.of(self.first, self.subnet.family)}-{Ip.of(self.last, self.subnet.family)}"


class RangeSet(Record):
    """Ranges of one family; each container gets one address out of all of them."""

    ranges: tuple[Range, ...]

    @property
    def family(self) -> int:
        return self.ranges[0].subnet.family

    @property
    def capacity(self) -> int:
        return sum(found.capacity for found in self.ranges)

    def range_of(self, address: Ip) -> Range | None:
        return next((found for found in self.ranges if found.holds(address)), None)

    def turn(self, last: Ip | None) -> Iterator[tuple[Range, int]]:
        """Every address it can give, once, beginning after `last`, which itself comes at the end.

        So an address that was just released is given again only when all others had their turn.
        """
        at = next((n for n, found in enumerate(self.ranges) if last is not None and found.holds(last)), None)
        if at is None or last is None:
            spans = [(found, found.first, found.last) for found in self.ranges]
        else:
            here = self.ranges[at]
            others = self.ranges[at + 1 :] + self.ranges[:at]
            spans = [
                (here, last.value + 1, here.last),
                *((found, found.first, found.last) for found in others),
                (here, here.first, last.value),
            ]
        for found, low, high in spans:
            for value in range(low, high + 1):
                if value not in found.withheld:
                    yield found, value

    def __str__(self) -> str:
        return ",".join(str(found) for found in self.ranges)


def resolve(given: Sequence[tuple[str, Sequence[tuple[str, RangeConf]]]], version: str) -> tuple[RangeSet, ...]:
    """The range sets of a configuration of that specification version, with defaults filled in and checked.

    `given` has each set, and each range in it, with its path in the document. Raises `ConfigInvalid` with all problems.
    """
    problems: Problems = []
    sets: list[tuple[str, list[tuple[str, Range]]]] = []
    for path, members in given:
        if not members:
            problems.append((path, "a range set without ranges gives no address"))
        found = [(where, one) for where, conf in members if (one := _range(where, conf, problems)) is not None]
        if len({one.subnet.family for _, one in found}) > 1:
            problems.append((path, "mixed address families: put IPv4 and IPv6 into range sets of their own"))
        sets.append((path, found))
    _refuse_overlaps([member for _, found in sets for member in found], problems)
    if problems:
        raise ConfigInvalid(_INVALID, problems=problems)
    made = tuple(RangeSet(ranges=tuple(found for _, found in members)) for _, members in sets)
    # A result of these versions has room for one address of each family.
    if version in ("0.1.0", "0.2.0") and len({found.family for found in made}) < len(made):
        raise ConfigInvalid(
            f"CNI version {version} does not support more than 1 address per family",
            hint="use cniVersion 0.3.0 or later, or one range set for each family",
        )
    made = _withhold(made)
    for (path, _), whole in zip(sets, made, strict=True):
        if whole.capacity == 0:
            problems.append((path, f"range set {whole} holds no address that may be given"))
    if problems:
        raise ConfigInvalid(_INVALID, problems=problems)
    return made


def _range(path: str, conf: RangeConf, problems: Problems) -> Range | None:
    """The range, or None when its rules are broken."""
    before = len(problems)
    subnet = conf.subnet
    if subnet.prefix > subnet.ip.bits - 2:
        limit = f"/{subnet.ip.bits - 2}"
        problems.append((path, f"network {subnet} is too small to allocate from; it must be {limit} or larger"))
        return None
    if subnet.ip.value != subnet.first:
        problems.append((path, f"network {subnet} has host bits set; of that length the network is {subnet.network}"))
        return None
    family = subnet.family
    gateway = conf.gateway or Ip.of(subnet.first + 1, family)
    # A pod reaches a link-local gateway whatever its own network is; any other must be its neighbour.
    if gateway.family != family or not (subnet.holds(gateway) or gateway.is_link_local):
        problems.append((f"{path}.gateway", f"gateway {gateway} is not in network {subnet}"))
    ends = []
    for name, end in (("rangeStart", conf.range_start), ("rangeEnd", conf.range_end)):
        if end is not None and end.family != family:
            problems.append((f"{path}.{name}", f"{end} is not of the same family as network {subnet}"))
        elif end is not None and not subnet.holds(end):
            problems.append((f"{path}.{name}", f"{end} is not in network {subnet}"))
        ends.append(end)
    if len(problems) > before:
        return None
    first = ends[0].value if ends[0] is not None else subnet.first + 1
    last = ends[1].value if ends[1] is not None else subnet.last - (family == 4)
    if first > last:
        problems.append((path, f"the range begins at {Ip.of(first, family)}, after its end {Ip.of(last, family)}"))
        return None
    return Range(subnet=subnet, first=first, last=last, gateway=gateway, withheld=frozenset())


def _refuse_overlaps(ranges: Sequence[tuple[str, Range]], problems: Problems) -> None:
    """Note each range that begins before another of its family has ended."""
    highest: dict[int, tuple[str, Range]] = {}
    for path, found in sorted(ranges, key=lambda member: (member[1].subnet.family, member[1].first)):
        other = highest.get(found.subnet.family)
        if other is not None and found.first <= other[1].last:
            problems.append((path, f"range {found} overlaps with {other[1]} of {other[0]}"))
        if other is None or found.last > other[1].last:
            highest[found.subnet.family] = (path, found)


def _withhold(sets: tuple[RangeSet, ...]) -> tuple[RangeSet, ...]:
    """The same, none of them giving a gateway of any, nor an IPv4 network's own address or its broadcast address."""
    gateways = {(found.subnet.family, found.gateway.value) for members in sets for found in members.ranges}

    def without(found: Range) -> Range:
        withheld = {value for family, value in gateways if family == found.subnet.family}
        if found.subnet.family == 4:
            withheld |= {found.subnet.first, found.subnet.last}
        return found.replace(withheld=frozenset(v for v in withheld if found.first <= v <= found.last))

    return tuple(RangeSet(ranges=tuple(without(found) for found in members.ranges)) for members in sets)
