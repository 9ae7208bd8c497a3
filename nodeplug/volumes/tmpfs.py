"""The volume `tmpfs`: files in memory, with a limit."""

from __future__ import annotations

import os

from nodeplug.core.errors import Refused, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount
from nodeplug.volumes.contract import Plan, Resized, Volume
from nodeplug.volumes.memory import MemoryFs, ensure_room, files_for
from nodeplug.volumes.options import count, flag, mode, number_id, some_size
from nodeplug.volumes.sizes import shown
from nodeplug.volumes.steps import GROUP_OWNED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Grant, Node, Published, Request
    from nodeplug.volumes.policy import Policy

SOURCE = "nodeplug.dev/tmpfs"


class TmpfsOptions(Record):
    """What a pod may ask for."""

    size: int = key(some_size, help="bytes it may hold")
    mode: int = key(mode, default=0o777, help="access rights of its top directory; a pod's fsGroup adds the group's")
    uid: int = key(number_id, default=0, help="its owner")
    gid: int = key(number_id, default=0, help="its group, where the pod has no fsGroup")
    inodes: int = key(count(0, 1 << 32), default=0, help="files it may hold; one for each 4Ki and 1024 more if 0")
    swap: bool = key(flag, default=False, help="may be swapped out; before Linux 6.4 it always may")
    exec: bool = key(flag, default=False, help="its files may be executed")


class Tmpfs(Volume):
    """See `contract.Volume`."""

    name = "tmpfs"
    options = TmpfsOptions
    open = True
    resizes = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        return policy.grant(request, size=request.options.size)

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: TmpfsOptions = request.options
        ensure_room(options.size, node)
        group = request.fs_group
        attributes = fsmount.NOSUID | fsmount.NODEV
        attributes |= 0 if options.exec else fsmount.NOEXEC
        attributes |= fsmount.RDONLY if request.read_only else 0
        made = MemoryFs(
            size=options.size,
            files=options.inodes or files_for(options.size),
            mode=options.mode if group is None else options.mode | GROUP_OWNED,
            uid=options.uid,
            gid=options.gid if group is None else group,
            attributes=attributes,
            swap=options.swap,
            source=SOURCE,
        )
        return Plan(steps=(made,))

    def resize(self, published: Published, size: int, grant: Grant) -> Resized:
        """At once; to less than it holds is refused by the kernel."""
        with doing(f"cannot open the volume at {published.target}"):
            volume = fsmount.at(published.target)
        try:
            held = os.fstatvfs(volume)
            used = (held.f_blocks - held.f_bfree) * held.f_frsize
            if used > size:
                raise Refused(f"the volume at {published.target} holds {shown(used)}, more than {shown(size)}")
            files = max(held.f_files, int(published.options["inodes"]) or files_for(size))
            with doing(f"cannot resize the tmpfs at {published.target}"):
                fsmount.reconfigure(volume, {"size": str(size), "nr_inodes": str(files)})
        finally:
            os.close(volume)
        return Resized(size=size)
