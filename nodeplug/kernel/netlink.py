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
from _socket import AF_NETLINK, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket

from nodeplug.kernel.attributes import attrs, number, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.kernel.netns import Netns

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 2
_NLMSG_NOOP = 1
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

_HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")
_LENGTH = struct.Struct("=I")
_PADDING = (b"", bytes(3), bytes(2), bytes(1))
# The kernel makes a dump's parts as large as the reader's buffer, up to 32 KiB; a link with many functions takes more.
_RECEIVE = 64 * 1024
# Messages in one send: an answer is charged with up to 4.5 KiB to a queue that holds 208 by default.
_TOGETHER = 32
# A refusal is charged with about 1 KiB; up to _ROOM no queue has to be enlarged.
_ANSWER = 1024
_ROOM = 96 * 1024
_SO_SNDBUF = 7
_SO_RCVBUF = 8
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_DUMP_ATTEMPTS = 8
_PID_BITS = 22
"""Of any process's number: the kernel's PID_MAX_LIMIT."""
_OWN_PORT = 1 << 31
_OWN_PORTS = 1 << 31 - _PID_BITS


class NetlinkError(OSError):
    """A message the kernel refused: errno, its extended-ack text where it gave one, and which message of the send.

    `index` counts from 0 in the order of the send; messages before it took effect, later ones were still tried.
    `offset` is where in the message's payload the attribute stands that the kernel complains of; -1 when it named none.
    """

    def __init__(
        self, number: int, call: str, subject: str = "", *, text: str = "", index: int = 0, offset: int = -1
    ) -> None:
        reason = os.strerror(number) + (f" ({text})" if text else "")
        super().__init__(number, f"{call}: {reason}" if call else reason, subject or None)
        self.call = call
        self.subject = subject
        self.text = text
        self.index = index
        self.offset = offset


class Message:
    """One netlink message without its sequence number.

    `call` and `subject` name it in errors ("link add", "cni0"); whatever the subject is, it becomes text only then.
    `asks` is for one that the kernel answers with a single message when it does not refuse it.
    """

    __slots__ = ("asks", "call", "flags", "payload", "subject", "type")

    def __init__(
        self, type: int, flags: int, payload: bytes, call: str = "", subject: object = "", *, asks: bool = False
    ) -> None:
        self.type = type
        self.flags = flags
        self.payload = payload
        self.call = call
        self.subject = subject
        self.asks = asks

    def encode(self, sequence: int, extra_flags: int = 0) -> bytes:
        payload = self.payload
        length = 16 + len(payload)
        header = _HEADER.pack(length, self.type, self.flags | extra_flags | 1, sequence & 0xFFFFFFFF, 0)
        return header + payload + _PADDING[length & 3]


