"""What a rule does, one expression after another on the kernel's registers, in the forms that `nft` writes and reads.

Pure: every function returns one encoded expression; `messages.add_rule` takes them in order. Registers are numbered in
words of four bytes from `R0`; concatenations fill consecutive words.
"""

from __future__ import annotations

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_list, attr_text, attr_u8, attrs, nest, text
from nodeplug.kernel.nft.wire import be32, be64, read_be32

R0 = 8
"""The first word of the register file (NFT_REG32_00); `R0 + n` is the n-th, up to 15."""

_VERDICT_REGISTER = 0

META_IIF = 4
META_OIF = 5
META_IIFNAME = 6
META_OIFNAME = 7
META_MARK = 3
META_NFPROTO = 15
META_L4PROTO = 16

LINK = 0
NETWORK = 1
TRANSPORT = 2

EQ = 0
NEQ = 1

CT_STATE = 0
CT_DIRECTION = 1
CT_STATUS = 2
CT_MARK = 3
CT_PROTO_DST = 12
DIR_ORIGINAL = 0
DIR_REPLY = 1

STATE_INVALID = 0x1
STATE_ESTABLISHED = 0x2
STATE_RELATED = 0x4

STATUS_DNAT = 0x20

FIB_DADDR = 0x2
FIB_SADDR = 0x1
FIB_OIF = 1
FIB_ADDRTYPE = 3
RTN_LOCAL = 2

ACCEPT = 1
DROP = 0
JUMP = -3
GOTO = -4
RETURN = -5

_SNAT = 0
_DNAT = 1
_RANGE_MAP_IPS = 0x1
_RANGE_PROTO_SPECIFIED = 0x2
_LOOKUP_INVERTED = 0x1


class Expression(Record):
    """One expression as the kernel gives it back: its name and its attributes by type."""

    name: str
    attributes: tuple[tuple[int, bytes], ...]

    def number(self, type: int, default: int = 0) -> int:
        """The attribute `type` read as 32 bits in network order."""
        return read_be32(dict(self.attributes).get(type), default)


def read(data: bytes) -> tuple[Expression, ...]:
    """The expressions in NFTA_RULE_EXPRESSIONS; what is cut off is left out."""
    found = []
    for _, item in attr_list(data):
        parts = attrs(item)
        if 1 in parts:
            found.append(Expression(name=text(parts[1]), attributes=tuple(attr_list(parts.get(2, b"")))))
    return tuple(found)


def _expression(name: str, *parts: bytes) -> bytes:
    return nest(1, attr_text(1, name), nest(2, *parts))


def _value(type: int, data: bytes) -> bytes:
    return nest(type, attr(1, data))


def meta(key: int, register: int = R0) -> bytes:
    """Load one META_* fact about the packet."""
    return _expression("meta", be32(2, key), be32(1, register))


def set_meta(key: int, register: int = R0) -> bytes:
    """Change one META_* fact about the packet, such as its mark, to what the register holds."""
    return _expression("meta", be32(2, key), be32(3, register))


def payload(base: int, offset: int, length: int, register: int = R0) -> bytes:
    """Load `length` bytes from `offset` of the LINK, NETWORK or TRANSPORT header."""
    return _expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def cmp(operation: int, value: bytes, register: int = R0) -> bytes:
    """Go on only if the register compares EQ or NEQ with `value`."""
    return _expression("cmp", be32(1, register), be32(2, operation), _value(3, value))


def bitwise(mask: bytes, register: int = R0, *, xor: bytes = b"") -> bytes:
    """register = register & mask ^ xor."""
    xor = xor or bytes(len(mask))
    return _expression(
        "bitwise", be32(1, register), be32(2, register), be32(3, len(mask)), be32(6, 0), _value(4, mask), _value(5, xor)
    )


def lookup(set_name: str, register: int = R0, *, into: int | None = None, inverted: bool = False) -> bytes:
    """Go on only if the set has the key that starts in `register`; a map's data goes to `into`.

    For a verdict map `into` is 0, the verdict register.
    """
    target = b"" if into is None else be32(3, into)
    return _expression(
        "lookup", attr_text(1, set_name), be32(2, register), target, be32(5, _LOOKUP_INVERTED if inverted else 0)
    )


def fib(flags: int, result: int, register: int = R0) -> bytes:
    """Look an address of the packet up in the routing tables, e.g. FIB_DADDR, FIB_ADDRTYPE."""
    return _expression("fib", be32(3, flags), be32(2, result), be32(1, register))


def ct(key: int, register: int = R0, *, direction: int | None = None) -> bytes:
    """Load one CT_* fact about the connection; `direction` chooses a tuple where the key needs one."""
    way = b"" if direction is None else attr_u8(3, direction)
    return _expression("ct", be32(2, key), be32(1, register), way)


def dnat(family: int, address: int, port: int) -> bytes:
    """Give the connection another destination: the address and port in these registers."""
    return _expression(
        "nat",
        be32(1, _DNAT),
        be32(2, family),
        be32(3, address),
        be32(4, address),
        be32(5, port),
        be32(6, port),
        be32(7, _RANGE_MAP_IPS | _RANGE_PROTO_SPECIFIED),
    )


def masquerade() -> bytes:
    """Give the connection the outgoing interface's address as its source."""
    return _expression("masq")


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter", be64(1, 0), be64(2, 0))


def load(value: bytes, register: int = R0) -> bytes:
    """Put constant data into a register."""
    return _expression("immediate", be32(1, register), _value(2, value))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule: ACCEPT, DROP, RETURN, or JUMP and GOTO to `chain`."""
    return _expression("immediate", be32(1, _VERDICT_REGISTER), nest(2, verdict_data(code, chain)))


def read_verdict(expression: Expression) -> tuple[int, str] | None:
    """(code, chain) of an expression that `verdict` made; None for any other."""
    if expression.name != "immediate":
        return None
    parts = attrs(attrs(dict(expression.attributes).get(2, b"")).get(2, b""))
    if 1 not in parts:
        return None
    code = read_be32(parts[1])
    return (code - (1 << 32) if code >> 31 else code), text(parts.get(2))


def verdict_data(code: int, chain: str = "") -> bytes:
    """NFTA_DATA_VERDICT, as a rule or an element of a verdict map carries it."""
    target = attr_text(2, chain) if chain else b""
    return nest(2, be32(1, code), target)
