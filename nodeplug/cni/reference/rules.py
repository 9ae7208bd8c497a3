"""A rule as far as it matters here, and how nf_tables' rules are read as such: iptables-nft's own, and nft's.

iptables-nft keeps what nft has no words for as x_tables' own structures (comments, DNAT), and which those are differs
between its versions; both ways are read. See the kernel's uapi/linux/netfilter/nf_nat.h and xt_comment.h.
"""

from __future__ import annotations

from nodeplug.cni.filter.layout import PROTOCOLS
from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attrs, text
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.nft.expressions import Expression

ACCEPT = "ACCEPT"


class Rule(Record):
    """What it looks for and what becomes of a packet. Addresses are packed, and there only where it names one host.

    `key` says to its table which one it is: a number of nf_tables, or the words of iptables behind `-A chain`.
    """

    chain: str
    key: int | str
    target: str = ""  # a chain, or ACCEPT
    comment: str = ""
    source: bytes = b""
    destination: bytes = b""
    protocol: str = ""
    port: int = 0  # it is sent to
    to: bytes = b""  # where it translates to, with `to_port`
    to_port: int = 0
    link: str = ""  # that it comes by

    @property
    def names_host(self) -> bool:
        return bool(self.source or self.destination)


_SOURCES = {IPV4: (12, 4), IPV6: (8, 16)}
_DESTINATIONS = {IPV4: (16, 4), IPV6: (24, 16)}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
_NAT_ADDRESS, _NAT_PORT = 3, 5
_COMPATIBLE = 3  # the attribute of a match or target with x_tables' structure


def listed(netlink: Netlink, family: int, table: str, chain: str) -> list[Rule]:
    """The rules of one chain; none when it is not there. Raises `NetlinkError`."""
    return [read(rule, family) for rule in messages.rules(netlink, family, table, chain)]


def read(rule: messages.Rule, family: int) -> Rule:
    """`family` is nf_tables' (IPV4, IPV6, INET, BRIDGE)."""
    found: dict[str, object] = {}
    registers: dict[int, bytes] = {}
    families = (family,) if family in _SOURCES else tuple(_SOURCES)
    loaded: tuple[object, ...] = ()
    for part in rule.expressions:
        verdict = x.read_verdict(part)
        if verdict is not None:
            found["target"] = ACCEPT if verdict[0] == x.ACCEPT else verdict[1]
        elif part.name == "immediate":
            registers[part.number(1)] = _value(part, 2)
        elif part.name == "cmp" and loaded and part.number(2) == x.EQ:
            found |= _compared(loaded, _value(part, 3), families)
        elif part.name == "nat":
            found["to"] = registers.get(part.number(_NAT_ADDRESS), b"")
            found["to_port"] = int.from_bytes(registers.get(part.number(_NAT_PORT), b"")[:2], "big")
        elif part.name == "target" and _called(part) == "DNAT":
            found |= _dnat(part, family)
        elif part.name == "match" and _called(part) == "comment":
            found["comment"] = text(dict(part.attributes).get(_COMPATIBLE))
        loaded = _loads(part)
    return Rule(chain=rule.chain, key=rule.handle, **{"comment": rule.comment, **found})  # type: ignore[arg-type]


def _loads(part: Expression) -> tuple[object, ...]:
    """What an expression loads to be compared at once; what is masked first names no single host."""
    if part.name == "payload":
        return "payload", part.number(2), part.number(3), part.number(4)
    return ("meta", part.number(2)) if part.name == "meta" else ()


def _compared(loaded: tuple[object, ...], value: bytes, families: tuple[int, ...]) -> dict[str, object]:
    kind, *where = loaded
    if kind == "meta":
        if where == [x.META_L4PROTO]:
            return {"protocol": _NAMES.get(value[0] if value else 0, "")}
        return {"link": text(value)} if where == [x.META_IIFNAME] else {}
    if where == [x.TRANSPORT, 2, 2]:
        return {"port": int.from_bytes(value, "big")}
    for family in families:
        if where == [x.NETWORK, *_SOURCES[family]]:
            return {"source": value}
        if where == [x.NETWORK, *_DESTINATIONS[family]]:
            return {"destination": value}
    return {}


def _dnat(part: Expression, family: int) -> dict[str, object]:
    """nf_nat_range(2), or for IPv4 its first form, which counts ranges in front of them and has short addresses."""
    info = dict(part.attributes).get(_COMPATIBLE, b"")
    size = 16 if family == IPV6 else 4
    begin, room = (4, 16) if part.number(2) or family == IPV6 else (8, 4)
    port = begin + 2 * room
    return {"to": info[begin : begin + size], "to_port": int.from_bytes(info[port : port + 2], "big")}


def _called(part: Expression) -> str:
    return text(dict(part.attributes).get(1))


def _value(part: Expression, type: int) -> bytes:
    return attrs(dict(part.attributes).get(type, b"")).get(1, b"")
