"""Volumes in memory: a tmpfs of bounded size, made as a mount that is shown nowhere yet. For several back-ends."""

from __future__ import annotations

import errno

from nodeplug.core.errors import Unavailable, doing
from nodeplug.kernel import fsmount
from nodeplug.volumes.contract import Step
from nodeplug.volumes.sizes import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Node, Work

_PAGE = 4096
_SPARE_FILES = 1024


def ensure_room(size: int, node: Node) -> None:
    """Raise `Unavailable` when the node has less memory than that to give."""
    available = node.memory_available()
    if size > available:
        raise Unavailable(
            f"this node has {shown(available)} of memory available, less than the {shown(size)} the volume may take",
            hint="ask for less, or for a loop volume, which is on disk",
        )


def files_for(size: int) -> int:
    """How many files such a volume may have: one for each page, so that empty ones do not fill the node's memory."""
    return size // _PAGE + _SPARE_FILES


class MemoryFs(Step):
    """A new tmpfs. `attributes` are of kernel.fsmount. Not swapped where the kernel can leave it (Linux 6.4)."""

    size: int
    files: int
    mode: int
    uid: int
    gid: int
    attributes: int
    swap: bool
    source: str
    name: str = "volume"

    def do(self, work: Work) -> None:
        options: dict[str, str | None] = {
            "source": self.source,
            "size": str(self.size),
            "nr_inodes": str(self.files),
            "mode": f"{self.mode:o}",
            "uid": str(self.uid),
            "gid": str(self.gid),
        }
        with doing("cannot make a tmpfs"):
            work.keep(self.name, self._unswapped(options) if not self.swap else self._made(options))

    def _unswapped(self, options: dict[str, str | None]) -> int:
        try:
            return self._made({**options, "noswap": None})
        except OSError as error:
            if error.errno != errno.EINVAL or error.filename != "noswap":
                raise
        return self._made(options)

    def _made(self, options: dict[str, str | None]) -> int:
        return fsmount.create("tmpfs", options, attributes=self.attributes)


class UnswappedFs(Step):
    """Memory never swapped out, for what only we write: a tmpfs, or before Linux 6.4 a ramfs, which has no limit."""

    size: int
    mode: int
    attributes: int
    source: str
    name: str = "volume"

    def do(self, work: Work) -> None:
        common: dict[str, str | None] = {"source": self.source, "mode": f"{self.mode:o}"}
        limited = {**common, "size": str(self.size), "nr_inodes": str(files_for(self.size)), "noswap": None}
        with doing("cannot make a file system in memory"):
            try:
                made = fsmount.create("tmpfs", limited, attributes=self.attributes)
            except OSError as error:
                if error.errno != errno.EINVAL or error.filename != "noswap":
                    raise
                made = fsmount.create("ramfs", common, attributes=self.attributes)
            work.keep(self.name, made)
