"""Hears that a directory has changed, for as long as there is one: it is made where it is missing, and made again."""

from __future__ import annotations

from nodeplug.core import files
from nodeplug.kernel import inotify

_MASK = (
    inotify.IN_CREATE  # a name linked to a finished file
    | inotify.IN_CLOSE_WRITE
    | inotify.IN_MOVED_TO
    | inotify.IN_MOVED_FROM
    | inotify.IN_DELETE
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
    | inotify.IN_ONLYDIR
)


class Doorbell:
    """Of one directory; "" is none. Used by one thread."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._inotify: inotify.Inotify | None = None

    @property
    def deaf(self) -> bool:
        """Whether the directory cannot be watched as yet, so that it has to be looked at again and again."""
        return bool(self._directory) and self._inotify is None

    def fileno(self) -> int:
        """Readable when `hear` has something to tell; -1 when there is nothing to hear."""
        return -1 if self._inotify is None else self._inotify.fileno()

    def hear(self) -> bool:
        """Whether it has changed since the last time."""
        if self._inotify is None:
            return self._watch()
        changed = False
        while events := self._inotify.read(0):
            for event in events:
                changed = changed or event.overflow or not event.name.startswith(".")
                if event.ended or event.mask & (inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF):
                    self.close()
                    self._watch()
                    return True
        return changed

    def _watch(self) -> bool:
        if not self._directory:
            return False
        found = None
        try:
            files.ensure_directory(self._directory, 0o700)
            found = inotify.Inotify()
            found.add(self._directory, _MASK)
        except OSError:
            if found is not None:
                found.close()
            return False  # no watches are left, or no such place can be made: whoever waits looks by himself
        self._inotify = found
        return True

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
