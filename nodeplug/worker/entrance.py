"""The listeners of the worker. Whoever has nothing to do takes the next connection from here, and reads it.

A client sends its whole request at once, so an idle thread of the pool mostly has it in one go and serves it: no other
thread is woken for it. What is not whole it leaves to the front, which waits for all of those together; while nobody is
idle, the front takes new connections too.
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

_UCRED = struct.Struct("=iii")  # pid, uid, gid
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


@dataclass
class Reading:
    """A connection whose request has not been read to its end. `held` is how many bytes of it are accounted for."""

    connection: socket.socket
    incoming: Incoming
    contract: str
    since: float
    held: int = 0

    def close(self) -> None:
        self.incoming.close()
        self.connection.close()


class Entrance:
    """Opens with construction; after `shut` nobody is let in any more. Shared by threads.

    Only users of `uids` are heard. `tell` hears why a connection was closed: "stranger", "full", "malformed", "gone".
    """

    def __init__(
        self, listeners: Mapping[str, socket.socket], *, uids: frozenset[int], tell: Callable[[str, str], None]
    ) -> None:
        self._listeners = {listener.fileno(): (contract, listener) for contract, listener in listeners.items()}
        self._uids = uids
        self._tell = tell
        self._idle = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self.front = select.epoll()
        """Where the front waits. Of the listeners it hears only while it has to `cover`."""
        self.keep: Callable[[Reading], None] = Reading.close
        """What becomes of a connection whose request is not whole."""
        self._lock = threading.Lock()
        self._spare = os.dup(self._bell)
        self._shut = False
        self._idle.register(self._bell, select.EPOLLIN)
        for fd, (_contract, listener) in self._listeners.items():
            listener.setblocking(False)
            self.front.register(fd, 0)
            self._idle.register(fd, _ONCE)

    def wait(self) -> Arrived | None:
        """The next request that comes whole; None when `ring` has called for somebody."""
        while True:
            # One of those who wait is woken for each connection: it has the listener for itself until it arms it again.
            for fd, _events in self._idle.poll(-1, 1):
                if fd == self._bell:
                    try:
                        os.eventfd_read(self._bell)
                    except BlockingIOError:
                        continue  # another answered it
                    return None
                try:
                    reading = self.accept(fd)
                finally:
                    self._arm(fd)
                arrived = None if reading is None else self.read(reading)
                if arrived is not None:
                    return arrived

    def ring(self, count: int = 1) -> None:
        """Have so many of those who wait look at what else there is."""
        os.eventfd_write(self._bell, count)

    def cover(self, *, needed: bool) -> None:
        """Whether the front is to take connections: while nobody waits here."""
        with self._lock:
            if not self._shut:
                for fd in self._listeners:
                    self.front.modify(fd, select.EPOLLIN if needed else 0)

    def is_listener(self, fd: int) -> bool:
        return fd in self._listeners

    def accept(self, fd: int) -> Reading | None:
        """The next connection of that listener, if it is one to be heard. None also where there is none at all."""
        contract, listener = self._listeners[fd]
        try:
            connection, _address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(listener, contract)
            return None
        if not self._is_welcome(connection):
            connection.close()
            self._tell(contract, "stranger")
            return None
        connection.setblocking(False)
        return Reading(connection, Incoming(connection, contract=contract), contract, time.monotonic())

    def read(self, reading: Reading) -> Arrived | None:
        """The request, if all of it is there; what is not whole is kept, what is wrong ends."""
        try:
            while (request := reading.incoming.read()) is None:
                pass
        except BlockingIOError:
            self.keep(reading)
            return None
        except (Error, OSError) as error:
            reading.close()
            self._tell(reading.contract, "gone" if isinstance(error, (Gone, ConnectionError)) else "malformed")
            return None
        return Arrived(reading.contract, reading.connection, request, reading.since)

    def shut(self) -> None:
        """Let nobody in any more, and close the listeners."""
        with self._lock:
            self._shut = True
            for fd, (_contract, listener) in self._listeners.items():
                self._idle.unregister(fd)
                self.front.unregister(fd)
                listener.close()

    def close(self) -> None:
        """When nobody uses it any more."""
        self._idle.close()
        self.front.close()
        for fd in (self._bell, self._spare):
            os.close(fd)

    def _arm(self, fd: int) -> None:
        with self._lock:
            if not self._shut:
                self._idle.modify(fd, _ONCE)

    def _turn_away(self, listener: socket.socket, contract: str) -> None:
        """Without a descriptor left: take the first in the queue with the spare one, so that it need not wait."""
        with self._lock:
            os.close(self._spare)
            try:
                listener.accept()[0].close()
                self._tell(contract, "full")
            except OSError:
                pass
            self._spare = os.dup(self._bell)

    def _is_welcome(self, connection: socket.socket) -> bool:
        try:
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return False
        return _UCRED.unpack(found)[1] in self._uids
