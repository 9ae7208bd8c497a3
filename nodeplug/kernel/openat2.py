"""Opening a path that somebody else chose, so that it cannot lead elsewhere. See openat2(2)."""

from __future__ import annotations

import errno
import os
import struct

from nodeplug.kernel import libc

NO_XDEV = 0x01
NO_MAGICLINKS = 0x02
NO_SYMLINKS = 0x04
BENEATH = 0x08

_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_ATTEMPTS = 64


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open `path`, relative to a directory's descriptor, with no way out of it: no link is followed, no `..` leads up.

    An absolute path, a symbolic link anywhere in it, or one that would leave the directory raise OSError: EXDEV or
    ELOOP. So it is safe while others rename and link what is below. An empty path or "." is the directory itself.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, BENEATH | NO_SYMLINKS | NO_MAGICLINKS)
    for _ in range(_ATTEMPTS):
        try:
            return libc.openat2(directory, path or ".", how)
        except OSError as error:
            # The kernel could not be sure that a ".." stayed inside while something was renamed.
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise OSError(errno.EAGAIN, "openat2: renamed all the while", path)
