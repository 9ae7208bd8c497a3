"""Keeps a log readable, and its disk free, while the same thing goes wrong a thousand times a second."""

import threading
import time
from collections.abc import Hashable


class Quiet:
    """Lets one sentence of a kind pass in each span of `seconds` and counts the others. Kinds are kept, so: few."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._last: dict[Hashable, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def passes(self, kind: Hashable) -> bool:
        """Whether to say it now; what is not said is counted."""
        now = time.monotonic()
        with self._lock:
            last, held = self._last.get(kind, (now - self._seconds, 0))
            if now - last < self._seconds:
                self._last[kind] = (last, held + 1)
                return False
            self._last[kind] = (now, held)
            return True

    def held(self, kind: Hashable) -> str:
        """What to add to a sentence that passes: how many like it were held back since the last."""
        with self._lock:
            last, held = self._last.get(kind, (0.0, 0))
            self._last[kind] = (last, 0)
        return f" ({held} more like it since the last line)" if held else ""
