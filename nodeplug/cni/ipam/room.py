"""Whether leases can be written where they are to be: what STATUS asks before an ADD finds out."""

from __future__ import annotations

import os

from nodeplug.core import errors
from nodeplug.core.errors import Unavailable


def expect_room(directory: str, *, hint: str) -> None:
    """Raise `Unavailable` when no lease can be written at `directory`, or where it would have to be made."""
    place = directory
    while not os.path.lexists(place) and place != "/":
        place = os.path.dirname(place)
    hint = f"ADD keeps its leases there; {hint}"
    if not os.path.isdir(place):
        raise Unavailable(f"{place} is no directory", hint=hint)
    if not os.access(place, os.W_OK | os.X_OK):
        raise Unavailable(f"{place} cannot be written", hint=hint)
    with errors.doing(f"cannot look at the file system of {place}"):
        found = os.statvfs(place)
    # A file system that counts no inodes (btrfs) says 0 of 0.
    if found.f_bfree == 0 or (found.f_files and found.f_ffree == 0):
        raise Unavailable(f"the file system of {place} is full", hint=hint)
