"""Unix sockets that are safe to make: the right place, the right rights, never somebody else's name.

A socket is bound under a name of its own beside the final one, gets its mode and group there and is then renamed into
place: nobody ever sees it with wrong rights, a stale one is replaced in one step, and a library that unlinks what it
bound (gRPC does, at its end) finds nothing to unlink. A lock beside the socket, freed by the kernel when its holder
dies, keeps two starting daemons apart; the connect test keeps both away from a stranger's live socket.
"""

import errno
import fcntl
import os
import secrets
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, from_os

LONGEST_PATH = 107  # sun_path less its NUL, see unix(7)
_BACKLOG = 128
_STAGING = 12  # characters of a staging name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket is to be and who may connect: connecting needs write permission on the socket.

    `lock` False is for a name made up at random for one use: nobody else can want it, and the lock's file, which must
    stay when the socket goes, would stay for ever.
    """

    path: str
    mode: int = 0o600
    group: int | None = None
    lock: bool = True


_umask_lock = threading.Lock()


@contextmanager
def private_files() -> Iterator[None]:
    """In a `with` block: nobody but its owner can connect to a socket that is made, from its first moment.

    That takes the right to write, and nearly every process has a mask that gives it to no other. Only where it has not,
    the mask is changed: it is the whole process's, so what other threads make meanwhile would get it too. They take
    turns, as two that each put it back would leave the other's behind.
    """
    with _umask_lock:  # what is read meanwhile could be another's change
        if changed := _umask() & 0o022 != 0o022:
            previous = os.umask(0o177)
            try:
                yield
            finally:
                os.umask(previous)
    if not changed:
        yield


def _umask() -> int:
    """The process's mask, which umask(2) tells only by changing it; 0 where /proc does not tell."""
    try:
        with open("/proc/self/status", "rb") as status:
            line = next(line for line in status if line.startswith(b"Umask:"))
        return int(line.split()[1], 8)
    except (OSError, StopIteration, ValueError):
        return 0


class Published:
    """A socket's name, held from construction to `close()`.

    `listen()` makes the socket; for a library that binds by itself: let it bind `staging`, then `publish()`.
    Raises `ConfigInvalid` (path too long or not absolute), `Refused` (a directory others may write to, somebody answers
    there, not a socket) and `PermissionRefused`.
    """

    def __init__(self, place: Place) -> None:
        directory, name = os.path.split(place.path)
        if not os.path.isabs(place.path) or not name:
            raise ConfigInvalid(f"{place.path!r} is no absolute path of a socket")
        longest = len(os.fsencode(directory)) + 1 + max(len(os.fsencode(name)), _STAGING)
        if longest > LONGEST_PATH:
            raise ConfigInvalid(
                f"the socket path {place.path} is too long", hint=f"unix sockets take {LONGEST_PATH} bytes"
            )
        ensure_safe_directory(directory)
        self.place = place
        self.staging = os.path.join(directory, "." + secrets.token_hex(5) + "~")
        self._inode: tuple[int, int] | None = None
        self._closed = False
        self._lock = _lock(os.path.join(directory, f".{name.lstrip('.')}.lock"), place.path) if place.lock else -1
        try:
            refuse_occupied(place.path)
        except BaseException:
            self.close()
            raise

    def listen(self) -> socket.socket:
        """A listening stream socket, published."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with private_files():
                listener.bind(self.staging)
            listener.listen(_BACKLOG)
            self.publish()
        except OSError as error:
            listener.close()
            raise from_os(error, f"cannot listen on {self.place.path}") from error
        except BaseException:
            listener.close()
            raise
        return listener

    def publish(self) -> None:
        """Give the socket bound at `staging` its rights and its name. Raises `PermissionRefused`, `Unavailable`."""
        try:
            if self.place.group is not None:
                os.chown(self.staging, -1, self.place.group)
            os.chmod(self.staging, self.place.mode)
            status = os.lstat(self.staging)
            os.rename(self.staging, self.place.path)
        except OSError as error:
            raise from_os(error, f"cannot give {self.place.path} its mode, group and name") from error
        self._inode = status.st_dev, status.st_ino

    def close(self) -> None:
        """Unlink the name if it is still ours, and free it for the next."""
        if self._closed:
            return
        self._closed = True
        for path in (self.staging, self.place.path):
            try:
                status = os.lstat(path)
                if path == self.staging or (status.st_dev, status.st_ino) == self._inode:
                    os.unlink(path)
            except OSError:
                pass  # gone already, or the directory is: either way it is not ours to mend
        if self._lock >= 0:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()


def ensure_safe_directory(path: str) -> None:
    """Create the directory (0700) where it is missing, and check it as `check_directories` does."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except FileExistsError as error:
        raise Refused(f"{path} is not a directory") from error
    except OSError as error:
        raise from_os(error, f"cannot create the directory {path}") from error
    check_directories(path)


def check_directories(path: str) -> None:
    """Check a directory and all above it.

    Whoever may write to a directory on the way may put another file or socket in our place. So each has to belong to
    root or to us and be writable to no other, unless its sticky bit keeps others' hands off. Raises `Refused` with the
    command that mends it.
    """
    try:
        real = os.path.realpath(path, strict=True)
        ours = {0, os.geteuid()}
        while True:
            status = os.lstat(real)
            if status.st_uid not in ours:
                raise Refused(
                    f"{real} belongs to uid {status.st_uid}, who could replace what is below", hint=f"chown root {real}"
                )
            if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
                raise Refused(
                    f"{real} may be written to by others (mode {stat.S_IMODE(status.st_mode):04o})",
                    hint=f"chmod go-w {real}",
                )
            if real == "/":
                return
            real = os.path.dirname(real)
    except OSError as error:
        raise from_os(error, f"cannot look at the directory {path}") from error


def refuse_occupied(path: str) -> None:
    """Raise `Refused` when `path` is anything but a socket that nobody answers on, or nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os(error, f"cannot look at {path}") from error
    if not stat.S_ISSOCK(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a socket"
        raise Refused(f"{path} is {kind}", hint="remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(path)
    # Only a refused connection proves that nobody listens: EAGAIN is a full backlog, EACCES says nothing.
    if found in (errno.ECONNREFUSED, errno.ENOENT):
        return
    raise Refused(f"somebody answers on {path}", hint=f"stop that process first; `ss -xlp src {path}` names it")


def _lock(path: str, subject: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise from_os(error, f"cannot open the lock {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Refused(
                f"another process holds the name {subject}", hint=f"`fuser {path}` names it; it may be starting"
            ) from None
        raise from_os(error, f"cannot lock {path}") from error
    return fd


def inherited(environ: Mapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """The listening stream sockets a service manager passed to this process, with their names; see sd_listen_fds(3).

    All sockets of one unit have one name. A socket without a name is called by its number. Each is closed on exec from
    now on. Raises `ConfigInvalid` when a descriptor is not a listening unix stream socket, `PermissionRefused` when it
    cannot be looked at.
    """
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdecimal():
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[tuple[str, socket.socket]] = []
    for number in range(int(environ["LISTEN_FDS"])):
        fd = 3 + number
        try:
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
            listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise PermissionRefused(
                f"the service manager passed descriptor {fd}, which is no socket: {error}"
            ) from error
        if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
            raise ConfigInvalid(
                f"descriptor {fd} from the service manager is not a listening unix stream socket",
                hint="use ListenStream=/absolute/path in the .socket unit",
            )
        found.append((names[number] if number < len(names) and names[number] else str(number), listener))
    return found
