"""A door before a server that can neither adopt a listening socket nor see who connects (grpcio's cannot).

`Relay` accepts on a socket it is given (one that systemd holds, so that no restart ever refuses a connection), asks the
kernel for each peer's uid, and hands the bytes to the inner server on a private socket, both ways, until one side ends.
One thread, bounded buffers, bounded number of connections. Its cost is in docs/performance/kms.md.
"""

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from nodeplug.daemon.quiet import Quiet

_CHUNK = 64 * 1024
_UCRED = struct.Struct("=iII")  # pid, uid, gid; see unix(7), SO_PEERCRED
_CONNECT = 1.0  # seconds; the inner server's backlog is ours alone
_PAUSE = 0.1  # seconds without accepting when descriptors ran out

Note = Callable[[str], None]
"""Takes a sentence for the log."""


def peer_uid(peer: socket.socket) -> int:
    """The uid of the process that connected, as the kernel saw it then."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


class _Side:
    """One end of a relayed connection. `pending` holds what the other end sent and this one has not taken yet."""

    __slots__ = ("ended", "other", "pending", "socket", "watched")

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.pending = bytearray()
        self.ended = False  # this end will send no more
        self.other: _Side = self
        self.watched = 0


class Relay:
    """Serve `listener` by handing its connections to the unix socket `inner`.

    `allowed_uids` lets in only these (None: everybody the socket's mode lets in); a refused peer is closed before a
    byte is read, and `note` gets a sentence. The listener's file is not touched: whoever made it removes it.
    """

    def __init__(
        self,
        listener: socket.socket,
        inner: str,
        *,
        allowed_uids: Collection[int] | None,
        note: Note,
        connections: int = 256,
    ) -> None:
        self._listener = listener
        self._inner = inner
        self._allowed = None if allowed_uids is None else frozenset(allowed_uids)
        self._note = note
        self._quiet = Quiet()
        self._limit = connections
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._accepting = True
        self._listening = False
        self._running = True
        self._resume = 0.0
        self._open: set[_Side] = set()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Begin to accept: once the inner server answers."""
        self._listener.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs: without it nobody is let in any more."""
        return self._thread.is_alive()

    def _tell(self, kind: str, sentence: str) -> None:
        """Peers may do what they are refused for as often as they like."""
        if self._quiet.passes(kind):
            self._note(sentence + self._quiet.held(kind))

    def stop_accepting(self) -> None:
        """Leave new connections in the listener's backlog, for the process that comes after this one."""
        self._accepting = False
        self._wake()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no connection is left; False when some are after `seconds`."""
        return self._idle.wait(seconds)

    def close(self) -> None:
        """End the thread and what is left of the connections."""
        self._running = False
        self._wake()
        if self._thread.is_alive():
            self._thread.join(5.0)
        for side in list(self._open):
            self._drop(side)
        self._selector.close()
        self._listener.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        try:
            os.write(self._wake_out, b"x")
        except BlockingIOError:
            pass  # it is awake

    def _run(self) -> None:
        while self._running:
            self._watch_listener()
            timeout = None if self._resume == 0.0 else max(0.0, self._resume - time.monotonic())
            for key, events in self._selector.select(timeout):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake_in:
                    try:
                        os.read(self._wake_in, 4096)
                    except BlockingIOError:
                        pass
                else:
                    self._carry(key.data, events)

    def _carry(self, side: _Side, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and side in self._open:
                self._flush(side)
            if events & selectors.EVENT_READ and side in self._open:
                self._pump(side)
        except OSError as error:  # the kernel has no memory left for one more thing to watch
            self._tell("lost", f"a connection is lost: {error}")
            self._drop(side)

    def _watch_listener(self) -> None:
        if self._resume and time.monotonic() >= self._resume:
            self._resume = 0.0
        wanted = self._accepting and not self._resume and len(self._open) < 2 * self._limit
        if wanted != self._listening:
            if wanted:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)
            self._listening = wanted

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors or memory: the connection stays in the backlog; try again when some may be free.
            if error.errno not in (errno.ECONNABORTED, errno.EINTR):
                self._tell("accept", f"cannot accept a connection: {error}")
                self._resume = time.monotonic() + _PAUSE
            return
        inner = None
        try:
            if self._allowed is not None and (uid := peer_uid(peer)) not in self._allowed:
                self._tell("refused", f"refused a connection from uid {uid}, which allowed_uids does not list")
                peer.close()
                return
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            inner.settimeout(_CONNECT)
            inner.connect(self._inner)
            self._join(_Side(peer), _Side(inner))
        except OSError as error:
            self._tell("inner", f"cannot hand a connection to the server: {error}")
            peer.close()
            if inner is not None:
                inner.close()

    def _join(self, outer: _Side, inner: _Side) -> None:
        outer.other, inner.other = inner, outer
        self._idle.clear()
        try:
            for side in (outer, inner):
                side.socket.setblocking(False)
                self._open.add(side)
                self._watch(side)
        except OSError:
            self._drop(outer)
            raise

    def _pump(self, side: _Side) -> None:
        """Take what `side` sent and give it to the other end."""
        try:
            data = side.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(side)
            return
        if not data:
            side.ended = True
            self._finish(side.other)
            return
        other = side.other
        try:
            sent = other.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(side)
            return
        if sent < len(data):
            other.pending += data[sent:]
            self._watch(side)
            self._watch(other)

    def _flush(self, side: _Side) -> None:
        """Send what waits for `side`."""
        try:
            sent = side.socket.send(side.pending)
        except BlockingIOError:
            return
        except OSError:
            self._drop(side)
            return
        del side.pending[:sent]
        if not side.pending:
            self._watch(side.other)
            self._finish(side)

    def _finish(self, side: _Side) -> None:
        """Pass an end on once all before it is delivered; drop the pair when both ends have ended."""
        if side.other.ended and not side.pending:
            if side.ended:
                self._drop(side)
                return
            try:
                side.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._drop(side)
                return
        self._watch(side)
        self._watch(side.other)

    def _watch(self, side: _Side) -> None:
        # Read only while the other end takes what it gets: that is what bounds `pending` to one chunk.
        wanted = 0 if side.ended or side.other.pending else selectors.EVENT_READ
        if side.pending:
            wanted |= selectors.EVENT_WRITE
        if wanted == side.watched:
            return
        if not side.watched:
            self._selector.register(side.socket, wanted, side)
        elif not wanted:
            self._selector.unregister(side.socket)
        else:
            self._selector.modify(side.socket, wanted, side)
        side.watched = wanted

    def _drop(self, side: _Side) -> None:
        for end in (side, side.other):
            if end in self._open:
                self._open.discard(end)
                if end.watched:
                    self._selector.unregister(end.socket)
                    end.watched = 0
                end.socket.close()
        if not self._open:
            self._idle.set()
