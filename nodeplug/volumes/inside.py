"""The inside of a published volume that pods can only read, opened so that its content can be replaced.

For volumes whose files are ours (`secret`, `identity`) or whose bounds are (`log`). Through a copy of the mount that
nobody else sees.
"""

from __future__ import annotations

import os

from nodeplug.core.errors import NotFound, doing
from nodeplug.kernel import fsmount, libc, mount


def writable(target: str, source: str) -> Writable:
    """In a `with` block: a descriptor of the volume at `target`, whose mount has that `source` in mountinfo.

    Raises `NotFound` when another or nothing is mounted there.
    """
    return Writable(target, source)


class Writable:
    """See `writable`."""

    __slots__ = ("_fd", "_source", "_target")

    def __init__(self, target: str, source: str) -> None:
        self._target = target
        self._source = source
        self._fd = -1

    def __enter__(self) -> int:
        there = mount.find(self._target)
        if there is None or there.source != self._source:
            raise NotFound(f"no {self._source} is mounted at {self._target}")
        self._fd = open_writable(self._target)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def open_writable(target: str) -> int:
    """Likewise whatever is mounted at `target`, to be closed by the caller."""
    with doing(f"cannot open the volume at {target}"):
        found = fsmount.clone(libc.AT_FDCWD, target)
        try:
            fsmount.set_attributes(found, off=fsmount.RDONLY, private=True)
        except BaseException:
            os.close(found)
            raise
    return found
