"""Netlink: messages out in one send, acknowledgements and dumps back, the kernel's own words in every error.

The layers above (`rtnl`, `nft`, `conntrack`) build messages and read attributes; this module owns the socket, sequence
numbers, extended acknowledgements and interrupted dumps. See netlink(7) and the kernel's uapi/linux/netlink.h.

    with Netlink(NETLINK_ROUTE) as route:
        route.request(first, second)          # one sendmsg, every message acknowledged
        for payload in route.dump(message): ...
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.kernel.netns import Netns

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLA_F_NESTED = 0x8000

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_ERRNO = struct.Struct("=i")
_LENGTH = struct.Struct("=I")
_RECEIVE = 256 * 1024
_LARGE = 96 * 1024
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_DUMP_ATTEMPTS = 8


class NetlinkError(OSError):
    """A message the kernel refused: errno, its extended-ack text where it gave one, and which message of the send.

    `index` counts from 0 in the order of the send; messages before it took effect, later ones were still tried.
    """

    def __init__(self, number: int, call: str, subject: str = "", *, text: str = "", index: int = 0) -> None:
        reason = os.strerror(number) + (f" ({text})" if text else "")
        super().__init__(number, f"{call}: {reason}" if call else reason, subject or None)
        self.call = call
        self.subject = subject
        self.text = text
        self.index = index


class Message:
    """One netlink message without its sequence number. `call` and `subject` name it in errors ("link add", "cni0")."""

    __slots__ = ("call", "flags", "payload", "subject", "type")

    def __init__(self, type: int, flags: int, payload: bytes, call: str = "", subject: str = "") -> None:
        self.type = type
        self.flags = flags
        self.payload = payload
        self.call = call
        self.subject = subject

    def encode(self, sequence: int, extra_flags: int = 0) -> bytes:
        length = _HEADER.size + len(self.payload)
        flags = NLM_F_REQUEST | self.flags | extra_flags
        header = _HEADER.pack(length, self.type, flags, sequence & 0xFFFFFFFF, 0)
        return header + self.payload + bytes(-length % 4)


def attr(type: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(value)
    return _ATTR.pack(length, type) + value + bytes(-length % 4)


def attr_u8(type: int, value: int) -> bytes:
    return attr(type, bytes((value,)))


def attr_u16(type: int, value: int) -> bytes:
    """In the host's byte order."""
    return attr(type, _U16.pack(value))


def attr_u32(type: int, value: int) -> bytes:
    """In the host's byte order."""
    return attr(type, _LENGTH.pack(value))


