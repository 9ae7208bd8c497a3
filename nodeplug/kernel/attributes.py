"""Netlink attributes: length, type, value, padded to four bytes. See netlink(7).

Every netlink room writes its messages of these and reads the answers by them. Imports nothing of nodeplug.
"""

from __future__ import annotations

import struct
from sys import byteorder

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

_ATTR = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_WHOLE = struct.Struct("=HHI")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))


def attr(type: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes. Raises ValueError when the value does not fit a 16-bit length."""
    length = 4 + len(value)
    if length > 0xFFFF:
        raise ValueError(f"netlink attribute {type & _TYPE_MASK} of {len(value)} bytes; 65531 is the most")
    return _ATTR.pack(length, type) + value + _PADDING[length & 3]


def attr_u8(type: int, value: int) -> bytes:
    return attr(type, bytes((value,)))


def attr_u16(type: int, value: int) -> bytes:
    """In the host's byte order."""
    return attr(type, _U16.pack(value))


def attr_u32(type: int, value: int) -> bytes:
    """In the host's byte order."""
    return _WHOLE.pack(8, type, value)


def attr_text(type: int, value: str) -> bytes:
    """A NUL-terminated string. Raises ValueError when it has a NUL inside, where the kernel would end it."""
    if "\0" in value:
        raise ValueError(f"a NUL character in {value!r}")
    return attr(type, value.encode("utf-8", "surrogateescape") + b"\0")


def nest(type: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(type | _NESTED, b"".join(parts))


def attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in `data` from `offset`; of equal types the last stands. Cut-off attributes end the reading."""
    found = {}
    end = len(data)
    unpack = _ATTR.unpack_from
    while offset + 4 <= end:
        length, type = unpack(data, offset)
        if length < 4 or offset + length > end:
            break
        found[type & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & -4
    return found


def attr_list(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """The attributes in order, equal types kept: for lists, whose elements all have one type."""
    found = []
    end = len(data)
    while offset + 4 <= end:
        length, type = _ATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found.append((type & _TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def number(value: bytes | None) -> int:
    """An unsigned attribute of any width, in the host's byte order; 0 when absent."""
    return int.from_bytes(value, byteorder) if value else 0


def text(value: bytes | None) -> str:
    """A string attribute up to its NUL; empty when absent. `attr_text` makes the same bytes of it again."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if value else ""