class Netlink:
    """One netlink socket. Not shared between threads.

    `netns` makes it a socket of that namespace, for ever. Every call ends within `timeout` seconds, with `TimeoutError`
    if the kernel has not answered; the answer that comes later is passed over by the next call. It is connected to the
    kernel, so nobody else can send to it: whoever holds CAP_NET_ADMIN over a pod's namespace could forge answers.
    """

    def __init__(self, protocol: int, *, netns: Netns | None = None, timeout: float = 10.0, port: int = 0) -> None:
        """`port` is the number it shall have; else the kernel chooses one. OSError(EADDRINUSE) where it is taken."""
        self.netns = netns
        self._protocol = protocol
        self._socket = open_socket(protocol, netns)
        self._timeout = timeout
        self._largest = _RECEIVE
        self._sequence = 0
        try:
            if port:
                self._socket.bind((port, 0))
            self._socket.connect((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, *messages: Message) -> list[bytes | None]:
        """Send all and wait until each is acknowledged; the kernel works in order and skips none.

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
        outcome: list[bytes | NetlinkError | None] = []
        # Answers queue up in the socket while the kernel works, and what finds no room there is lost.
        for start in range(0, len(messages), _TOGETHER):
            outcome += self._attempt(messages[start : start + _TOGETHER], start)
        return outcome

    def _attempt(self, messages: tuple[Message, ...], start: int) -> list[bytes | NetlinkError | None]:
        # Refusals and what was asked for always come back. The kernel works in order, so all are done once it has
        # answered the last; no other is acknowledged.
        first = self._sequence + 1
        last = len(messages) - 1
        self._sequence += len(messages)
        parts = [message.encode(first + n) for n, message in enumerate(messages[:-1])]
        parts.append(messages[-1].encode(first + last, 0 if messages[-1].asks else NLM_F_ACK))
        self._send(b"".join(parts), messages[0])
        outcome: list[bytes | NetlinkError | None] = [None] * len(messages)
        deadline = time.monotonic() + self._timeout
        while True:
            for type, flags, sequence, body in self._receive(deadline, messages[last]):
                index = (sequence - first) & 0xFFFFFFFF
                if index > last:
                    continue  # the late answer to a request that was given up
                if type == NLMSG_ERROR:
                    error = _refusal(type, flags, body, messages[index], start + index)
                    if error is not None:
                        outcome[index] = error
                        if error.errno == errno.EPERM and self._protocol == NETLINK_NETFILTER:
                            # Without CAP_NET_ADMIN the kernel looks at no message behind the first, nor answers it.
                            return [error] * len(messages)
                elif type != _NLMSG_NOOP:
                    outcome[index] = body
                    if not messages[index].asks:
                        continue  # its acknowledgement follows
                if index == last:
                    return outcome

    def transaction(self, begin: Message, messages: Iterable[Message], end: Message) -> None:
        """Send a batch that takes effect whole or not at all (nfnetlink). Raises `NetlinkError` for the first refusal.

        `begin` and `end` frame the batch; `index` in the error counts the messages between.
        """
        for error in self.attempt_transaction(begin, messages, end):
            raise error

    def attempt_transaction(self, begin: Message, messages: Iterable[Message], end: Message) -> list[NetlinkError]:
        """Like `transaction`, but returns every refusal in the order of the messages; empty when all took effect.

        Raises `NetlinkError` with index -1 when the batch as a whole was refused (no right, no memory, a lost race).
        """
        inner = list(messages)
        if not inner:
            return []
        first = self._sequence + 1
        last = len(inner) + 1
        self._sequence += last + 1
        # Refusals always come back. Of the acknowledgements only the last is asked for: it says that all are in.
        parts = [begin.encode(first)]
        parts += [message.encode(first + 1 + n) for n, message in enumerate(inner[:-1])]
        parts.append(inner[-1].encode(first + last - 1, NLM_F_ACK))
        parts.append(end.encode(first + last))
        self._make_room(sum(map(len, parts)), len(inner))
        self._send(b"".join(parts), begin)
        failed: list[NetlinkError] = []
        deadline = time.monotonic() + self._timeout
        while True:
            for type, flags, sequence, body in self._receive(deadline, begin):
                index = (sequence - first) & 0xFFFFFFFF
                if type != NLMSG_ERROR or index > last:
                    continue
                framed = index in (0, last)
                error = _refusal(type, flags, body, begin if framed else inner[index - 1], -1 if framed else index - 1)
                if framed and error is not None:
                    raise error
                if error is not None:
                    failed.append(error)
                if index == last - 1:
                    return failed

    def dump(self, message: Message) -> list[bytes]:
        """The payloads of a dump. One that the kernel calls interrupted is started again, eight times at most.

        Raises `NetlinkError` on refusal and OSError(EAGAIN) when eight attempts were all interrupted.
        """
        for _ in range(_DUMP_ATTEMPTS):
            payloads = self._dump_once(message)
            if payloads is not None:
                return payloads
        raise _failure(errno.EAGAIN, message, f"interrupted {_DUMP_ATTEMPTS} times by changes")

    def _dump_once(self, message: Message) -> list[bytes] | None:
        self._sequence += 1
        wanted = self._sequence & 0xFFFFFFFF
        self._send(message.encode(wanted, NLM_F_DUMP), message)
        payloads: list[bytes] = []
        interrupted = False
        deadline = time.monotonic() + self._timeout
        while True:
            for type, flags, sequence, body in self._receive(deadline, message):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if type in (NLMSG_ERROR, _NLMSG_DONE):
                    error = _refusal(type, flags, body, message, 0)
                    if error is not None:
                        raise error
                    return None if interrupted else payloads
                payloads.append(body)

    def _make_room(self, size: int, answers: int) -> None:
        """Let one send of `size` bytes, and as many refusals, fit the socket's queues."""
        # The kernel doubles what is asked for. The forced options pass the sysctl limits but need CAP_NET_ADMIN in the
        # first user namespace; without it what the limits allow has to do.
        for option, forced, wanted in (
            (_SO_SNDBUF, _SO_SNDBUFFORCE, size),
            (_SO_RCVBUF, _SO_RCVBUFFORCE, answers * _ANSWER),
        ):
            if wanted > _ROOM:
                try:
                    self._socket.setsockopt(SOL_SOCKET, forced, wanted)
                except PermissionError:
                    self._socket.setsockopt(SOL_SOCKET, option, wanted)

    def _send(self, data: bytes, message: Message) -> None:
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise _failure(error.errno or errno.ETIMEDOUT, message, f"netlink send of {len(data)} bytes") from error

    def _receive(self, deadline: float, message: Message) -> list[tuple[int, int, int, bytes]]:
        """What the kernel says next, as `split` gives it; `message` is the one waited for."""
        try:
            try:
                # It works while one sends, so what it has to say is there.
                data = self._socket.recv(self._largest, MSG_DONTWAIT)
            except BlockingIOError:
                data = self._wait(deadline)
        except TimeoutError:
            raise _failure(errno.ETIMEDOUT, message, f"no answer from the kernel in {self._timeout:g} s") from None
        except OSError as error:
            raise _failure(error.errno or 0, message, "netlink receive") from error
        if len(data) >= self._largest:
            raise _failure(errno.EMSGSIZE, message, f"an answer of {len(data)} bytes or more")
        return split(data)

    def _wait(self, deadline: float) -> bytes:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)
        try:
            return self._socket.recv(self._largest)
        finally:
            self._socket.settimeout(None)


