"""A process that keeps secrets: no core dumps, not readable by its peers, not swapped out.

Called once by the `main` of a daemon that holds key material, before the first secret is read.
"""

import faulthandler
import os
import resource
from typing import Protocol

PR_SET_DUMPABLE = 4
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4


class Libc(Protocol):
    """The two calls Python does not have; `nodeplug.kernel.libc` is one."""

    def mlockall(self, flags: int, /) -> None: ...

    def prctl(self, option: int, argument: int, /) -> int: ...


def harden(libc: Libc) -> list[str]:
    """Harden the process and return a sentence for each protection that could not be had, for the log.

    Memory is locked with MCL_ONFAULT: otherwise whole thread stacks count (147 MB instead of 9). Locking needs
    CAP_IPC_LOCK or `LimitMEMLOCK=infinity` and is the only step that an unprivileged process may miss.
    """
    missed = []
    os.umask(0o077)
    faulthandler.disable()
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        missed.append(f"core dumps stay possible: {error}")
    try:
        libc.prctl(PR_SET_DUMPABLE, 0)
    except OSError as error:
        missed.append(f"other processes of this user can still read this one's memory: {error}")
    try:
        libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    except OSError as error:
        missed.append(f"memory is not locked and may be swapped out: {error}; set LimitMEMLOCK=infinity in the unit")
    return missed
