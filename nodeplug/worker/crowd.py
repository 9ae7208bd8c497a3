"""The calls that the worker serves at once, and what they share: turns, loans, what is known, threads that wait.

A thread of the pool takes a `Seat` and joins it as its company (`nodeplug.core.company`). Only a few seats hold a turn,
and Python runs with one: 32 runnable threads would spend nearly half of their time on handing the interpreter around.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar, cast

from nodeplug.core.company import Company
from nodeplug.worker.aside import Asides

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager

    from nodeplug.core.company import Job, T


class Closing(Protocol):
    """What can be lent."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closing)

_SPARE = 4
"""Loans of one kind that are kept."""

_KNOWN = 512
"""Values that are recalled: three for each network's configuration."""


class Crowd:
    """What is shared by all seats. `running` is the number of turns."""

    def __init__(self, *, running: int) -> None:
        self.turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(running):
            self.turns.put(None)
        self._lock = threading.Lock()
        self._spare: dict[object, list[Closing]] = {}
        self._known: dict[Hashable, object] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._closed = False
        self.asides = Asides()

    def borrow(self, make: Callable[[], C]) -> C:
        """One that was returned, or a new one."""
        with self._lock:
            spare = self._spare.get(make)
            if spare:
                return cast("C", spare.pop())
        return make()

    def give_back(self, make: object, lent: Closing) -> None:
        """Keep it for the next who asks; what is too much is closed."""
        with self._lock:
            spare = self._spare.setdefault(make, [])
            if len(spare) < _SPARE and not self._closed:
                spare.append(lent)
                return
        lent.close()

    def turn(self, what: str) -> threading.Lock:
        """Held by whoever does that."""
        return self._turns.setdefault(what, threading.Lock())

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is known for the key, or made now; the oldest is forgotten for it."""
        try:
            return cast("T", self._known[key])
        except KeyError:
            pass
        made = make()
        with self._lock:
            if len(self._known) >= _KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = made
        return made

    def close(self) -> None:
        """Close what is kept, and from now on all that is given back."""
        self.asides.close()
        with self._lock:
            self._closed = True
            kept = [lent for spare in self._spare.values() for lent in spare]
            self._spare.clear()
        for lent in kept:
            lent.close()


class Guest(Company):
    """A thread's place in the crowd that serves no call and needs no turn: it borrows what there is to borrow."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def lend(self, make: Callable[[], C]) -> AbstractContextManager[C]:
        return _Loan(self._crowd, make)


class Seat(Guest):
    """The place of one that serves calls. `with seat:` takes a turn and gives it up at the end."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self._running = False
        self._later: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        self._crowd.turns.get()
        self._running = True
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._crowd.turns.put(None)

    def waiting(self) -> AbstractContextManager[None]:
        return _Pause(self) if self._running else super().waiting()

    def aside(self, work: Callable[[], object]) -> Job:
        return self._crowd.asides.do(work)

    def by_turns(self, what: str) -> AbstractContextManager[None]:
        return _Turn(self, self._crowd.turn(what))

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        return self._crowd.recall(key, make)

    def later(self, work: Callable[[], object]) -> None:
        self._later.append(work)

    def catch_up(self) -> None:
        """Do what was put off until the call was answered."""
        while self._later:
            try:
                self._later.pop(0)()
            except OSError:
                pass  # the pod may be gone by now


class _Pause:
    """The time in which a seat has given up its turn."""

    __slots__ = ("_seat",)

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def __enter__(self) -> None:
        self._seat.__exit__()

    def __exit__(self, *_: object) -> None:
        self._seat.__enter__()


class _Turn:
    """The time in which a seat does what only one does at a time."""

    __slots__ = ("_lock", "_seat")

    def __init__(self, seat: Seat, lock: threading.Lock) -> None:
        self._seat = seat
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            with self._seat.waiting():
                self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Loan(Generic[C]):
    __slots__ = ("_crowd", "_lent", "_make")

    def __init__(self, crowd: Crowd, make: Callable[[], C]) -> None:
        self._crowd = crowd
        self._make = make

    def __enter__(self) -> C:
        self._lent = self._crowd.borrow(self._make)
        return self._lent

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._crowd.give_back(self._make, self._lent)
        else:
            self._lent.close()  # who knows what state it is in
