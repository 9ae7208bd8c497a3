"""What all nf_tables messages share: the subsystem's header, big-endian attributes, user data, data types.

Used by the other modules of this package. Numbers of nftables' data types and user data come from its user space; the
kernel stores them for `nft` and never looks inside.
"""

from __future__ import annotations

import struct

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, text
from nodeplug.kernel.netlink import Message

INET = 1
IPV4 = 2
BRIDGE = 7
IPV6 = 10

FAMILY_NAMES = {INET: "inet", IPV4: "ip", BRIDGE: "bridge", IPV6: "ip6"}

NFNL_SUBSYS_NFTABLES = 10
COMMENT_LIMIT = 128
"""Bytes of a comment that `nft -f` accepts; a longer one would list, but not load again."""

_BE16 = struct.Struct(">H")
_BE32 = struct.Struct(">I")
_BE64 = struct.Struct(">Q")
_HOST32 = struct.Struct("=I")

HOST_ORDER = 1
BIG_ENDIAN = 2


class Field(Record):
    """A data type of nftables: the number that `nft` prints it by, its size in bytes, the order of its bytes."""

    name: str
    number: int
    size: int
    order: int = BIG_ENDIAN


IPV4_ADDR = Field(name="ipv4_addr", number=7, size=4)
IPV6_ADDR = Field(name="ipv6_addr", number=8, size=16)
INET_PROTO = Field(name="inet_proto", number=12, size=1)
INET_SERVICE = Field(name="inet_service", number=13, size=2)
IFNAME = Field(name="ifname", number=41, size=16, order=HOST_ORDER)

_TYPE_BITS = 6
MAX_FIELDS = 5
"""Types packed into 32 bits at six bits each; `nft` reads no more."""


def packed_type(fields: tuple[Field, ...]) -> int:
    """The number of a type, or of the concatenation of several."""
    number = 0
    for field in fields:
        number = number << _TYPE_BITS | field.number
    return number


def packed_size(fields: tuple[Field, ...]) -> int:
    """Bytes of a key: one field has its own size, in a concatenation each fills whole registers of four."""
    if len(fields) == 1:
        return fields[0].size
    return sum((field.size + 3) & ~3 for field in fields)


def concat(*values: bytes) -> bytes:
    """The key or data of a concatenation: each value padded to four bytes."""
    return b"".join(value + bytes(-len(value) % 4) for value in values)


def port(number: int) -> bytes:
    """An inet_service."""
    return _BE16.pack(number)


def be32(type: int, value: int) -> bytes:
    """An attribute of 32 bits in network order, as all of nf_tables' are."""
    return attr(type, _BE32.pack(value & 0xFFFFFFFF))


def be64(type: int, value: int) -> bytes:
    return attr(type, _BE64.pack(value))


def read_be32(value: bytes | None, default: int = 0) -> int:
    """The number in an attribute; `default` when it is absent or cut."""
    return _BE32.unpack_from(value)[0] if value is not None and len(value) >= 4 else default


def read_be64(value: bytes | None) -> int:
    return _BE64.unpack_from(value)[0] if value is not None and len(value) >= 8 else 0


def user_data(*items: tuple[int, bytes]) -> bytes:
    """nftables' own type-length-value list. A value has at most 255 bytes, all together 256."""
    return b"".join(bytes((type, len(value))) + value for type, value in items)


def user_number(type: int, value: int) -> tuple[int, bytes]:
    """An item of user data that is a number, in the host's order as nft writes it."""
    return type, _HOST32.pack(value)


def comment_data(type: int, comment: str) -> tuple[int, bytes]:
    """An item of user data that is a comment, cut to what `nft -f` accepts without splitting a character."""
    cut = comment.encode()[: COMMENT_LIMIT - 1].decode("utf-8", "ignore")
    return type, cut.encode() + b"\0"


def read_comment(data: bytes | None, type: int = 0) -> str:
    """The comment in user data, "" when there is none or the data is cut off."""
    data = data or b""
    offset = 0
    while offset + 2 <= len(data):
        found, length = data[offset], data[offset + 1]
        if offset + 2 + length > len(data):
            break
        if found == type:
            return text(data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


def header(family: int, *, resource: int = 0) -> bytes:
    """struct nfgenmsg."""
    return bytes((family, 0)) + _BE16.pack(resource)


def message(
    kind: int, flags: int, family: int, body: bytes, call: str, subject: object, *, asks: bool = False
) -> Message:
    """One nf_tables message; `call` and `subject` name it in errors, `asks` is as `Message` has it."""
    return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, header(family) + body, call, subject, asks=asks)


def subject(family: int, *names: str) -> str:
    """ "inet nodeplug ports4", as nft writes it."""
    return " ".join((FAMILY_NAMES.get(family, str(family)), *names))