def route() -> Netlink:
    """A socket of links, addresses and routes in the thread's namespace, to be lent (`core.company`)."""
    return Netlink(NETLINK_ROUTE)


def netfilter() -> Netlink:
    """A socket of nf_tables and conntrack in the thread's namespace, to be lent (`core.company`).

    Closing one waits until the kernel has freed what was deleted by anybody, and holds every other change up meanwhile.
    Its port tells whose it is, so that a `listener` can pass over what this process did itself.
    """
    marked = _OWN_PORT | os.getpid()
    start = time.monotonic_ns()
    for more in range(_OWN_PORTS):
        try:
            return Netlink(NETLINK_NETFILTER, port=marked | (start + more) % _OWN_PORTS << _PID_BITS)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return Netlink(NETLINK_NETFILTER)


def own_ports() -> tuple[int, int]:
    """(mask, value): which bits say that a port is of a `netfilter` socket of this process, and how they are then.

    Another process has such a one only if it picks numbers so too, in another namespace of processes.
    """
    return _OWN_PORT | (1 << _PID_BITS) - 1, _OWN_PORT | os.getpid()


def open_socket(protocol: int, netns: Netns | None = None) -> socket:
    """A netlink socket, of `netns` when given, for ever. See netlink(7)."""

    def make() -> socket:
        return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)

    if netns is None:
        return make()
    from nodeplug.kernel import netns as namespaces

    return namespaces.inside(netns, make)


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The messages of one datagram as (type, flags, sequence, payload). A cut-off message ends the reading."""
    found = []
    offset = 0
    end = len(data)
    unpack = _HEADER.unpack_from
    while offset + 16 <= end:
        length, type, flags, sequence, _port = unpack(data, offset)
        if length < 16 or offset + length > end:
            break
        found.append((type, flags, sequence, data[offset + 16 : offset + length]))
        offset += (length + 3) & ~3
    return found


def _failure(number: int, message: Message, text: str) -> OSError:
    """The error for a call that the socket failed, not the kernel's judgement."""
    subject = str(message.subject) or None
    return OSError(number, f"{message.call or 'netlink'}: {os.strerror(number)} ({text})", subject)


def _refusal(type: int, flags: int, body: bytes, message: Message, index: int) -> NetlinkError | None:
    """The error in an NLMSG_ERROR or NLMSG_DONE body; None for an acknowledgement."""
    reason = -_ERRNO.unpack_from(body)[0] if len(body) >= 4 else 0
    if reason <= 0:
        return None
    found: dict[int, bytes] = {}
    if flags & _NLM_F_ACK_TLVS:
        # DONE: errno, attributes. ERROR: errno, header of the refused message, its payload unless capped, attributes.
        start = 4
        if type == NLMSG_ERROR and len(body) >= 8:
            start += _HEADER.size if flags & _NLM_F_CAPPED else (_LENGTH.unpack_from(body, 4)[0] + 3) & ~3
        found = attrs(body, start)
    words = text(found.get(_NLMSGERR_ATTR_MSG))
    offset = number(found[_NLMSGERR_ATTR_OFFS]) - _HEADER.size if _NLMSGERR_ATTR_OFFS in found else -1
    return NetlinkError(reason, message.call, str(message.subject), text=words, index=index, offset=offset)
