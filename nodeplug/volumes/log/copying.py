"""Copytruncate: a live file's lines copied to a rotated one, and taken out from under a writer that keeps it open.

Where the file system can (ext4, xfs), the copied blocks are collapsed out of the file: the kernel does that between two
writes, and no line is lost. Elsewhere (tmpfs) the file is emptied, and what is written between the last look and that
moment is lost: the window is measured and told. A writer has to append (O_APPEND): one that writes at an offset of its
own leaves a hole, as with any copytruncate.
"""

from __future__ import annotations

import errno
import os
import time

from nodeplug.kernel import ranges
from nodeplug.volumes.log.index import Pending, Windows
from nodeplug.volumes.log.look import open_file, open_folder

ACTIONS = ("copy", "collapse", "truncate")
"""What `Pending.what` may be of it."""

_CHUNK = 1 << 20
_BEYOND = 1 << 41  # more than a volume of logs has, less than the longest file of ext4 with small blocks
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV)


class Job:
    """One copy of the open file `live`, from `start` on, to `to` beside it in `folder`."""

    def __init__(self, live: int, folder: int, name: str, to: str, start: int) -> None:
        self.length = 0
        """Bytes of the live file, from its beginning, that the copy has the lines of."""
        self.whole = 0
        """Of these, whole blocks that can be collapsed; 0 where the file is emptied instead."""
        self.inode = 0
        self._live = live
        self._folder = folder
        self._name = name
        self._to = to
        self._start = start
        self._copied = start

    def copy(self) -> None:
        """Have the lines under their new name. Raises OSError; nothing is left of it then but a temporary name."""
        temporary = temporary_of(self._to)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(temporary, flags, 0o600, dir_fd=self._folder)
        try:
            status = os.fstat(self._live)
            os.fchown(target, status.st_uid, status.st_gid)
            os.fchmod(target, status.st_mode & 0o777)
            self._copy_on(target)
            self._plan(target)
            os.fdatasync(target)  # before it leaves the live file: a power cut must not take both
            self.inode = os.fstat(target).st_ino
            os.rename(temporary, self._to, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except BaseException:
            os.unlink(temporary, dir_fd=self._folder)
            raise
        finally:
            os.close(target)

    def _copy_on(self, target: int) -> int:
        """Copy what has been written since; how much that was."""
        begun = self._copied
        while part := _transfer(self._live, self._copied, target, self._copied - self._start):
            self._copied += part
        return self._copied - begun

    def _plan(self, target: int) -> None:
        """Whether whole blocks can be collapsed; then the copy ends with the last whole line."""
        self.length = self._copied
        block = os.fstatvfs(self._live).f_bsize
        end = last_line(target, self._copied - self._start) + self._start
        whole = end // block * block
        if whole >= os.fstat(self._live).st_size:
            whole -= block  # a collapse ends before the file does
        if whole > 0 and _can_collapse(self._live):
            self.whole, self.length = whole, end
            os.ftruncate(target, end - self._start)

    def take_out(self) -> float | None:
        """Take the lines out of the live file; the seconds of the window in which some may have been lost."""
        if self.whole:
            ranges.collapse(self._live, 0, self.whole)
            blank(self._live, self.length - self.whole)
            return None
        target = os.open(self._to, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            while True:
                looked = time.monotonic()
                if not self._copy_on(target):
                    break
            os.ftruncate(self._live, 0)
            return time.monotonic() - looked
        finally:
            os.close(target)


def temporary_of(name: str) -> str:
    return f".{name}~"


def blank(fd: int, length: int) -> None:
    """Make the rest of a block, whose lines are in the rotated file, one empty line: no reader meets half a line."""
    if length > 0:
        position = 0
        data = b" " * (length - 1) + b"\n"
        while position < length:
            # The descriptor is not of O_APPEND, for which Linux would ignore the offset.
            position += os.pwrite(fd, data[position:], position)


def last_line(fd: int, size: int) -> int:
    """Where the last whole line of the first `size` bytes ends; 0 when there is none."""
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def with_window(before: Windows, seconds: float) -> Windows:
    """One more."""
    length = int(seconds * 1e6) + 1
    return Windows(count=before.count + 1, longest=max(before.longest, length), total=before.total + length)


def recover(directory: int, pending: Pending) -> bool:
    """Go on where another was killed or failed; whether the copy stands, and the lines are out of the live file.

    They are in the copy, in the live file, or in both, and never in none. Where the live file still begins with what
    was copied, it has not been touched, and the copy goes. Raises OSError.
    """
    folder = open_folder(directory, pending.path)
    try:
        to = pending.to.rpartition("/")[2]
        _unlink(folder, temporary_of(to))
        if pending.what == "copy":
            _unlink(folder, to)
            return False
        live = open_file(directory, pending.path, pending.inode, write=True)
        try:
            return _recover(live, folder, to, pending)
        finally:
            os.close(live)
    finally:
        os.close(folder)


def _recover(live: int, folder: int, to: str, pending: Pending) -> bool:
    copy = os.open(to, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        size = os.fstat(copy).st_size
        if os.fstat(live).st_size >= pending.start + size and _is_same(live, pending.start, copy, 0, size):
            os.unlink(to, dir_fd=folder)
            return False
        rest = pending.length - pending.whole
        if pending.what == "collapse" and 0 < rest <= size and _is_same(live, 0, copy, size - rest, rest):
            blank(live, rest)
        return True
    finally:
        os.close(copy)


def _is_same(one: int, at: int, other: int, there: int, length: int) -> bool:
    while length > 0:
        size = min(length, _CHUNK)
        if os.pread(one, size, at) != os.pread(other, size, there):
            return False
        at, there, length = at + size, there + size, length - size
    return True


def _can_collapse(fd: int) -> bool:
    """Asked by a collapse that no file is long enough for: EINVAL where the file system could do one.

    Not by one that just passes the end: a writer may move that in between.
    """
    try:
        ranges.collapse(fd, 0, _BEYOND)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _transfer(source: int, offset: int, target: int, at: int) -> int:
    """Copy some bytes, within the kernel where it can; how many."""
    try:
        return os.copy_file_range(source, target, _CHUNK, offset, at)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    data = os.pread(source, _CHUNK, offset)
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], at + written)
    return written


def _unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
