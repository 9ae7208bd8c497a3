"""Network namespaces as descriptors: opening one, telling two apart, a socket or a short stay inside.

A thread that could not come back from a namespace must not do anything else: `Stranded` says so, and whoever owns the
thread ends it (a one-shot process exits, the worker retires the thread).
"""

from __future__ import annotations

import errno
import fcntl
import os
from sys import byteorder

from nodeplug.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

SELF = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703
_SO_NETNS_COOKIE = 71


class Stranded(BaseException):
    """The calling thread is still inside a foreign network namespace and must end now.

    Not an `Exception`, so that no boundary mistakes it for a failed call that may be answered and followed by another.
    """


class Netns:
    """An open network namespace. Closed by `close()`, by `with`, or with the process."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> Netns:
        """Open the namespace that is mounted or linked at `path`.

        Raises FileNotFoundError when nothing is there, and OSError(EINVAL) when what is there is no network namespace
        (a runtime that died half-way leaves plain files in /run/netns).
        """
        # O_NONBLOCK, because a FIFO put in the place must not hold the caller up.
        return cls.adopt(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), path)

    @classmethod
    def adopt(cls, fd: int, path: str) -> Netns:
        """Take over a descriptor; `path` is what it is called in messages. Raises OSError(EINVAL), and closes `fd`."""
        if not is_netns(fd):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a network namespace", path)
        return cls(fd, path)

    def identity(self) -> tuple[int, int]:
        """(device, inode): equal for two descriptors of one namespace, different for any two that live."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Netns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_netns(fd: int) -> bool:
    """Whether `fd` is open on a network namespace: ioctl NS_GET_NSTYPE, see ioctl_ns(2)."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == libc.CLONE_NEWNET
    except OSError:
        return False


def cookie(netns: Netns) -> int:
    """A number that no other namespace of this boot ever has; 0 where the kernel (before 5.14) gives none.

    Inodes do come again, once their namespace has ended.
    """
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket

    with_cookie = inside(netns, lambda: socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC))
    try:
        return int.from_bytes(with_cookie.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8), byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return 0
    finally:
        with_cookie.close()


def create(path: str) -> None:
    """Make a network namespace and name it `path`, which keeps it until `remove`. Its lo is down.

    Raises FileExistsError when something has that name. After kill -9 in the middle a plain file may be left, which is
    no namespace and which `remove` takes away.
    """
    import threading

    from nodeplug.kernel.mount import MS_BIND

    failures: list[BaseException] = []

    def leave_and_name() -> None:
        try:
            libc.unshare(libc.CLONE_NEWNET)
            libc.mount(SELF, path, "", MS_BIND)
        except BaseException as error:
            failures.append(error)

    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        # The namespace belongs to a thread that ends here, so that no thread of the caller is ever in it.
        thread = threading.Thread(target=leave_and_name, name="netns create")
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
    except BaseException:
        remove(path)
        raise


def remove(path: str) -> bool:
    """Take the name away; the namespace ends with its last user. False when there was no such name."""
    from nodeplug.kernel import mount

    while mount.is_mounted(path):
        mount.unmount(path, detach=True)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def own_identity() -> tuple[int, int]:
    """The calling thread's namespace, as `Netns.identity()` gives it."""
    status = os.stat(SELF)
    return status.st_dev, status.st_ino


def pinned() -> list[str]:
    """A path of each network namespace that a mount keeps: what runtimes name, wherever they do.

    Those that only processes keep are not among them.
    """
    from nodeplug.kernel import mount

    found = {entry.root: entry.point for entry in mount.mounts() if entry.fstype == "nsfs"}
    return [point for root, point in found.items() if root.startswith("net:")]


class entered:  # read as a phrase: with entered(netns)
    """Run the body of a `with` in `netns`. No child may be started inside.

    Raises `Stranded` if the thread could not come back.
    """

    __slots__ = ("_home", "_netns")

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        self._home = -1

    def __enter__(self) -> None:
        self._home = os.open(SELF, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.setns(self._netns.fd, libc.CLONE_NEWNET)
        except BaseException:
            os.close(self._home)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            libc.setns(self._home, libc.CLONE_NEWNET)
        except OSError as error:
            raise Stranded(f"could not return from {self._netns.path}: {error}") from error
        finally:
            os.close(self._home)


def inside(netns: Netns, make: Callable[[], T]) -> T:
    """What `make()` returns when called inside `netns`: a socket belongs for ever to the namespace it was made in."""
    with entered(netns):
        return make()
