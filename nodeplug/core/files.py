"""State on disk that survives kill -9: files that appear whole, and exclusion the kernel frees with its holder.

Used by every room that keeps state. Raises OSError with the path; `range_lock` raises `TryAgain`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from binascii import crc32
from contextlib import contextmanager

from nodeplug.core.errors import Malformed, TryAgain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_F_OFD_SETLK = 37
_F_WRLCK = 1
_FLOCK = struct.Struct("=hh4xqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid
_EVERYTHING = 1 << 33  # past any crc32


def read_bounded(path: str, limit: int) -> bytes:
    """The file's content. Raises `Malformed` when it is longer than `limit` bytes, OSError when it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_fd(fd, limit, path)
    finally:
        os.close(fd)


def read_fd(fd: int, limit: int, what: str) -> bytes:
    """All that can be read from `fd`, at most `limit` bytes; `Malformed` names `what` when there is more."""
    parts = []
    left = limit + 1
    while left > 0 and (part := os.read(fd, min(left, 65536))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise Malformed(f"{what} is larger than {limit} bytes")
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however often the kernel takes fewer."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_atomic(path: str, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace `path` so that a reader sees the old content or the new, and a crash leaves one of them.

    `durable` waits for the disk; without it the order is kept but a power cut may lose the change (enough in /run).
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid():x}-{time.monotonic_ns():x}~")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(fd, mode)  # whatever the umask
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_directory(directory)


def create_whole(path: str, data: bytes, mode: int = 0o600) -> bool:
    """Create `path` with its content in one step; False when it exists. No reader ever sees it empty or half written.

    An unnamed file (O_TMPFILE) is linked into place; where the file system has none (EOPNOTSUPP, EISDIR), a temporary
    name is.
    """
    directory, name = os.path.split(path)
    temporary = ""
    try:
        fd = os.open(directory or ".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        temporary = os.path.join(directory, f".{name}.{os.getpid():x}-{time.monotonic_ns():x}~")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        write_all(fd, data)
        if temporary:
            os.link(temporary, path)
        else:
            here = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(str(fd), path, src_dir_fd=here, follow_symlinks=True)
            finally:
                os.close(here)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        if temporary:
            remove(temporary)
    return True


def remove(path: str) -> bool:
    """Unlink; False when it was not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def sync_directory(path: str) -> None:
    """Wait until the directory's entries are on disk."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def ensure_directory(path: str, mode: int = 0o755) -> None:
    """Create the directory and its parents where they are missing; one that exists keeps its mode."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent in ("", path):
            raise
        ensure_directory(parent, 0o755)
        ensure_directory(path, mode)


@contextmanager
def range_lock(path: str, key: str | Collection[str] | None, *, timeout: float = 30.0) -> Iterator[None]:
    """Hold byte crc32(`key`) of the lock file at `path`, those of several keys, or all of it when `key` is None.

    An open-file-description lock (fcntl(2)): it excludes other processes and other threads of this one, and is freed by
    the kernel when its holder dies. Two keys on one byte wait for each other, which is safe and rare. Several keys are
    taken in one order by all, so no two callers wait for each other. Raises `TryAgain` after `timeout` seconds.
    """
    fd = _open_lock(path)
    try:
        deadline = time.monotonic() + timeout
        for start, length in _ranges(key):
            _hold(fd, start, length, deadline, f"another call has held the lock {path} for {timeout:g} s")
        yield
    finally:
        os.close(fd)


def _ranges(key: str | Collection[str] | None) -> list[tuple[int, int]]:
    if key is None:
        return [(0, _EVERYTHING)]
    keys = [key] if isinstance(key, str) else key
    return [(byte, 1) for byte in sorted({crc32(name.encode()) for name in keys})]


def _hold(fd: int, start: int, length: int, deadline: float, complaint: str) -> None:
    request = _FLOCK.pack(_F_WRLCK, os.SEEK_SET, start, length, 0)
    pause = 0.0005
    # F_OFD_SETLKW knows no bound, and an alarm would belong to the whole process: so ask again, ever less often.
    while True:
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, request)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise TryAgain(complaint, hint="if it never ends, `fuser` on that file names the process")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def _open_lock(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        ensure_directory(os.path.dirname(path), 0o700)
        return os.open(path, flags, 0o600)
