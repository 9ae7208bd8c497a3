"""What the kernel announces by netlink multicast: links that change, addresses that settle, a ruleset that is replaced.

For waits and for daemons that follow a state. Announcements can be lost when the reader is slow, so whoever listens
reads the state itself after the first look, and again when told that some were lost.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import MSG_TRUNC
from sys import byteorder

from nodeplug.core import company
from nodeplug.kernel import libc
from nodeplug.kernel.netlink import open_socket, own_ports, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netns import Netns

RTNLGRP_LINK = 1
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11
NFNLGRP_NFTABLES = 7

_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_LARGEST = 64 * 1024
_INSTRUCTION = struct.Struct("=HBBI")
_PORT_AT = 12
"""Where a message's header says whom it answers: for an announcement, who made the change."""


class Listener:
    """A subscription to multicast groups of one netlink protocol, from now on. Not shared between threads."""

    def __init__(self, protocol: int, *groups: int, netns: Netns | None = None) -> None:
        self._socket = open_socket(protocol, netns)
        try:
            # Multicast passes over sockets without a port of their own, and only a send would give it one.
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise
        self._buffer = bytearray(_LARGEST)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pass_over_own(self) -> None:
        """Hear no more of what this process does by `netlink.netfilter` sockets; it is not even woken for that."""
        mask, value = own_ports()
        libc.attach_filter(self._socket.fileno(), _unless(mask, value))

    def fileno(self) -> int:
        """For poll and select: readable when `receive(0)` has something to give."""
        return self._socket.fileno()

    def receive(self, timeout: float) -> list[tuple[int, bytes]]:
        """The next announcements as (message type, payload); none when `timeout` seconds bring none.

        Raises OSError(ENOBUFS) when some were lost; the subscription goes on.
        """
        if timeout <= 0:
            return self._receive(0.0)
        with company.present().waiting():
            return self._receive(timeout)

    def _receive(self, timeout: float) -> list[tuple[int, bytes]]:
        deadline = time.monotonic() + timeout
        while True:
            self._socket.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                size, sender = self._socket.recvfrom_into(self._buffer, 0, MSG_TRUNC)
            except (TimeoutError, BlockingIOError):
                return []
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise _lost() from error
                raise
            if sender[0] != 0:
                continue  # not from the kernel
            if size > _LARGEST:
                raise _lost()
            return [(type, body) for type, _flags, _sequence, body in split(bytes(self._buffer[:size]))]


def _unless(mask: int, value: int) -> bytes:
    """A filter (classic BPF) that drops messages whose port has these bits so."""
    # It reads words as the network has them.
    mask, value = [int.from_bytes(word.to_bytes(4, byteorder), "big") for word in (mask, value)]
    return b"".join(
        _INSTRUCTION.pack(*one)
        for one in (
            (0x20, 0, 0, _PORT_AT),  # ld
            (0x54, 0, 0, mask),  # and
            (0x15, 0, 1, value),  # equal, or pass
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, _LARGEST),  # pass whole
        )
    )


def _lost() -> OSError:
    return OSError(errno.ENOBUFS, f"netlink announcements were lost: {os.strerror(errno.ENOBUFS)}")
