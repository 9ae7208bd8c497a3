"""The namespaces that the worker works in, and whose callers it serves: those who are in the same.

A call names files and links, and means those of its caller. For a caller in other namespaces they would be other ones,
so such a call is sent back to be run where it comes from. A worker in a container enters the host's namespaces first
(`enter`), and is from then on like one that was started there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core.errors import ConfigInvalid, Unavailable
from nodeplug.kernel import libc

if TYPE_CHECKING:
    from nodeplug.worker.frames import Request

Identity = tuple[int, int]

_CLONE_FS = 0x00000200
_PATHS = {"netns": "CNI_NETNS"}
"""Of descriptors that come with a call: the variable that says where the caller found it."""


@dataclass(frozen=True, slots=True)
class World:
    """A network namespace and a mount namespace."""

    net: Identity
    mount: Identity

    @classmethod
    def own(cls) -> World:
        """The calling thread's."""
        return cls(*(_identity(os.stat(f"/proc/thread-self/ns/{kind}")) for kind in ("net", "mnt")))

    def fault(self, request: Request) -> str:
        """Why a call does not belong here, as a sentence; empty when it does."""
        if _identity(os.fstat(request.net)) != self.net:
            return "the caller is in another network namespace"
        if _identity(os.fstat(request.mount)) != self.mount:
            return "the caller is in another mount namespace"
        for name, fd in (request.call.files or {}).items():
            if not _leads_to(request.call.env.get(_PATHS[name], ""), fd):
                return f"{_PATHS[name]} is a path that means something else here"
        return ""


def enter(process: str) -> None:
    """Move the calling thread, the only one as yet, into the namespaces of a process such as /proc/1.

    Its files are then that process's. What Python has yet to import is found through a descriptor of the root that is
    left behind, but no shared library is: what needs one has to be imported before. Raises `ConfigInvalid` and
    `Unavailable`.
    """
    if not os.path.isabs(process):
        raise ConfigInvalid(f"worker.host is {process!r}", hint="name a process's directory, such as /proc/1")
    try:
        # Neither is ever closed: the root is in sys.path from now on.
        left = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = {kind: os.open(f"{process}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt")}
    except OSError as error:
        raise Unavailable(
            f"cannot open the namespaces of {process}: {error.strerror}", hint="the container needs hostPID and root"
        ) from error
    # The C library looks for it when a thread is ended, and without it ends the process instead.
    libc.hold("libgcc_s.so.1")
    try:
        libc.unshare(_CLONE_FS)  # threads share a root, and only one that shares with none may change it
        libc.setns(found["net"], libc.CLONE_NEWNET)
        libc.setns(found["mnt"], libc.CLONE_NEWNS)
    except OSError as error:
        raise Unavailable(
            f"cannot enter the namespaces of {process}: {error.strerror}", hint="the container must be privileged"
        ) from error
    finally:
        for fd in found.values():
            os.close(fd)
    _import_from(f"/proc/self/fd/{left}")


def _import_from(root: str) -> None:
    """Look below `root` for what has not been imported yet."""
    packages = [getattr(module, "__path__", None) for module in list(sys.modules.values())]
    for search in (sys.path, *packages):
        if isinstance(search, list):
            search[:] = [root + path for path in search if os.path.isabs(path)]
    sys.path_importer_cache.clear()


def _leads_to(path: str, fd: int) -> bool:
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(fd))
    except (OSError, ValueError):
        return False


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
