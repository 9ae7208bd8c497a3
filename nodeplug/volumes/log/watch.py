"""One volume of logs under the eye of nodeplugd: opened for as long as it is kept, looked at as often as it needs.

How often follows from what its writers do: so soon that a quarter of the room that is left cannot be used up in
between, at the pace they had lately. A volume that nobody writes to is looked at each ten seconds, for what time does.
"""

from __future__ import annotations

import os
import time

from nodeplug.core.errors import NotFound
from nodeplug.kernel import inotify, mount
from nodeplug.volumes.inside import open_writable
from nodeplug.volumes.log.look import folders, space
from nodeplug.volumes.log.rotation import Rotation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.inotify import Inotify
    from nodeplug.volumes.log.records import Known

SOONEST = 0.02
"""Seconds between two looks, at least."""

IDLE = 10.0
_LAZIEST = 1.0  # while it is written
_MASK = inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW
_MOST_FOLDERS = 256


class Watched:
    """An open volume. Raises `NotFound` where nothing of it is mounted, OSError."""

    def __init__(self, known: Known, bell: Inotify) -> None:
        self.known = known
        self.troubles: tuple[str, ...] = ()
        self.due = 0.0
        """When to look next, by the monotonic clock."""
        self.watches: set[int] = set()
        self._bell = bell
        self._looked = time.monotonic()
        self._pause = SOONEST
        self._fresh = False
        self._mount = self._directory = -1
        there = mount.find(known.place)
        if there is None or f"{there.device[0]}:{there.device[1]}" != known.device:
            raise NotFound(f"nothing of it is mounted at {known.place}")
        try:
            self._mount = open_writable(known.place)
            self._directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._mount)
            self._rotation = Rotation(self._directory, known.account, known.rules)
            self._left = space(self._directory).free
            self._watch()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it: it cannot end while it is open here."""
        for watch in self.watches:
            try:
                self._bell.remove(watch)
            except OSError:
                pass  # with its directory
        self.watches.clear()
        for fd in (self._directory, self._mount):
            if fd >= 0:
                os.close(fd)
        self._directory = self._mount = -1

    def ring(self, *, folder: bool) -> None:
        """Something was written, or a directory made: look when the pause since the last look is over."""
        self._fresh = self._fresh or folder
        self.due = min(self.due, self._looked + self._pause)

    def look(self, now: float) -> None:
        """Do what is due. Raises what `Rotation.keep` does; then it is tried again in a while."""
        moment = time.monotonic()
        self.due = moment + IDLE
        before = space(self._directory).free
        try:
            kept = self._rotation.keep(now)
            self.troubles = kept.troubles
            if self._fresh:
                self._watch()
        finally:
            after = space(self._directory).free
            ended = time.monotonic()
            written = max(0, self._left - before)
            pace = written / max(1e-6, moment - self._looked)
            self._pause = min(_LAZIEST, max(SOONEST, after / 4 / pace if pace else _LAZIEST))
            self._left, self._looked = after, ended
            if written:
                self.due = ended + self._pause  # whether or not it is heard of what comes

    def _watch(self) -> None:
        """Hear of every directory in it; those that cannot be heard are looked at when it is time."""
        self._fresh = False
        for number, path in enumerate(folders(self._directory)):
            if number >= _MOST_FOLDERS:
                return
            try:
                self.watches.add(self._bell.add(f"/proc/self/fd/{self._directory}/{path}", _MASK))
            except OSError:
                return
