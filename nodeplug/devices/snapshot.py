"""A pool's devices at one moment, and the one place where it is swapped and waited for.

Written by discovery, read by any thread of any door.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from nodeplug.devices.contract import Device


@dataclass(frozen=True)
class Snapshot:
    """Immutable. `version` grows with each change; `since` has, for each id, when its health last changed (epoch)."""

    version: int = 0
    devices: tuple[Device, ...] = ()
    since: dict[str, float] = field(default_factory=dict)
    caused: float = 0.0  # monotonic time of the first event behind this change; 0 when no event was

    @cached_property
    def by_id(self) -> dict[str, Device]:
        """The devices by id."""
        return {device.id: device for device in self.devices}


class Publisher:
    """Holds the newest snapshot of a pool. Any number of readers wait on it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._current = Snapshot()
        self._subscribers: tuple[Callable[[], None], ...] = ()

    @property
    def current(self) -> Snapshot:
        return self._current

    def publish(self, devices: tuple[Device, ...], *, caused: float = 0.0, now: float | None = None) -> Snapshot:
        """Swap in a new set. Called by one thread; the caller has made sure that it differs."""
        moment = time.time() if now is None else now
        before = self._current
        old = before.by_id
        since = {}
        for device in devices:
            known = old.get(device.id)
            kept = known is not None and known.healthy == device.healthy
            since[device.id] = before.since[device.id] if kept else moment
        fresh = Snapshot(before.version + 1, devices, since, caused)
        with self._condition:
            self._current = fresh
            self._condition.notify_all()
        for subscriber in self._subscribers:
            subscriber()
        return fresh

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Have `subscriber` called, on discovery's thread, after each publication. It must not wait."""
        if subscriber not in self._subscribers:
            self._subscribers = (*self._subscribers, subscriber)

    def wake(self) -> None:
        """Make every `wait` ask its `unless` again."""
        with self._condition:
            self._condition.notify_all()

    def wait(self, version: int, timeout: float | None, *, unless: Callable[[], bool] = lambda: False) -> Snapshot:
        """The newest snapshot, once it is not `version`, `unless()` holds, or `timeout` seconds have passed."""
        with self._condition:
            self._condition.wait_for(lambda: self._current.version != version or unless(), timeout)
            return self._current
