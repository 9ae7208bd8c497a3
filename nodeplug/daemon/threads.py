"""The threads of a gRPC server: begun when work comes and none is free, and never in the way of the process's end.

The standard library's pool is joined when the interpreter ends, so that one call that never returns (a token's module,
a name server) keeps a stopped daemon for ever; and it makes for each call a future that nobody reads.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

_Job = tuple[Callable[..., object], tuple[Any, ...], "_Ending"]


class _Ending:
    """What grpcio asks of a future: to be told once, whether it asks before the end or after it."""

    __slots__ = ("_callbacks", "_over")

    def __init__(self) -> None:
        self._callbacks: list[Callable[[object], object]] = []
        self._over = False

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        self._callbacks.append(callback)
        if self._over:
            self._tell()

    def came(self) -> None:
        self._over = True
        self._tell()

    def _tell(self) -> None:
        try:
            callback = self._callbacks.pop()  # by one thread of the two that may come here
        except IndexError:
            return
        callback(self)


class Threads(ThreadPoolExecutor):
    """Up to `most` threads. A subclass only because grpcio takes a method's own pool for one by its class."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._idle = 0
        self._unbegun = 0
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it on one of the threads, in its turn. What it raises is lost: grpcio has told the caller by then."""
        if self._closed:
            raise RuntimeError(f"the threads of {self._name} have ended")
        assert not kwargs  # grpcio gives none
        ending = _Ending()
        self._jobs.put((fn, args, ending))
        self._begin()
        return cast("Future[Any]", ending)

    def _begin(self) -> None:
        """One more thread, unless one is free for what was just put in."""
        with self._lock:
            self._unbegun += 1
            if self._unbegun <= self._idle or self._count >= self._most:
                return
            self._count += 1
            name = f"{self._name}-{self._count}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._count -= 1
                if not self._count:
                    raise  # no thread at all: the call would wait for ever

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
                self._unbegun -= 1
            if job is None:
                return
            work, arguments, ending = job
            try:
                work(*arguments)
            except Exception:
                pass  # see submit
            finally:
                ending.came()
                del job, work, arguments, ending  # a request must not live until the next one comes

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing more; threads end with what they are at. Nothing is waited for, whatever `wait` says."""
        self._closed = True
        with self._lock:
            for _ in range(self._count):
                self._jobs.put(None)
