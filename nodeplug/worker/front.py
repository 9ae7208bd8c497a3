"""One thread for all connections whose request has not come whole, and for new ones while every other thread is busy.

However slowly some send, whatever they send and however many they are, others are served: nothing here waits for a
single connection, and each bound has its loser (docs/worker.md). A loser's connection is closed, which tells it to run
its call itself.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error
from nodeplug.worker.entrance import Reading
from nodeplug.worker.serve import Arrived
from nodeplug.worker.wire import Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.worker.entrance import Entrance

_READ = 2.0  # seconds for a request to be whole, as long as a client waits for a sign of life
_BURST = 64  # connections accepted before others are read again
_HELD = 64 << 20  # bytes of requests that are not whole
_TICK = 1.0


class Front:
    """Serves the entrance from `start()` to `close()`.

    `submit` takes a whole request and says whether there is room. `tell` hears why a connection was closed: "full",
    "malformed", "slow", "gone".
    """

    def __init__(
        self,
        entrance: Entrance,
        submit: Callable[[Arrived], bool],
        *,
        connections: int,
        tell: Callable[[str, str], None],
    ) -> None:
        self._entrance = entrance
        self._submit = submit
        self._most = connections
        self._tell = tell
        self._lock = threading.RLock()
        self._readings: dict[int, Reading] = {}  # in the order of their arrival
        self._held = 0
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self.ticked = time.monotonic()
        """When the thread was last seen to go round."""
        entrance.front.register(self._wake, select.EPOLLIN)
        entrance.keep = self._keep

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Accept and read no more; what is not whole is closed. The listeners are closed too."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._entrance.shut()
        with self._lock:
            self._entrance.keep = Reading.close
            for fd in list(self._readings):
                self._drop(fd)
        self._entrance.front.unregister(self._wake)
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            for fd, _events in self._entrance.front.poll(_TICK):
                if self._entrance.is_listener(fd):
                    self._accept(fd)
                else:
                    self._read(fd)
            self.ticked = time.monotonic()
            self._expire(self.ticked - _READ)

    def _accept(self, listener: int) -> None:
        for _ in range(_BURST):
            reading = self._entrance.accept(listener)
            if reading is None:
                return
            arrived = self._entrance.read(reading)
            if arrived is not None:
                self._hand_on(arrived)

    def _keep(self, reading: Reading) -> None:
        """Go on reading it. Called by any thread."""
        fd = reading.connection.fileno()
        with self._lock:
            self._readings[fd] = reading
            self._entrance.front.register(fd, select.EPOLLIN)
            # A client sends all at once, so it is the oldest that has the least to say.
            while len(self._readings) > self._most:
                self._refuse(next(iter(self._readings)), "full")
            if fd in self._readings:
                self._account(fd)

    def _read(self, fd: int) -> None:
        """Take what has arrived."""
        with self._lock:
            reading = self._readings.get(fd)
            if reading is None:
                return
            try:
                while (request := reading.incoming.read()) is None:
                    pass
            except BlockingIOError:
                self._account(fd)
                return
            except (Error, OSError) as error:
                self._refuse(fd, "gone" if isinstance(error, (Gone, ConnectionError)) else "malformed")
                return
            self._forget(fd)
        self._hand_on(Arrived(reading.contract, reading.connection, request, reading.since))

    def _hand_on(self, arrived: Arrived) -> None:
        if not self._submit(arrived):
            arrived.close()
            self._tell(arrived.contract, "full")

    def _account(self, fd: int) -> None:
        reading = self._readings[fd]
        self._held += reading.incoming.held - reading.held
        reading.held = reading.incoming.held
        if self._held > _HELD:
            self._refuse(fd, "full")

    def _expire(self, before: float) -> None:
        with self._lock:
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
        reading.close()

    def _forget(self, fd: int) -> None:
        self._held -= self._readings.pop(fd).held
        self._entrance.front.unregister(fd)
