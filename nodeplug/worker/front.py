"""Where requests arrive: one thread accepts, looks who it is, and reads until a request is whole, for the pool.

However slowly some send, whatever they send and however many they are, others are served: nothing here waits for a
single connection, and each bound has its loser (docs/worker.md). A loser's connection is closed, which tells it to run
its call itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error
from nodeplug.worker.serve import Arrived
from nodeplug.worker.wire import Gone, Incoming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_READ = 2.0  # seconds for a request to be whole, as long as a client waits for a sign of life
_BURST = 64  # connections accepted before others are read again
_HELD = 64 << 20  # bytes of requests that are not whole
_TICK = 1.0
_UCRED = struct.Struct("=iii")  # pid, uid, gid


@dataclass
class _Reading:
    connection: socket.socket
    incoming: Incoming
    contract: str
    since: float
    held: int = 0


class Front:
    """Serves `listeners` (contract -> socket) from `start()` to `close()`.

    `submit` takes a whole request and says whether there is room; only users of `uids` are heard. `tell` hears why a
    connection was closed: "stranger", "full", "malformed", "slow", "gone".
    """

    def __init__(
        self,
        listeners: Mapping[str, socket.socket],
        submit: Callable[[Arrived], bool],
        *,
        uids: frozenset[int],
        connections: int,
        tell: Callable[[str, str], None],
    ) -> None:
        self._submit = submit
        self._uids = uids
        self._most = connections
        self._tell = tell
        self._listeners = {listener.fileno(): (contract, listener) for contract, listener in listeners.items()}
        self._readings: dict[int, _Reading] = {}  # in the order of their arrival
        self._held = 0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._spare = os.dup(self._wake)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self.ticked = time.monotonic()
        """When the thread was last seen to go round."""
        for fd, (_contract, listener) in self._listeners.items():
            listener.setblocking(False)
            self._epoll.register(fd, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Accept and read no more; what is not whole is closed. The listeners are closed too."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        for fd in list(self._readings):
            self._drop(fd)
        for _contract, listener in self._listeners.values():
            listener.close()
        self._epoll.close()
        os.close(self._wake)
        os.close(self._spare)

    def _run(self) -> None:
        while not self._stopping:
            for fd, _events in self._epoll.poll(_TICK):
                if fd in self._listeners:
                    self._accept(*self._listeners[fd])
                elif fd in self._readings:
                    self._read(fd)
            self.ticked = time.monotonic()
            self._expire(self.ticked - _READ)

    def _accept(self, contract: str, listener: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away(listener, contract)
                return
            if not self._is_welcome(connection):
                connection.close()
                self._tell(contract, "stranger")
                continue
            connection.setblocking(False)
            incoming = Incoming(connection, contract=contract)
            fd = connection.fileno()
            self._readings[fd] = _Reading(connection, incoming, contract, time.monotonic())
            if self._read(fd):
                continue
            self._epoll.register(fd, select.EPOLLIN)
            # A client sends all at once, so it is the oldest that has the least to say.
            while len(self._readings) > self._most:
                self._refuse(next(iter(self._readings)), "full")

    def _turn_away(self, listener: socket.socket, contract: str) -> None:
        """Without a descriptor left: take the first in the queue with the spare one, so that it need not wait."""
        os.close(self._spare)
        try:
            listener.accept()[0].close()
            self._tell(contract, "full")
        except OSError:
            pass
        self._spare = os.dup(self._wake)

    def _is_welcome(self, connection: socket.socket) -> bool:
        try:
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return False
        return _UCRED.unpack(found)[1] in self._uids

    def _read(self, fd: int) -> bool:
        """Take what has arrived; whether that was the end of it, one way or another."""
        reading = self._readings[fd]
        try:
            while (request := reading.incoming.read()) is None:
                pass
        except BlockingIOError:
            self._held += reading.incoming.held - reading.held
            reading.held = reading.incoming.held
            if self._held <= _HELD:
                return False
            self._refuse(fd, "full")
            return True
        except (Error, OSError) as error:
            self._refuse(fd, "gone" if isinstance(error, (Gone, ConnectionError)) else "malformed")
            return True
        self._forget(fd)
        arrived = Arrived(reading.contract, reading.connection, request, reading.since)
        if not self._submit(arrived):
            arrived.close()
            self._tell(reading.contract, "full")
        return True

    def _expire(self, before: float) -> None:
        late = []
        for fd, reading in self._readings.items():
            if reading.since > before:
                break
            late.append(fd)
        for fd in late:
            self._refuse(fd, "slow")

    def _refuse(self, fd: int, why: str) -> None:
        contract = self._readings[fd].contract
        self._drop(fd)
        self._tell(contract, why)

    def _drop(self, fd: int) -> None:
        reading = self._readings[fd]
        self._forget(fd)
        reading.incoming.close()
        reading.connection.close()

    def _forget(self, fd: int) -> None:
        self._held -= self._readings.pop(fd).held
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # it was whole at once, and never waited for
