"""A mount shown for a moment at a path of ours: what overlayfs is made of has to be mounted somewhere (before 6.15)."""

from __future__ import annotations

import os

from nodeplug.core import files
from nodeplug.core.errors import doing
from nodeplug.kernel import fsmount, mount
from nodeplug.volumes import state
from nodeplug.volumes.contract import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Work

STAGE = state.RUN + "/stage"


class Staged(Step):
    """The mount of descriptor `of` is at `STAGE/ID/NAME` until `Unstaged`, or until it is undone."""

    lasts = True

    id: str
    name: str
    of: str

    def do(self, work: Work) -> None:
        path = staged(self.id, self.name)
        with doing(f"cannot mount at {path}"):
            files.ensure_directory(path, 0o700)
            directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fsmount.show(work.fd(self.of), directory)
            finally:
                os.close(directory)

    def undo(self) -> None:
        unstage(self.id, self.name)


class Unstaged(Step):
    """What was staged is nowhere to be seen any more; who has it mounted keeps it."""

    id: str
    name: str

    def do(self, work: Work) -> None:
        with doing("cannot take away what was mounted for a moment"):
            unstage(self.id, self.name)


def staged(id: str, name: str) -> str:
    return f"{STAGE}/{id}/{name}"


def unstage(id: str, name: str) -> None:
    """Unmount it and remove its directories; nothing there is success."""
    path = staged(id, name)
    while mount.unmount(path, detach=True):
        pass
    for directory in (path, os.path.dirname(path)):
        try:
            os.rmdir(directory)
        except OSError:
            return  # another is staged beside it, or there was none


def left() -> list[tuple[str, str]]:
    """(id, name) of everything that is staged, or was until it was killed."""
    found = []
    for id in _listed(STAGE):
        found += [(id, name) for name in _listed(f"{STAGE}/{id}")]
    return found


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
