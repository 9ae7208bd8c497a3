"""Whether somebody has a file open for writing, asked of the kernel. See fcntl(2) on leases. For the volume log."""

from __future__ import annotations

import errno
import fcntl


def is_written(fd: int) -> bool | None:
    """Whether any process has the file open for writing; `fd` is open for reading only.

    A read lease is granted exactly if nobody has. It is given up at once, and whoever opens the file for writing in
    that moment waits no longer than that. None where it cannot be asked: no leases on this file system, or the file is
    another user's and the process lacks CAP_LEASE.
    """
    import signal

    # A lease that is broken tells its holder by SIGIO, whose default is to end him; SIGURG's is to do nothing.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
