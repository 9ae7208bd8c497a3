"""Ranges of a file given back while it is open and written. See fallocate(2), lseek(2). For the volume log."""

from __future__ import annotations

import errno
import os

from nodeplug.kernel import libc

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_COLLAPSE_RANGE = 0x08


def punch(fd: int, offset: int, length: int) -> None:
    """Free the blocks that lie whole in the range and zero the rest of it: every offset of the file stays what it was.

    Raises OSError(EOPNOTSUPP) where the file system cannot.
    """
    libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def collapse(fd: int, offset: int, length: int) -> None:
    """Take the range out of the file: what follows moves up to `offset`, and no write in between is lost.

    Both are multiples of the file system's block, and the range ends before the file does; else EINVAL. ext4 and xfs
    can; EOPNOTSUPP elsewhere.
    """
    libc.fallocate(fd, _COLLAPSE_RANGE, offset, length)


def first_data(fd: int) -> int:
    """The offset of the first block that is not a hole; the file's size when there is none."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size