def attr_text(type: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attr(type, value.encode() + b"\0")


def nest(type: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(type | NLA_F_NESTED, b"".join(parts))


def attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in `data` from `offset`; of equal types the last stands. Cut-off attributes end the reading."""
    return dict(attr_list(data, offset))


def attr_list(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """The attributes in order, equal types kept: for lists, whose elements all have one type."""
    found = []
    end = len(data)
    while offset + 4 <= end:
        length, type = _ATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found.append((type & _NLA_TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


class Netlink:
    """One netlink socket. Not shared between threads.

    `netns` makes it a socket of that namespace, for ever. Every wait ends after `timeout` seconds with `TimeoutError`.
    """

    def __init__(self, protocol: int, *, netns: Netns | None = None, timeout: float = 10.0) -> None:
        def make() -> socket:
            return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)

        if netns is None:
            self._socket = make()
        else:
            from nodeplug.kernel import netns as namespaces

            self._socket = namespaces.inside(netns, make)
        self._socket.settimeout(timeout)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sequence = 0
        if protocol == NETLINK_ROUTE:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, *messages: Message) -> list[bytes | None]:
        """Send all in one call and wait until each is acknowledged; the kernel works in order and skips none.

        Returns one payload per message where the kernel answered with one (a GET), else None. Raises `NetlinkError`
        for the first that was refused, after all have been answered, so that the socket is ready for the next call.
        """
        outcome = self.attempt(*messages)
        for item in outcome:
            if isinstance(item, NetlinkError):
                raise item
        return outcome  # type: ignore[return-value]  # no element is an error

    def attempt(self, *messages: Message) -> list[bytes | NetlinkError | None]:
        """Like `request`, but a refusal is returned in its message's place: for deletes that may find nothing."""
        if not messages:
            return []
        first = self._sequence + 1
        self._sequence += len(messages)
        self._send(b"".join(message.encode(first + n, NLM_F_ACK) for n, message in enumerate(messages)))
        outcome: list[bytes | NetlinkError | None] = [None] * len(messages)
        waiting = len(messages)
        deadline = self._deadline()
        while waiting:
            for type, flags, sequence, body in self._receive(deadline):
                index = (sequence - first) & 0xFFFFFFFF
                if index >= len(messages):
                    continue  # the late answer to a request that was given up
                if type == _NLMSG_ERROR:
                    waiting -= 1
                    error = _refusal(type, flags, body, messages[index], index)
                    if error is not None:
                        outcome[index] = error
                elif type != _NLMSG_NOOP:
                    outcome[index] = body
        return outcome

    def transaction(self, begin: Message, messages: Iterable[Message], end: Message) -> None:
        """Send a batch that takes effect whole or not at all (nfnetlink). Raises `NetlinkError` for the first refusal.

        `begin` and `end` frame the batch and are not acknowledged; `index` in the error counts the messages between.
        """
        inner = list(messages)
        if not inner:
            return
        first = self._sequence + 1
        self._sequence += len(inner) + 2
        parts = [begin.encode(first)]
        parts += [message.encode(first + 1 + n, NLM_F_ACK) for n, message in enumerate(inner)]
        parts.append(end.encode(first + 1 + len(inner)))
        self._send(b"".join(parts))
        failed: NetlinkError | None = None
        answered = 0
        deadline = self._deadline()
        while answered < len(inner):
            for type, flags, sequence, body in self._receive(deadline):
                index = (sequence - first) & 0xFFFFFFFF
                if type != _NLMSG_ERROR or index > len(inner) + 1:
                    continue
                if index in (0, len(inner) + 1):
                    # A refused frame (EPERM, a lost generation race) stands for the whole batch: nothing else follows.
                    error = _refusal(type, flags, body, begin, 0)
                    if error is not None:
                        raise failed or error
                    continue
                answered += 1
                error = _refusal(type, flags, body, inner[index - 1], index - 1)
                if failed is None:
                    failed = error
        if failed is not None:
            raise failed

    def dump(self, message: Message) -> list[bytes]:
        """The payloads of a dump. One that the kernel calls interrupted is started again, eight times at most.

        Raises `NetlinkError` on refusal and OSError(EAGAIN) when eight attempts were all interrupted.
        """
        for _ in range(_DUMP_ATTEMPTS):
            payloads = self._dump_once(message)
            if payloads is not None:
                return payloads
        raise OSError(errno.EAGAIN, f"{message.call}: interrupted {_DUMP_ATTEMPTS} times", message.subject or None)

    def _dump_once(self, message: Message) -> list[bytes] | None:
        self._sequence += 1
        wanted = self._sequence & 0xFFFFFFFF
        self._send(message.encode(wanted, NLM_F_DUMP))
        payloads: list[bytes] = []
        interrupted = False
        deadline = self._deadline()
        while True:
            for type, flags, sequence, body in self._receive(deadline):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if type in (_NLMSG_ERROR, _NLMSG_DONE):
                    error = _refusal(type, flags, body, message, 0)
                    if error is None or (error.errno == errno.EINTR and interrupted):
                        return None if interrupted else payloads
                    raise error
                payloads.append(body)

    def _send(self, data: bytes) -> None:
        # A batch is one send, and a send larger than the socket's buffer is refused (EMSGSIZE). The forced options pass
        # the sysctl limits and need CAP_NET_ADMIN, without which no large batch would be accepted anyway.
        if len(data) > _LARGE:
            self._socket.setsockopt(SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
            self._socket.setsockopt(SOL_SOCKET, _SO_RCVBUFFORCE, 4 * len(data))
        self._socket.sendto(data, (0, 0))

    def _deadline(self) -> float:
        return time.monotonic() + (self._socket.gettimeout() or 10.0)

    def _receive(self, deadline: float) -> list[tuple[int, int, int, bytes]]:
        """The messages of one datagram as (type, flags, sequence, payload)."""
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "netlink: no answer to this request in time")
        data = self._socket.recv(_RECEIVE)
        found = []
        offset = 0
        while offset + 16 <= len(data):
            length, type, flags, sequence, _port = _HEADER.unpack_from(data, offset)
            if length < 16 or offset + length > len(data):
                break
            found.append((type, flags, sequence, data[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        return found


def _refusal(type: int, flags: int, body: bytes, message: Message, index: int) -> NetlinkError | None:
    """The error in an NLMSG_ERROR or NLMSG_DONE body; None for an acknowledgement."""
    number = -_ERRNO.unpack_from(body)[0] if len(body) >= 4 else 0
    if number == 0:
        return None
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        # DONE: errno, attributes. ERROR: errno, header of the refused message, its payload unless capped, attributes.
        start = 4
        if type == _NLMSG_ERROR and len(body) >= 8:
            start += _HEADER.size if flags & _NLM_F_CAPPED else (_LENGTH.unpack_from(body, 4)[0] + 3) & ~3
        text = attrs(body, start).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("utf-8", "replace")
    return NetlinkError(number, message.call, message.subject, text=text, index=index)
