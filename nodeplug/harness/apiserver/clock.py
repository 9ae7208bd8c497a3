"""Time that runs faster, or shows another hour, than this machine's: three nodes' clocks in one process."""

import threading
import time


class Clock:
    """`speed` seconds pass on it for each real one; `skew` is what it is ahead by. Starts at the real time."""

    def __init__(self, *, speed: float = 1.0, skew: float = 0.0) -> None:
        self.speed = speed
        self._began = time.monotonic()
        self._start = time.time() + skew

    def now(self) -> float:
        """Seconds since 1970, on this clock."""
        return self._start + (time.monotonic() - self._began) * self.speed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the event, at most so many of this clock's seconds; whether it is set."""
        return event.wait(seconds / self.speed)
