"""Threads that serve requests: made as they are needed, up to a number, with a queue that has an end.

One that is idle waits at the entrance and serves what it takes there. There is one more than work for as long as there
may be more; once all are busy, the front takes what comes, and queues it here. A thread that was stranded in a foreign
namespace ends, and another takes its place, which it must not start itself: a thread begins where its maker is.
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
    from nodeplug.worker.entrance import Entrance
    from nodeplug.worker.serve import Arrived

THREAD = "call"
"""What its threads are called."""


class Pool:
    """At most `threads` requests are served at once and `queue` wait. Shared by threads."""

    def __init__(
        self,
        serve: Callable[[Arrived, Seat], None],
        crowd: Crowd,
        entrance: Entrance,
        *,
        threads: int,
        queue: int,
    ) -> None:
        self._serve = serve
        self._crowd = crowd
        self._entrance = entrance
        self._most = threads
        self._room = queue
        self._changed = threading.Condition()
        self._waiting: deque[Arrived] = deque()
        self._threads = 0
        self._idle = 0  # those that are starting among them
        self._closed = False
        self._covered = False
        self._lost = threading.Semaphore(0)  # threads that were stranded, and the end
        self.finished = 0
        """Requests served to their end."""

    def start(self) -> None:
        threading.Thread(target=self._replace, name="replace", daemon=True).start()
        with self._changed:
            self._keep_watch()

    def submit(self, arrived: Arrived) -> bool:
        """Have it served; False when there is no room."""
        with self._changed:
            if self._closed or (self._idle == 0 and len(self._waiting) >= self._room):
                return False
            self._waiting.append(arrived)
            if self._idle > 0:
                self._entrance.ring()
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
            self._lost.release()
            self._entrance.ring(self._threads)
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

    def _run(self) -> None:
        seat = Seat(self._crowd)
        company.join(seat)
        stranded = False
        try:
            while (arrived := self._next()) is not None:
                self._serve(arrived, seat)
                del arrived
                with self._changed:
                    self._idle += 1
                self.finished += 1
        except Stranded:
            stranded = True  # told by who served; this thread must do nothing more
        finally:
            with self._changed:
                self._threads -= 1
                if stranded:
                    self._lost.release()
                else:
                    self._keep_watch()
                self._changed.notify_all()

    def _replace(self) -> None:
        while True:
            self._lost.acquire()
            with self._changed:
                if self._closed:
                    return
                self._keep_watch()

    def _next(self) -> Arrived | None:
        """What to serve next: out of the queue, else out of the entrance. None at the end."""
        arrived: Arrived | None = None
        while True:
            with self._changed:
                if arrived is None and self._waiting:
                    arrived = self._waiting.popleft()
                if arrived is not None or self._closed:
                    self._idle -= 1
                    self._keep_watch()
                    return arrived
                self._cover(needed=False)
            arrived = self._entrance.wait()

    def _keep_watch(self) -> None:
        """See to it that somebody takes the next connection. Called with the lock."""
        if self._idle or self._closed:
            return
        if self._threads < self._most:
            self._threads += 1
            self._idle += 1
            threading.Thread(target=self._run, name=THREAD, daemon=True).start()
        else:
            self._cover(needed=True)

    def _cover(self, *, needed: bool) -> None:
        if self._covered != needed:
            self._covered = needed
            self._entrance.cover(needed=needed)
