"""Threads that serve requests: made as they are needed, up to a number, with a queue that has an end.

A thread that was stranded in a foreign namespace ends, and the next request gets a new one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from nodeplug.core import company
from nodeplug.kernel.netns import Stranded
from nodeplug.worker.crowd import Seat

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.worker.crowd import Crowd
    from nodeplug.worker.serve import Arrived

THREAD = "call"
"""What its threads are called."""


class Pool:
    """At most `threads` requests are served at once and `queue` wait. Shared by threads."""

    def __init__(self, serve: Callable[[Arrived, Seat], None], crowd: Crowd, *, threads: int, queue: int) -> None:
        self._serve = serve
        self._crowd = crowd
        self._most = threads
        self._room = queue
        self._changed = threading.Condition()
        self._waiting: deque[Arrived] = deque()
        self._threads = 0
        self._idle = 0  # those that are starting among them: one of what waits is theirs
        self._closed = False
        self.finished = 0
        """Requests served to their end."""

    def submit(self, arrived: Arrived) -> bool:
        """Have it served; False when there is no room."""
        with self._changed:
            spare = self._idle - len(self._waiting)
            if self._closed or (self._threads >= self._most and -spare >= self._room and spare <= 0):
                return False
            self._waiting.append(arrived)
            if spare > 0:
                self._changed.notify()
            elif self._threads < self._most:
                self._start()
            return True

    @property
    def under_way(self) -> int:
        """Requests that are served or wait for it."""
        with self._changed:
            return self._threads - self._idle + len(self._waiting)

    def drain(self, seconds: float) -> bool:
        """Take no more, and wait until all are served; False when the time ran out."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._threads or self._waiting:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            left_over = list(self._waiting)
            self._waiting.clear()
            ended = self._threads == 0
        for arrived in left_over:
            arrived.close()
        return ended and not left_over

    def _start(self) -> None:
        self._threads += 1
        self._idle += 1
        threading.Thread(target=self._run, name=THREAD, daemon=True).start()

    def _run(self) -> None:
        seat = Seat(self._crowd)
        company.join(seat)
        try:
            while (arrived := self._next()) is not None:
                self._serve(arrived, seat)
                del arrived
                with self._changed:
                    self._idle += 1
                self.finished += 1
        except Stranded:
            pass  # told by who served; this thread must do nothing more
        finally:
            with self._changed:
                self._threads -= 1
                if self._waiting and not self._closed:
                    self._start()
                self._changed.notify_all()

    def _next(self) -> Arrived | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._idle -= 1
            return self._waiting.popleft() if self._waiting else None
