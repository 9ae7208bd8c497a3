"""Keeps one chore: calls it when its time has come or its directory has changed, and stands by it when it fails.

A thread for each, so that one that hangs or raises stops no other. Whoever keeps a chore holds its lock; a second
daemon stands by and takes over when the first one ends.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core import chore as chores
from nodeplug.core import files
from nodeplug.core.errors import Error, TryAgain
from nodeplug.daemon.health import Condition, Health
from nodeplug.kernel.netns import Stranded
from nodeplug.worker.doorbell import Doorbell

if TYPE_CHECKING:
    from nodeplug.core.chore import Chore
    from nodeplug.core.log import Level
    from nodeplug.worker.notes import Note

_LONGEST = 3600.0  # seconds between two runs, whatever the chore says: for what nothing announces
_STEP = 30.0  # of a wait: neither a suspend nor a clock that is set ends a select
_SETTLE = 0.05  # changes come in bursts
_JUMP = 1.0  # seconds by which a clock that was set differs at least
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0
_STAND_BY = 2.0


@dataclass(frozen=True)
class Account:
    """What a chore has done so far. `overdue` is for how many seconds its work has been waiting to be done."""

    runs: int
    failed: int
    """Runs that raised."""
    troubles: int
    """Single things that were in trouble, counted in each run."""
    overdue: float


class Turn:
    """`core.chore.Turn`, of one run."""

    def __init__(self, stop: int, note: Note) -> None:
        self.now = time.time()
        self.troubles: dict[str, str] = {}
        self._stop = stop
        self._note = note

    @property
    def stopping(self) -> bool:
        return self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self._stop], [], [], max(0.0, seconds))[0])

    def fileno(self) -> int:
        return self._stop

    def note(self, message: str, *, level: Level = "info") -> None:
        self._note(message, level=level)

    def fail(self, what: str, message: str) -> None:
        self.troubles[what] = message


class Keeper:
    """Keeps `chore` from `start()` to `close()`, in the namespaces of whoever makes it."""

    def __init__(self, chore: Chore, note: Note, health: Health) -> None:
        self.chore = chore
        self.alive = True
        """False when its thread was lost, which only a restart of the process mends."""
        self._note = note
        self._health = health
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._bell = Doorbell(chore.directory)
        self._told: dict[str, str] = {}
        self._runs = self._failed = self._troubles = self._in_a_row = 0
        self._due = _uptime()
        self._ahead = 0.0  # the clock of the last run, against the one that nobody sets
        self._thread = threading.Thread(target=self._run, name=f"chore-{chore.name}"[:15], daemon=True)

    @property
    def account(self) -> Account:
        return Account(self._runs, self._failed, self._troubles, max(0.0, _uptime() - self._due))

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """End it; False when a run that was under way did not, which then ends with the process."""
        os.eventfd_write(self._stop, 1)
        if self._thread.ident is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        self._bell.close()
        os.close(self._stop)
        return True

    def _run(self) -> None:
        try:
            standing_by = False
            while not self._stopped(0.0):
                try:
                    with files.range_lock(chores.LOCK, self.chore.name, timeout=0.0):
                        self._keep()
                        return
                except TryAgain:
                    if not standing_by:
                        self._say("another nodeplugd of this node does it; this one stands by")
                    standing_by = True
                    self._due = _uptime() + _STAND_BY
                except OSError as error:
                    self._troubled(f"cannot take its lock: {error}")
                self._stopped(_STAND_BY)
        except Stranded as stranded:
            # Nor may this thread start another, which would begin where it is stranded.
            self.alive = False
            self._health.set(self._condition, Condition(ok=False, message=str(stranded), vital=True))
            self._say(f"{stranded}; nodeplugd has to be started again", level="error")

    def _keep(self) -> None:
        while not self._stopped(0.0):
            found = self._once()
            if found is None:
                pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** (self._in_a_row - 1)) * random.uniform(0.75, 1.0)
                self._stopped(pause)  # what changes meanwhile must not turn one failure into a stream of them
            else:
                self._due = _uptime() + found
                self._wait(found)
                self._due = min(self._due, _uptime())

    def _once(self) -> float | None:
        """One run: the seconds until the next, None when it failed."""
        self._bell.hear()  # what has changed until now, this run sees
        self._ahead = time.time() - _uptime()
        turn = Turn(self._stop, self._say)
        alarm = threading.Timer(self.chore.patience, self._hangs)
        alarm.daemon = True
        alarm.start()
        try:
            wanted = self.chore.run(turn)
        except Exception as error:
            self._failed += 1
            self._in_a_row += 1
            self._troubled(str(error) if isinstance(error, Error | OSError) else _traced(error))
            return None
        finally:
            alarm.cancel()
            alarm.join()  # so that it tells nothing of a run that has just ended
            self._runs += 1
        self._in_a_row = 0
        self._heed(turn.troubles)
        return min(_LONGEST, _LONGEST if wanted is None else max(0.0, wanted))

    def _wait(self, seconds: float) -> None:
        """Until the time has come, the directory changed, the clock was set since the run began, or the daemon ends."""
        until = _uptime() + seconds
        while (left := until - _uptime()) > 0:
            heard = self._bell.fileno()
            ready = select.select([self._stop, *([heard] if heard >= 0 else ())], [], [], min(left, _STEP))[0]
            if self._stop in ready:
                return
            if heard in ready and self._bell.hear():
                self._stopped(_SETTLE)
                return
            if abs(time.time() - _uptime() - self._ahead) > _JUMP or self._bell.deaf:
                return

    def _stopped(self, seconds: float) -> bool:
        return bool(select.select([self._stop], [], [], seconds)[0])

    def _heed(self, troubles: dict[str, str]) -> None:
        self._troubles += len(troubles)
        for what, message in troubles.items():
            if self._told.get(what) != message:
                self._say(f"{what}: {message}", level="warning")
        for what in self._told.keys() - troubles.keys() - {""}:
            self._say(f"{what}: is well again")
        if "" in self._told:
            self._say("is done again")
        self._told = troubles
        first = next((f"{what}: {message}" for what, message in troubles.items()), "")
        more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
        self._health.set(self._condition, Condition(ok=not troubles, message=first + more))

    def _troubled(self, message: str) -> None:
        if self._told.get("") != message:
            self._say(f"failed, and will be tried again: {message}", level="error")
        self._told = {**self._told, "": message}
        self._health.set(self._condition, Condition(ok=False, message=message.splitlines()[0]))

    def _hangs(self) -> None:
        message = f"has not ended after {self.chore.patience:g} s"
        self._health.set(self._condition, Condition(ok=False, message=message, vital=True))
        self._say(message, level="error")

    def _say(self, message: str, *, level: Level = "info") -> None:
        self._note(f"chore {self.chore.name}: {message}", level=level)

    @property
    def _condition(self) -> str:
        return f"chore-{self.chore.name}"


def _traced(error: Exception) -> str:
    """A fault of ours: with the place where it happened."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame is not None else ""
    return f"{type(error).__name__}{place}: {error}; a fault of nodeplug, report it"


def _uptime() -> float:
    """Seconds since the boot, those of a suspend too; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
