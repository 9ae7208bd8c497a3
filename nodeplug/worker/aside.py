"""Threads for calls of the kernel that have their effect at once and come back long after.

A link that is deleted is gone within a millisecond; whoever deleted it waits some fifteen more until the kernel has
freed it (rcu_barrier), and so does each who does it at the same time. One of these threads waits in place of the one
that answers the caller. Each begins in the namespaces of whoever asked then, so nothing may depend on where it is.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from nodeplug.core.company import Job

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 32
"""Threads: so many links can be deleted in the time that one takes to be freed. After that the callers wait."""


class Asides:
    """The threads, made as they are needed. Shared by threads."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._closed = False

    def do(self, work: Callable[[], object]) -> Job:
        """Have it done; where all are busy, or have been told to end, before this returns."""
        job = Job(work)
        if not self._take(job):
            job.run()
        return job

    def _take(self, job: Job) -> bool:
        """Whether there is a thread for it."""
        with self._lock:
            if self._closed:
                return False
            if self._free > 0:
                self._free -= 1
            elif self._threads < MOST:
                try:
                    threading.Thread(target=self._run, name="aside", daemon=True).start()
                except RuntimeError:  # as many threads as there may be
                    return False
                self._threads += 1
            else:
                return False
            self._jobs.put(job)
            return True

    def close(self) -> None:
        """Let them end as soon as they have nothing to do."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # and what it holds
            with self._lock:
                self._free += 1
