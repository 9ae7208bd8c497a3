"""Packet sockets: IPv4 packets to and from one link, past its addresses, routes and filters. See packet(7).

For protocols that speak before a link has an address. The link's own header is the kernel's business (SOCK_DGRAM).
"""

from __future__ import annotations

import struct
from _socket import AF_PACKET, CMSG_SPACE, SO_BROADCAST, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket

from nodeplug.kernel import libc
from nodeplug.kernel import netns as namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netns import Netns

ETH_P_IP = 0x0800
EVERYBODY = b"\xff" * 6

_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_AUXDATA = struct.Struct("=IIIHHHH")
_CSUMNOTREADY = 0x8
_INSTRUCTION = struct.Struct("=HBBI")
_LARGEST = 64 * 1024


class Packet:
    """One that arrived: the IP packet, the station that sent it, and whether its transport checksum can be checked.

    A packet that never left this machine may not have one as yet: the hardware would have filled it in.
    """

    __slots__ = ("data", "sealed", "sender")

    def __init__(self, data: bytes, sender: bytes, sealed: bool) -> None:
        self.data = data
        self.sender = sender
        self.sealed = sealed


class PacketSocket:
    """All IPv4 packets that reach the link of that name in `netns` and that `accepted` (see `udp_to`) lets pass."""

    def __init__(self, link: str, *, netns: Netns | None, accepted: bytes) -> None:
        def make() -> socket:
            return socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0)

        self._link = link
        self._socket = make() if netns is None else namespaces.inside(netns, make)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            # Before it is bound: what arrives in between would pass unfiltered.
            libc.attach_filter(self._socket.fileno(), accepted)
            self._socket.bind((link, ETH_P_IP))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, packet: bytes, to: bytes = EVERYBODY) -> None:
        """Send an IP packet to the station with that hardware address. Raises OSError (ENETDOWN: the link is down)."""
        self._socket.sendto(packet, (self._link, ETH_P_IP, 0, 0, to))

    def receive(self) -> Packet | None:
        """The next packet; None when there is none now. Raises OSError (ENETDOWN: the link went down)."""
        try:
            data, extra, _flags, address = self._socket.recvmsg(_LARGEST, CMSG_SPACE(_AUXDATA.size))
        except BlockingIOError:
            return None
        sealed = True
        for level, kind, body in extra:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(body) >= _AUXDATA.size:
                sealed = not _AUXDATA.unpack_from(body)[0] & _CSUMNOTREADY
        return Packet(data, bytes(address[4]), sealed)


def udp_to(port: int) -> bytes:
    """A filter (classic BPF) for UDP packets to that port, whole or the first of their fragments."""
    return b"".join(
        _INSTRUCTION.pack(*one)
        for one in (
            (0x30, 0, 0, 9),  # ldb the protocol
            (0x15, 0, 6, 17),  # UDP, or drop
            (0x28, 0, 0, 6),  # ldh flags and fragment offset
            (0x45, 4, 0, 0x1FFF),  # a later fragment: drop
            (0xB1, 0, 0, 0),  # ldxb the header's length
            (0x48, 0, 0, 2),  # ldh the destination port behind it
            (0x15, 0, 1, port),
            (0x06, 0, 0, _LARGEST),  # pass whole
            (0x06, 0, 0, 0),  # drop
        )
    )
