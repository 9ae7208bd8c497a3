"""Health as named conditions, and the two questions asked about them: alive? ready?

A condition that starting again could mend is `vital` and counts for both; any other (a backend that throttles, a key
that was revoked, a bad file beside a good one in memory) only for readiness: a restart would throw good state away.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is well or not. `message` says why not, in words fit for a stranger: no secrets, one line."""

    ok: bool
    message: str = ""
    vital: bool = False


class Health:
    """The conditions of a process. Written by any thread; readers see one immutable mapping, swapped whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conditions: Mapping[str, Condition] = {}

    def set(self, name: str, condition: Condition) -> bool:
        """State a condition; True when that changed whether it is well, which is worth a line in the log."""
        with self._lock:
            before = self._conditions.get(name)
            if before != condition:
                self._conditions = {**self._conditions, name: condition}
        return before is None or before.ok != condition.ok

    def clear(self, name: str) -> None:
        """Forget a condition."""
        with self._lock:
            self._conditions = {key: value for key, value in self._conditions.items() if key != name}

    @property
    def conditions(self) -> Mapping[str, Condition]:
        return self._conditions

    @property
    def live(self) -> bool:
        """Whether no vital condition is broken."""
        return all(condition.ok for condition in self._conditions.values() if condition.vital)

    @property
    def ready(self) -> bool:
        """Whether every condition is well."""
        return all(condition.ok for condition in self._conditions.values())

    def trouble(self) -> str:
        """What is wrong, as one line; empty when nothing is."""
        broken = [f"{name}: {item.message}" for name, item in sorted(self._conditions.items()) if not item.ok]
        return "; ".join(broken).replace("\n", " ")

    def page(self, *, vital: bool) -> tuple[bool, str]:
        """The answer of /livez (`vital`) or /readyz: whether all is well, and one line for each condition."""
        chosen = {name: item for name, item in self._conditions.items() if item.vital or not vital}
        lines = [
            f"[{'+' if item.ok else '-'}]{name} {'ok' if item.ok else item.message}".replace("\n", " ")
            for name, item in sorted(chosen.items())
        ]
        ok = all(item.ok for item in chosen.values())
        return ok, "\n".join([*lines, "ok" if ok else "failed", ""])
