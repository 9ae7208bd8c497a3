"""The steps that finish a mount before it is shown. For several back-ends."""

from __future__ import annotations

import os

from nodeplug.core.errors import doing
from nodeplug.kernel import fsmount
from nodeplug.volumes.contract import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Work

GROUP_OWNED = 0o2070
"""Rights that a pod's fsGroup brings: the group may do all, and new files are the group's."""


class TopDirectory(Step):
    """Owner and access rights of the mount's top directory; -1 leaves each as it is, `add` are rights besides."""

    mode: int = -1
    add: int = 0
    uid: int = -1
    gid: int = -1
    name: str = "volume"

    def do(self, work: Work) -> None:
        with doing("cannot set the volume's owner and access rights"):
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work.fd(self.name))
            try:
                found = os.fstat(top)
                if (self.uid, self.gid) != (-1, -1):
                    os.fchown(top, self.uid, self.gid)
                mode = (self.mode if self.mode != -1 else found.st_mode & 0o7777) | self.add
                if mode != found.st_mode & 0o7777:
                    os.fchmod(top, mode)
            finally:
                os.close(top)


class ReadOnly(Step):
    """The mount, and no other of the same file system, is to be read only."""

    name: str = "volume"

    def do(self, work: Work) -> None:
        with doing("cannot make the volume read-only"):
            fsmount.set_attributes(work.fd(self.name), on=fsmount.RDONLY)
