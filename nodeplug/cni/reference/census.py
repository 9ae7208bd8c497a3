"""Whether this node has anything of the reference plugins': callers look for the file `paths.NO_REFERENCE`, made here.

Rules of netfilter end with the boot, and so does what is noted here, in /run: that somebody has looked and found
nothing. Whoever puts plugins in the reference's place announces it first, because one of theirs may still be at work
then; for some minutes nothing is taken for proof.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files, paths

ANNOUNCED = paths.RUN + "/cni/reference.replaced"
"""Its time says when plugins were put in place last."""

LOOKED = paths.RUN + "/cni/reference.looked"
"""Its time says when somebody looked last."""

_STILL_AT_WORK = 600.0  # seconds; runtimes end a plugin after two to four minutes
_PAUSE = 60.0  # seconds between looks of calls that have something else to do


def announce() -> None:
    """Plugins are about to be put in place: whatever was found by now counts no more. Raises OSError."""
    _note(ANNOUNCED)  # first, see `conclude`
    files.remove(paths.NO_REFERENCE)


def conclude(*, now: bool = False) -> None:
    """Look whether there is anything, unless somebody has lately, and note it when there is not.

    Raises OSError and errors of the house.
    """
    if not now and _is_younger(LOOKED, _PAUSE):
        return
    _note(LOOKED)
    if not _found():
        _note(paths.NO_REFERENCE)
        if not _is_younger(ANNOUNCED, _STILL_AT_WORK):
            return
    files.remove(paths.NO_REFERENCE)


def _note(path: str) -> None:
    """It has nothing but its time, so nothing of it can be half written."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        files.ensure_directory(os.path.dirname(path))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.utime(fd)
    finally:
        os.close(fd)


def _is_younger(path: str, seconds: float) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < seconds
    except FileNotFoundError:
        return False


def _found() -> bool:
    from nodeplug.cni.reference import look

    return bool(look.rules())
