"""Group commit: work that costs the same for one item as for many, done once for all who want it at the same time.

The first to arrive leads and takes what is queued; those who come meanwhile form the next group. Nobody sleeps to
gather more, so whoever is alone is as fast as without.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from nodeplug.core.company import Work

T = TypeVar("T")
R = TypeVar("R")

MOST = 64
"""Items in one group: the kernel does them under one lock, for which everybody else waits."""


class _Member(Generic[T, R]):
    """Somebody with an item. `woken` is released when the outcome is there, or when it is his turn to lead."""

    __slots__ = ("item", "leads", "outcome", "woken")

    def __init__(self, item: T) -> None:
        self.item = item
        self.leads = False
        self.outcome: R | Exception
        self.woken = threading.Lock()
        self.woken.acquire()


class Group(Generic[T, R]):
    """Those who want `work` done. Shared by threads."""

    def __init__(self, work: Work[T, R], *, most: int = MOST) -> None:
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._queued: deque[_Member[T, R]] = deque()
        self._led = False

    def commit(self, item: T) -> R:
        """The outcome for `item`. Raises what `work` raised, or gave as the item's outcome."""
        member: _Member[T, R] = _Member(item)
        with self._lock:
            self._queued.append(member)
            member.leads = not self._led
            self._led = True
        if not member.leads:
            member.woken.acquire()
        if member.leads:
            self._lead()
        if isinstance(member.outcome, Exception):
            raise member.outcome
        return member.outcome

    def _lead(self) -> None:
        """Do one group's work; the first of the next group leads that."""
        with self._lock:
            # Whoever leads is the first in the queue.
            group = [self._queued.popleft() for _ in range(min(self._most, len(self._queued)))]
        try:
            self._do(group)
        finally:
            with self._lock:
                self._led = bool(self._queued)
                if self._led:
                    self._queued[0].leads = True
                    self._queued[0].woken.release()
            for member in group[1:]:
                member.woken.release()

    def _do(self, group: list[_Member[T, R]]) -> None:
        for member in group:
            member.outcome = RuntimeError("the leader of the group was ended")
        try:
            outcomes = self._work([member.item for member in group])
        except Exception as error:
            if len(group) == 1:
                group[0].outcome = error
                return
            # What one item brought about must not become the others' failure.
            for member in group:
                self._do([member])
            return
        for member, outcome in zip(group, outcomes, strict=True):
            member.outcome = outcome
