"""The wire between what a runtime executes and the warm worker: a request, last words, an answer. See docs/wire.md.

It carries a `Call` and knows no contract: which door a call is for follows from the socket it came in by. The frames
are pure functions from and to bytes; `receive`, `send_last_words` and `send_answer` are the server's end, `ask` is the
client's for whoever has a `Call`. It is the launcher's, which has only its process.

Two promises hold the wire together. The server changes nothing before its last words are out. And a client that gives
up first shuts its receiving side, after which the server's send fails, and then reads what had already arrived. So
either the client has the last words or the server knows that it may do nothing.
"""

from __future__ import annotations

import os
import struct
import time
from _socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)

from nodeplug.core.call import Answer, Call, LastWords
from nodeplug.core.errors import Malformed, Refused, TimedOut
from nodeplug.core.record import Record
from nodeplug.worker import launcher
from nodeplug.worker.frames import (
    FILES,
    HEADER,
    REQUEST,
    Frame,
    Request,
    decode_header,
    decode_request,
    encode_answer,
    encode_last_words,
    encode_request,
)

_DESCRIPTORS_MAX = 8
_INT = struct.Struct("=i")
_CHUNK = 256 * 1024
_FIRST = 16 * 1024
"""Bytes that are read with the descriptors: all of most requests."""


class Gone(Refused):
    """The other side ended the connection: nothing may be changed for it any more."""


class Fallback(Record):
    """The worker did not answer: run the call here. `last_words`, if any, are for when that cannot be done."""

    reason: str
    last_words: Answer | None = None


# The client's end


def ask(path: str, call: Call, *, deadline: float, greeting: float = launcher.GREETING) -> Answer | Fallback:
    """Have the worker at the socket `path` answer `call`, until `deadline` (`time.monotonic()` seconds) at most.

    A `Fallback` asks the caller to run the call itself: the worker cannot be reached, its queue is full, it sent no
    last words within `greeting` seconds, or its last words say so. Never raises and never blocks past the deadline.
    """
    try:
        data = encode_request(call, patience=deadline - time.monotonic())
    except Malformed as error:
        return Fallback(reason=f"worker at {path}: {error}")
    files = call.files or {}
    wanted = [files[name] for name in FILES if name in files]
    answer, words, reason = launcher.converse(path, data, wanted, greeting=greeting, deadline=deadline)
    if answer is None and words is not None and not words[1]:
        answer = words
    if answer is not None:
        return _answer(answer)
    return Fallback(reason=f"worker at {path}: {reason}", last_words=_answer(words) if words is not None else None)


def _answer(reply: launcher.Reply) -> Answer:
    code, _yourself, stdout, stderr, mounted = reply
    return Answer(code=code, stdout=stdout, stderr=stderr, mounted=mounted.decode("utf-8", "surrogateescape"))


# The server's end


def receive(connection: socket, *, contract: str, deadline: float) -> Request:
    """Read the one request of a connection; it is for the door `contract`. The caller closes the request.

    Raises `TimedOut` at `deadline` (`time.monotonic()` seconds) however slowly bytes arrive, `Gone` when the connection
    ends before the request does, `Malformed` and `VersionUnsupported` for what is no request. The connection can then
    only be closed, which the client takes for "run it yourself".
    """
    incoming = Incoming(connection, contract=contract)
    try:
        while True:
            connection.settimeout(_remaining(deadline))
            request = incoming.read()
            if request is not None:
                return request
    except OSError as error:
        raise _translated(error) from error
    finally:
        incoming.close()


class Incoming:
    """A request that is arriving, in whatever pieces. Close it when no more of it is wanted, or when it is whole."""

    def __init__(self, connection: socket, *, contract: str) -> None:
        self._connection = connection
        self._contract = contract
        self._descriptors: list[int] = []
        self._truncated = False
        self._frame: Frame | None = None
        self._parts: list[bytes] = []
        self._held = 0

    def read(self) -> Request | None:
        """Take what the connection has to give, once; the request when that was the last of it.

        How long this waits is the connection's setting. Raises what reading from it raises, and `Gone`, `Malformed` and
        `VersionUnsupported` as `receive` does.
        """
        data = self._connection.recv(_CHUNK) if self._held else self._read_rights()
        if not data:
            raise Gone("the connection ended before the request did")
        self._parts.append(data)
        self._held += len(data)
        if self._frame is None:
            if self._held < HEADER.size:
                return None
            self._parts = [b"".join(self._parts)]
            self._frame = decode_header(self._parts[0][: HEADER.size], (REQUEST,))
            if self._truncated:
                raise Malformed(f"more than {_DESCRIPTORS_MAX} descriptors came with a request")
        end = HEADER.size + self._frame.size()
        if self._held < end:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        body = whole[HEADER.size : end]
        request = decode_request(self._frame, body, tuple(self._descriptors), contract=self._contract)
        self._descriptors = []  # they are the request's now
        return request

    @property
    def held(self) -> int:
        """Bytes that have arrived."""
        return self._held

    def close(self) -> None:
        """Close the descriptors that came, unless they have become the request's."""
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = []

    def _read_rights(self) -> bytes:
        space = CMSG_SPACE(_DESCRIPTORS_MAX * _INT.size)
        data, ancillary, flags, _address = self._connection.recvmsg(_FIRST, space, MSG_CMSG_CLOEXEC)
        for level, kind, rights in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                whole = len(rights) - len(rights) % _INT.size
                self._descriptors += [fd for (fd,) in _INT.iter_unpack(rights[:whole])]
        self._truncated = bool(flags & MSG_CTRUNC)
        return data


def send_last_words(connection: socket, words: LastWords, *, deadline: float) -> None:
    """Tell the client what to answer if nothing more arrives. Only when this returns may anything be changed.

    Raises `Gone` when the client gave up before, `TimedOut` when it does not read, `Malformed` when they do not fit.
    """
    _send(connection, encode_last_words(words), deadline)


def send_answer(connection: socket, answer: Answer, *, deadline: float) -> None:
    """Answer the client. Raises as `send_last_words` does; the last words stand then."""
    _send(connection, encode_answer(answer), deadline)


def _send(connection: socket, data: bytes, deadline: float) -> None:
    try:
        try:
            sent = connection.send(data, MSG_DONTWAIT)  # there is room for what is usual
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            connection.settimeout(_remaining(deadline))
            connection.sendall(memoryview(data)[sent:])  # the time-out is for all of it
    except OSError as error:
        raise _translated(error) from error


def _translated(error: OSError) -> Gone | TimedOut:
    if isinstance(error, TimeoutError):
        return TimedOut("the other side neither sends nor reads in time")
    return Gone(f"the connection ended: {error}")


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimedOut("the deadline passed")
    return remaining
