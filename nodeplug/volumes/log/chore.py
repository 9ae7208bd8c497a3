"""The chore of nodeplugd that keeps logs: rotates them while they are written, removes them when their time is over.

Volumes of pods that are there are held open and heard by inotify; a run goes on for some seconds while there are any,
for what is written wants an answer sooner than a chore is called. What has to be known is on disk (`records`, `index`).
"""

from __future__ import annotations

import time

from nodeplug.core import files
from nodeplug.core.chore import Chore
from nodeplug.core.errors import Error, Malformed, NotFound
from nodeplug.kernel import inotify
from nodeplug.volumes import service, state
from nodeplug.volumes.log import records
from nodeplug.volumes.log.volume import CHORE
from nodeplug.volumes.log.watch import SOONEST, Watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeplug.core.chore import Turn
    from nodeplug.kernel.inotify import Inotify
    from nodeplug.volumes.log.records import Known

_RUN = 20.0
"""Seconds that a run goes on, at most: health is told at its end."""

_PATIENCE = 10.0  # for a call that is at the volume
_RECORDS = inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_DELETE | inotify.IN_ONLYDIR


class LogChore(Chore):
    """See `core.chore.Chore`."""

    name = CHORE
    directory = records.DIRECTORY
    patience = 120.0

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._watched: dict[str, Watched] = {}
        self._bell: Inotify | None = None
        self._desk = -1  # the watch of the records' directory
        self._told: dict[str, str] = {}
        self._reported: set[str] = set()

    def close(self) -> None:
        """Let go of all volumes."""
        for each in self._watched.values():
            each.close()
        self._watched.clear()
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def run(self, turn: Turn) -> float | None:
        begun = time.monotonic()
        read = True
        until: float | None = None
        while True:
            if read:
                until = self._take_up(turn)
            for each in list(self._watched.values()):
                if each.due <= time.monotonic() and not turn.stopping:
                    self._look(each)
            over = turn.stopping or not self._watched or time.monotonic() - begun >= _RUN
            if over or self._told.keys() != self._reported:
                break
            read = self._hear(turn, until)
        for what, message in self._told.items():
            turn.fail(what, message)
        self._reported = set(self._told)
        if self._watched and not turn.stopping:
            return 0.0
        return None if until is None else max(0.0, until - time.time())

    def _take_up(self, turn: Turn) -> float | None:
        """Open what is new, let go of what is gone, remove what is over; when the next will be over."""
        kept = {each.known.place for each in self._watched.values()}
        self._told = {place: message for place, message in self._told.items() if place in kept}
        times = []
        known = self._known()
        for id in self._watched.keys() - known.keys():
            self._watched.pop(id).close()
        for id, logs in known.items():
            if logs.ended and logs.until <= time.time():
                self._remove(turn, logs)
                continue
            if logs.ended:
                times.append(logs.until)
            before = self._watched.get(id)
            if before is not None and before.known != logs:
                self._watched.pop(id).close()
            if id not in self._watched:
                self._open(logs)
        return min(times, default=None)

    def _known(self) -> dict[str, Known]:
        found = {}
        for id in records.ids():
            try:
                logs = records.read(id)
            except Malformed as error:
                self._told[id] = str(error)
                continue
            if logs is not None:
                found[id] = logs
        return found

    def _open(self, logs: Known) -> None:
        try:
            self._watched[logs.id] = Watched(logs, self._hearing())
        except NotFound as error:
            if not logs.ended and state.read(logs.id) is None:
                self._told[logs.place] = f"{error}, and no volume tells of it; `nodeplug volume gc` removes it"
        except (Error, OSError) as error:
            self._told[logs.place] = f"it cannot be kept: {error}"

    def _hearing(self) -> Inotify:
        if self._bell is None:
            self._bell = inotify.Inotify()
            self._desk = self._bell.add(records.DIRECTORY, _RECORDS)
        return self._bell

    def _look(self, each: Watched) -> None:
        place = each.known.place
        try:
            each.look(time.time())
            troubles = each.troubles
        except (Error, OSError) as error:
            troubles = (str(error),)
        self._told.pop(place, None)
        if troubles:
            self._told[place] = "; ".join(troubles)

    def _remove(self, turn: Turn, logs: Known) -> None:
        """Its time is over, unless it was published anew in this moment."""
        before = self._watched.pop(logs.id, None)
        if before is not None:
            before.close()
        try:
            with files.range_lock(service.LOCK, logs.id, timeout=_PATIENCE):
                now = records.read(logs.id)
                if now is not None and now.ended and now.until <= time.time():
                    records.remove(now, turn.note)
        except (Error, OSError) as error:
            self._told[logs.place] = f"it cannot be removed, though its time is over: {error}"

    def _hear(self, turn: Turn, until: float | None) -> bool:
        """Wait until something is due or written; whether the records have changed, or one's time is over."""
        import select

        if turn.wait(SOONEST):
            return False  # what is written meanwhile is heard in one go
        due = min(each.due for each in self._watched.values()) - time.monotonic()
        left = _RUN if until is None else until - time.time()
        bell = self._hearing()
        ready = select.select([bell.fileno(), turn.fileno()], [], [], max(0.0, min(due, left)))[0]
        changed = until is not None and until <= time.time()
        if bell.fileno() in ready:
            for event in bell.read(0):
                if event.ended and event.watch == self._desk:
                    self.close()  # their directory was removed: begin anew
                    return True
                changed = changed or event.overflow or (event.watch == self._desk and not event.name.startswith("."))
                for each in self._watched.values():
                    if event.overflow or event.watch in each.watches:
                        each.ring(folder=event.overflow or bool(event.mask & inotify.IN_ISDIR))
        return changed
