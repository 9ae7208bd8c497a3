"""IPv4 and UDP around a DHCP message, for packet sockets: RFC 791, 768. Pure.

What the kernel would check for a socket of its own is checked here.
"""

from __future__ import annotations

import struct

SERVER_PORT = 67
CLIENT_PORT = 68
EVERYBODY = b"\xff" * 4
NOBODY = bytes(4)

_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PSEUDO = struct.Struct("!4s4sBBH")
_UDP_NUMBER = 17
_TTL = 64
_CS6 = 0xC0  # network control, as other clients mark it
_FRAGMENT = 0x3FFF  # "more fragments", or an offset


def wrap(message: bytes, *, source: bytes = NOBODY, destination: bytes = EVERYBODY) -> bytes:
    """A client's message as an IP packet to a server."""
    udp_length = _UDP.size + len(message)
    pseudo = _PSEUDO.pack(source, destination, 0, _UDP_NUMBER, udp_length)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, udp_length, 0)
    sum = _checksum(pseudo + udp + message) or 0xFFFF  # zero would say that there is none
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, udp_length, sum)
    total = _IP.size + udp_length
    header = _IP.pack(0x45, _CS6, total, 0, 0, _TTL, _UDP_NUMBER, 0, source, destination)
    header = _IP.pack(0x45, _CS6, total, 0, 0, _TTL, _UDP_NUMBER, _checksum(header), source, destination)
    return header + udp + message


def unwrap(packet: bytes, *, sealed: bool = True) -> bytes | None:
    """The message in an IP packet from a server to a client; None when it is anything else, or damaged.

    Unless `sealed` the UDP checksum is not there yet: the packet has not left the machine it comes from.
    """
    if len(packet) < _IP.size or packet[0] >> 4 != 4:
        return None
    start = (packet[0] & 0xF) * 4
    _version, _tos, total, _id, fragment, _ttl, protocol, _sum, source, destination = _IP.unpack_from(packet)
    if start < _IP.size or total < start + _UDP.size or total > len(packet):
        return None
    if protocol != _UDP_NUMBER or fragment & _FRAGMENT or _checksum(packet[:start]):
        return None
    source_port, destination_port, length, checksum = _UDP.unpack_from(packet, start)
    if (source_port, destination_port) != (SERVER_PORT, CLIENT_PORT) or not _UDP.size <= length <= total - start:
        return None
    udp = packet[start : start + length]
    if sealed and checksum:
        pseudo = _PSEUDO.pack(source, destination, 0, _UDP_NUMBER, length)
        if _checksum(pseudo + udp):
            return None
    return udp[_UDP.size :]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that contains its own."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
