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

from nodeplug.core import company
from nodeplug.core.errors import Malformed, TryAgain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_F_WRLCK = 1
_F_UNLCK = 2
_FLOCK = struct.Struct("=hh4xqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid
_EVERYTHING = 1 << 33  # past any crc32


def read_bounded(path: str, limit: int) -> bytes:
    """The file's content. Raises `Malformed` when it is longer than `limit` bytes, OSError when it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_fd(fd, limit, path)
    finally:
        os.close(fd)


def read_small(path: str, limit: int) -> bytes:
    """What one read gives of a regular file: all that is in it, up to `limit` bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, limit)
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


def write_atomic(path: str, data: bytes, mode: int = 0o644, *, durable: bool = True, temporary: str = "") -> None:
    """Replace `path` so that a reader sees the old content or the new, and a crash leaves one of them.

    `durable` waits for the disk; without it the order is kept but a power cut may lose the change (enough in /run).
    `temporary` is the name meanwhile, in the same directory, where one writer at a time is sure: the next one takes it
    over from one that was killed. Else it is one that `is_abandoned` knows.
    """
    directory, name = os.path.split(path)
    once = os.O_TRUNC if temporary else os.O_EXCL
    temporary = os.path.join(directory, temporary) if temporary else _temporary(directory, name)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | once | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
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
        temporary = _temporary(directory, name)
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


def _temporary(directory: str, name: str) -> str:
    return os.path.join(directory, f".{name}.{os.getpid():x}-{time.monotonic_ns():x}~")


def is_abandoned(name: str) -> bool:
    """Whether a file of that name is the temporary one of a writer that was killed: the name tells its process."""
    stem, _, made = name.rpartition(".")
    pid, dash, _ = made.partition("-")
    if not stem.startswith(".") or not dash or not name.endswith("~"):
        return False
    try:
        return not os.path.exists(f"/proc/{int(pid, 16)}")
    except ValueError:
        return False


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


def range_lock(path: str, key: str | Collection[str] | None, *, timeout: float = 30.0) -> RangeLock:
    """In a `with` block: hold byte crc32(`key`) of the lock file at `path`, those of several keys, or all for None.

    An open-file-description lock (fcntl(2)): it excludes other processes and other threads of this one, and is freed by
    the kernel when its holder dies. Two keys on one byte wait for each other, which is safe and rare. Several keys are
    taken in one order by all, so no two callers wait for each other. Raises `TryAgain` after `timeout` seconds.
    """
    return RangeLock(path, key, timeout)


class RangeLock:
    """See `range_lock`. A class of its own because contextlib would cost every executed plugin 2 ms to import."""

    __slots__ = ("_fd", "_path", "_ranges", "_timeout")

    def __init__(self, path: str, key: str | Collection[str] | None, timeout: float) -> None:
        keys = () if key is None else (key,) if isinstance(key, str) else key
        self._ranges = sorted({(crc32(name.encode()), 1) for name in keys}) if key is not None else [(0, _EVERYTHING)]
        self._path = path
        self._timeout = timeout
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = _open_lock(self._path)
        try:
            deadline = time.monotonic() + self._timeout
            for start, length in self._ranges:
                request = _FLOCK.pack(_F_WRLCK, os.SEEK_SET, start, length, 0)
                _ask_until(deadline, self._path, self._ask, request)
        except BaseException:
            os.close(self._fd)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _ask(self, request: bytes) -> None:
        fcntl.fcntl(self._fd, _F_OFD_SETLK, request)


def is_locked(path: str, key: str) -> bool:
    """Whether somebody holds that byte of a `range_lock`, asked without taking it. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        request = _FLOCK.pack(_F_WRLCK, os.SEEK_SET, crc32(key.encode()), 1, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, request))[0] != _F_UNLCK)
    finally:
        os.close(fd)


def flock(path: str, mode: int = 0o600, *, timeout: float = 30.0) -> int:
    """A descriptor that holds flock(2) on the file at `path`, made where it is missing; closing it frees the lock.

    For locks shared with programs that use flock; the house's own is `range_lock`. It excludes other processes and
    other threads of this one, and is freed by the kernel when its holder dies. Raises `TryAgain` after `timeout`
    seconds, OSError when the file cannot be opened.
    """
    deadline = time.monotonic() + timeout
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            _ask_until(deadline, path, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # unlinked while we waited: the next one would lock another file


def hold(fd: int, path: str, *, timeout: float = 30.0) -> None:
    """Take flock(2) on what `fd` is open on, called `path` in messages. Raises `TryAgain` after `timeout` seconds.

    A child that inherits the descriptor holds the lock as well, and longer than a parent that was killed.
    """
    _ask_until(time.monotonic() + timeout, path, fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _ask_until(deadline: float, path: str, ask: Callable[..., object], *arguments: object) -> None:
    """Ask for a lock until it is granted, ever less often.

    Calls that wait for one know no bound, and an alarm would belong to the whole process.
    """
    if _granted(ask, arguments):
        return
    pause = 0.0005
    with company.present().waiting():
        while True:
            time.sleep(pause)
            if _granted(ask, arguments):
                return
            if time.monotonic() > deadline:
                raise TryAgain(
                    f"another call has held the lock {path} for too long",
                    hint="if it never ends, `fuser` on that file names the process",
                )
            pause = min(pause * 1.5, 0.02)


def _granted(ask: Callable[..., object], arguments: tuple[object, ...]) -> bool:
    try:
        ask(*arguments)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _open_lock(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        ensure_directory(os.path.dirname(path), 0o700)
        return os.open(path, flags, 0o600)
