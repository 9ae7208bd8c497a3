"""DHCP messages in and out of bytes: RFC 2131 and 2132, with options that overflow (52) and long ones (RFC 3396).

Pure; what the values of options mean is in `options`. Whatever arrives comes from a network, so nothing of it is
believed before it was looked at.
"""

from __future__ import annotations

import struct

from nodeplug.core.errors import Malformed
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = range(1, 8)

REQUESTED_ADDRESS = 50
LEASE_TIME = 51
_OVERLOAD = 52
TYPE = 53
SERVER = 54
REQUEST_LIST = 55
TEXT = 56
LARGEST_MESSAGE = 57
RENEW_AFTER = 58
REBIND_AFTER = 59
CLIENT_ID = 61
_PAD = 0
_END = 255

_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = bytes((99, 130, 83, 99))
_BROADCAST = 0x8000
_LEAST = 300  # octets of a BOOTP message, below which relays and servers may drop it (RFC 1542, 2.1)
_MOST_OPTIONS = 4096
_ZERO = bytes(4)
_ETHERNET = 1
_LONGEST_ADDRESS = 16


class Message(Record):
    """One message. Addresses are 4 bytes, all zero for none; `options` by number, a long one in one piece."""

    reply: bool
    xid: int
    client: bytes
    """The client's hardware address (chaddr); empty where the link has none that fits."""
    hardware: int = _ETHERNET
    seconds: int = 0
    broadcast: bool = False
    """Answer to everybody: the client hears nothing else yet."""
    ciaddr: bytes = _ZERO
    yiaddr: bytes = _ZERO
    siaddr: bytes = _ZERO
    giaddr: bytes = _ZERO
    options: Mapping[int, bytes]

    @property
    def type(self) -> int:
        """DISCOVER ... RELEASE; 0 for a plain BOOTP message."""
        found = self.options.get(TYPE, b"")
        return found[0] if len(found) == 1 else 0

    @property
    def server(self) -> bytes:
        """The server's identifier; empty where it named none."""
        found = self.options.get(SERVER, b"")
        return found if len(found) == 4 and any(found) else b""


def build(message: Message) -> bytes:
    """The message as it goes into a UDP packet."""
    header = _HEADER.pack(
        2 if message.reply else 1,
        message.hardware,
        len(message.client),
        0,
        message.xid,
        min(message.seconds, 0xFFFF),
        _BROADCAST if message.broadcast else 0,
        message.ciaddr,
        message.yiaddr,
        message.siaddr,
        message.giaddr,
        message.client,
        b"",
        b"",
        _COOKIE,
    )
    parts = [header]
    for code, value in message.options.items():
        # RFC 3396, section 7: more than one length can say is split, in order.
        pieces = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
        parts += [bytes((code, len(piece))) + piece for piece in pieces]
    parts.append(bytes((_END,)))
    whole = b"".join(parts)
    return whole + bytes(max(0, _LEAST - len(whole)))


def parse(data: bytes) -> Message:
    """Raises `Malformed` with what is wrong."""
    if len(data) < _HEADER.size:
        raise Malformed(f"a DHCP message of {len(data)} bytes")
    op, hardware, length, _hops, xid, seconds, flags, ciaddr, yiaddr, siaddr, giaddr, client, sname, file, cookie = (
        _HEADER.unpack_from(data)
    )
    if op not in (1, 2):
        raise Malformed(f"a DHCP message with op {op}")
    if cookie != _COOKIE:
        raise Malformed("a BOOTP message without DHCP's options")
    if length > _LONGEST_ADDRESS:
        raise Malformed(f"a DHCP message with a hardware address of {length} bytes")
    found: dict[int, bytes] = {}
    _read(data[_HEADER.size :], found, complete=False)
    overload = found.pop(_OVERLOAD, b"")
    # RFC 2131, section 4.1: options go on in `file`, then in `sname`; each of these has an end of its own.
    if overload in (b"\1", b"\3"):
        _read(file, found, complete=True)
    if overload in (b"\2", b"\3"):
        _read(sname, found, complete=True)
    found.pop(_OVERLOAD, None)
    return Message(
        reply=op == 2,
        xid=xid,
        client=client[:length],
        hardware=hardware,
        seconds=seconds,
        broadcast=bool(flags & _BROADCAST),
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        siaddr=siaddr,
        giaddr=giaddr,
        options=found,
    )


def _read(data: bytes, found: dict[int, bytes], *, complete: bool) -> None:
    """Add the options of one field. Many servers forget the end at the end of the message; nobody does elsewhere."""
    at = 0
    while at < len(data):
        code = data[at]
        at += 1
        if code == _PAD:
            continue
        if code == _END:
            return
        if at >= len(data) or at + 1 + data[at] > len(data):
            raise Malformed(f"DHCP option {code} is cut off")
        value = data[at + 1 : at + 1 + data[at]]
        at += 1 + len(value)
        found[code] = found.get(code, b"") + value
        if sum(map(len, found.values())) > _MOST_OPTIONS:
            raise Malformed(f"DHCP options of more than {_MOST_OPTIONS} bytes")
    if complete and any(data):
        raise Malformed("DHCP options in an overloaded field have no end")
