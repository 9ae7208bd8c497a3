"""A pod's network namespace as a lease remembers it, and the way back into it that cannot lead anywhere else.

A path alone is no way back: names and process numbers are given again, and so are the inodes of namespaces. So a lease
keeps the boot, the inode and the kernel's cookie of its namespace, which no other one of that boot ever has, and the
index of its link. What is not exactly that is a pod that has gone; nor is the caller's own namespace ever entered.
"""

from __future__ import annotations

import errno

from nodeplug.core import files
from nodeplug.core.document import integer, text
from nodeplug.core.record import Record, key
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.rtnl.links import Link

_BOOT = "/proc/sys/kernel/random/boot_id"
# What opening a path says of one that leads nowhere any more, or to something else.
_GONE = frozenset((errno.ENOENT, errno.EINVAL, errno.ENOTDIR, errno.ESRCH, errno.ENXIO, errno.ELOOP, errno.EISDIR))


def boot() -> str:
    """This boot's id."""
    return files.read_bounded(_BOOT, 100).decode("ascii", "replace").strip()


class Sandbox(Record):
    """Where a link is."""

    path: str = key(text)
    boot: str = key(text)
    device: int = key(integer())
    inode: int = key(integer())
    cookie: int = key(integer())
    """0 where the kernel gives none."""
    index: int = key(integer(1))
    """The link's."""

    @classmethod
    def of(cls, netns: Netns, link: Link) -> Sandbox:
        device, inode = netns.identity()
        cookie = namespaces.cookie(netns)
        return cls(path=netns.path, boot=boot(), device=device, inode=inode, cookie=cookie, index=link.index)

    def enter(self, ifname: str) -> Pod | None:
        """The pod; None when it has gone, or when this would be the caller's own namespace. Raises OSError."""
        if self.boot != boot():
            return None
        try:
            netns = Netns.open(self.path)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return None
        try:
            if not self._is(netns):
                netns.close()
                return None
            pod = Pod(netns)
        except BaseException:
            netns.close()
            raise
        link = links.find(pod.route, self.index)
        if link is None or link.name != ifname:
            pod.close()
            return None
        pod.link = link
        return pod

    def _is(self, netns: Netns) -> bool:
        identity = netns.identity()
        if identity != (self.device, self.inode) or identity == namespaces.own_identity():
            return False
        return namespaces.cookie(netns) == self.cookie


class Pod:
    """A pod's namespace, open, and its link. Closed by `close()` or `with`, the namespace with it."""

    link: Link

    def __init__(self, netns: Netns) -> None:
        self.netns = netns
        self.route = Netlink(NETLINK_ROUTE, netns=netns)

    def close(self) -> None:
        self.route.close()
        self.netns.close()

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
