"""Kernel settings under /proc/sys, by their path segments: a name like `eth0.100` is one segment and keeps its dot.

The keys under `net` belong to the namespace of the calling thread: read and write them `with netns.entered(...)`.
"""

from __future__ import annotations

import errno
import os

_ROOT = "/proc/sys"
_NO_SEGMENTS = frozenset(("", ".", ".."))
_USUAL = 256  # bytes; the kernel clears as much memory as is asked for
_MOST = 64 * 1024


def read(*key: str) -> str:
    """The value of a setting, as text without the newline: `read("net", "ipv4", "ip_forward")`.

    Raises FileNotFoundError where the kernel has no such key (IPv6 switched off, a link that is gone).
    """
    path = _path(key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _USUAL)
            if len(data) == _USUAL:
                data = os.pread(fd, _MOST, 0)  # from its begin: some end with what one read has given
            return data.decode("utf-8", "surrogateescape").rstrip("\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise _named(error, "read", path) from error


def write(value: str, *key: str) -> None:
    """Set a setting. OSError(EINVAL) for a value the kernel does not take, EROFS where /proc/sys is read-only."""
    path = _path(key)
    data = value.encode("utf-8", "surrogateescape")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # One write, or the kernel takes the first part for the whole.
            if os.write(fd, data) != len(data):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        finally:
            os.close(fd)
    except OSError as error:
        raise _named(error, f"write {value!r} to", path) from error


def ensure(value: str, *key: str) -> bool:
    """Set a setting unless it has that value already; True when it was changed. Spaces and tabs count as equal.

    What needs no change needs no right to write, so it works where /proc/sys is read-only; and a change of ip_forward
    is not small: it sets `forwarding` of every link and `accept_redirects` of all.
    """
    if read(*key).split() == value.split():
        return False
    write(value, *key)
    return True


def prefer(value: str, *key: str) -> bool:
    """Set a setting that one can do without: False where there is no such key or nobody may write it."""
    try:
        write(value, *key)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
            return False
        raise
    return True


def _path(key: tuple[str, ...]) -> str:
    path = "/".join((_ROOT, *key))
    if not _NO_SEGMENTS.isdisjoint(key) or path.count("/") != len(key) + 2 or "\0" in path:
        raise ValueError(f"{path[len(_ROOT) :]!r} is made of what is not one segment of a setting's name")
    return path


def _named(error: OSError, doing: str, path: str) -> OSError:
    number = error.errno or errno.EIO
    return OSError(number, f"sysctl {doing}: {os.strerror(number)}", path)
