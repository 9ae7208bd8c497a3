"""Changes of files and directories, as they happen. See inotify(7). For daemons that follow a directory."""

from __future__ import annotations

import errno
import os
import struct

from nodeplug.core.record import Record
from nodeplug.kernel import libc

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_ISDIR = 0x40000000

_EVENT = struct.Struct("=iIII")
_READ = 64 * 1024


class Event(Record):
    """One change."""

    watch: int
    """What `add` returned; -1 for an overflow."""
    mask: int
    """IN_* bits."""
    cookie: int = 0
    """Equal in the two halves of a rename within what is watched."""
    name: str = ""
    """Of the entry in a watched directory; empty when it is the watched thing itself."""

    @property
    def overflow(self) -> bool:
        """Events were lost: look at everything again."""
        return bool(self.mask & IN_Q_OVERFLOW)

    @property
    def ended(self) -> bool:
        """The watch is gone: removed, or its file deleted or unmounted. The number may be given to another."""
        return bool(self.mask & IN_IGNORED)


def parse(data: bytes) -> list[Event]:
    """The events in what was read from an inotify descriptor. A cut-off event ends the reading."""
    found = []
    offset = 0
    while offset + _EVENT.size <= len(data):
        watch, mask, cookie, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        if offset + length > len(data):
            break
        name = data[offset : offset + length].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        found.append(Event(watch=watch, mask=mask, cookie=cookie, name=name))
        offset += length
    return found


class Inotify:
    """A set of watches and their events. Closed by `close()`, by `with`, or with the process."""

    def __init__(self) -> None:
        self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For poll and select: readable when `read(0)` has something to give."""
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch a file, or a directory and its entries, for IN_* events; returns the watch's number.

        A second watch of the same file replaces the first and has its number. Raises FileNotFoundError, and
        OSError(ENOSPC) when the user has too many watches (fs.inotify.max_user_watches).
        """
        return libc.inotify_add_watch(self._fd, path, mask)

    def remove(self, watch: int) -> None:
        """End a watch; one more event says so. OSError(EINVAL) when it has ended."""
        libc.inotify_rm_watch(self._fd, watch)

    def read(self, timeout: float | None) -> list[Event]:
        """The events there are, else those that come within `timeout` seconds (None: for ever); none when none come."""
        import select

        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if timeout is None else max(0, round(timeout * 1000))):
            return []
        try:
            return parse(os.read(self._fd, _READ))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return []  # another thread was quicker
            raise
