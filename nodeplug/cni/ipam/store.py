"""Leases on disk, in the reference plugin's own format, so that either can follow the other in the same directory.

`<dataDir>/<network>/` holds a file for each address given: named by the address, containing the container's id, CR LF
and the interface's name (very old ones: the id alone). `last_reserved_ip.<n>` remembers where range set n goes on;
`lock` is held by flock(2) for the time of one operation. What is different: a lease appears whole, by its name being
linked to a finished file, so that kill -9 and full disks leave no empty ones (those of others are taken for the free
addresses that they are); and `index` finds a container's leases without reading all of them.

Used by `host_local`. Raises the errors of core.errors.
"""

from __future__ import annotations

import errno
import os
import stat
from _socket import AF_INET, AF_INET6, inet_pton

from nodeplug.cni.ipam.index import Index
from nodeplug.core import errors, files
from nodeplug.core.errors import Error, Malformed
from nodeplug.core.inet import Ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from nodeplug.cni.ipam.ranges import Range, RangeSet
    from nodeplug.core.errors import Doing

_USUAL = 4096  # bytes that hold every lease but the strangest: nothing on this wire bounds a container's id ...
_LONGEST = 1 << 18  # ... except the kernel, which lets one variable be half of this
_PROBES = 256  # addresses looked at one by one before the directory is listed instead
_HINTS = {
    errno.ENOSPC: "free space, or inodes, on that file system",
    errno.EROFS: "make that file system writable, or name another ipam.dataDir",
    errno.ENOTDIR: "a part of the path is a file; mend ipam.dataDir",
}
# What opening or reading says of a name that is gone, a directory, a symbolic link, a socket or a pipe.
_NO_LEASE = frozenset((errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EAGAIN))


def holder_of(container: str, ifname: str) -> str:
    """What the leases of that attachment contain."""
    return f"{container}\r\n{ifname}"


class Leases:
    """A network's leases, locked between `with` and its end.

    `create` makes the directory where it is missing; without it, entering then raises `errors.NotFound`. Entering
    raises `errors.TryAgain` when another call holds the lock for longer than `timeout` seconds.
    """

    def __init__(self, data_dir: str, network: str, *, create: bool = False, timeout: float = 30.0) -> None:
        self.directory = directory_of(data_dir, network)
        self._index = Index(self.directory, directory_of(data_dir, f".nodeplug/{network}"))
        self._create = create
        self._timeout = timeout
        self._lock = -1
        # What is known of leases: content -> names. All there are once `_all_read`.
        self._known: dict[str, list[str]] = {}
        self._all_read = False
        # Whether the index was right but for `_changed`, so that it can be brought up to date.
        self._indexed = False
        self._changed: set[str] = set()

    def __enter__(self) -> Self:
        path = f"{self.directory}/lock"
        with self._doing("lock the leases"):
            try:
                self._lock = files.flock(path, 0o750, timeout=self._timeout)
            except FileNotFoundError:
                if not self._create:
                    raise
                files.ensure_directory(self.directory)
                self._lock = files.flock(path, 0o750, timeout=self._timeout)
        self._indexed = self._index.is_current()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        try:
            if self._indexed and (self._changed or self._all_read):
                self._bring_index_up()
        finally:
            os.close(self._lock)

    def _bring_index_up(self) -> None:
        try:
            if self._all_read:
                self._index.rebuild(self._known)
            else:
                for holder in self._changed:
                    self._index.put(holder, self._known[holder])
            self._index.seal()
        except OSError:
            pass  # it is out of date and says so by itself: the next operation reads all leases, as Go always does

    def held_by(self, holder: str) -> list[str]:
        """The names of the leases with that content."""
        if holder not in self._known and not self._all_read:
            found = self._index.find(holder) if self._indexed else None
            if found is not None and all(_packed(name) and self._content(name) == holder for name in found):
                self._known[holder] = found
            else:
                self.read_all()
        return list(self._known.get(holder, ()))

    def read_all(self) -> dict[str, list[str]]:
        """Every lease, as content -> names; "" stands for those without content."""
        known: dict[str, list[str]] = {}
        for name, _ in self._listed():
            content = self._content(name)
            if content is not None:
                known.setdefault(content, []).append(name)
        self._known = known
        self._all_read = self._indexed = True
        return {holder: list(names) for holder, names in known.items()}

    def reserve(self, address: Ip, holder: str) -> bool:
        """Give the address to `holder`; False when somebody has it."""
        name = str(address)
        path = f"{self.directory}/{name}"
        before = self.held_by(holder)
        try:
            with self._doing(f"reserve {name}"):
                made = files.create_whole(path, os.fsencode(holder))
                if not made and _is_free(path):
                    self.release(name, "")
                    made = files.create_whole(path, os.fsencode(holder))
        except Error:
            self._indexed = False  # whether the lease is there is not known
            raise
        if made:
            self._changed.add(holder)
            self._known[holder] = [*before, name]
        return made

    def release(self, name: str, holder: str) -> None:
        """Free the address of that name, which `holder` has."""
        before = self.held_by(holder)
        with self._doing(f"release {name}"):
            files.remove(f"{self.directory}/{name}")
        self._changed.add(holder)
        self._known[holder] = [other for other in before if other != name]

    def who(self, address: Ip) -> str:
        """Who has the address, in words."""
        return " ".join((self._content(str(address)) or "somebody unknown").split())

    def last(self, number: int) -> Ip | None:
        """The address given last in range set `number`, where that is known."""
        try:
            return Ip.parse(files.read_small(self._last_path(number), 64).decode())
        except (OSError, ValueError):
            return None

    def remember(self, number: int, address: Ip) -> None:
        """Note the address as given last. Where that fails, the next search begins elsewhere, and no more."""
        text = str(address).encode()
        try:
            fd = os.open(self._last_path(number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                files.write_all(fd, text)
                os.ftruncate(fd, len(text))
            finally:
                os.close(fd)
        except OSError:
            pass  # see above

    def first_free(self, members: RangeSet, last: Ip | None) -> tuple[Range, Ip] | None:
        """The next address that nobody has; None when all are taken.

        Looking at single addresses finds one at once in the common case; after a long run of taken ones the directory
        is listed, and the rest compared in memory.
        """
        taken: frozenset[int] | None = None
        for number, (found, value) in enumerate(members.turn(last)):
            if number == _PROBES:
                taken = self.taken(members.family)
            if taken is None:
                address = Ip.of(value, members.family)
                if _is_free(f"{self.directory}/{address}"):
                    return found, address
            elif value not in taken:
                return found, Ip.of(value, members.family)
        return self.first_free(members, last) if self.reclaim() else None

    def taken(self, family: int) -> frozenset[int]:
        """The numeric value of each address of that family that has a file."""
        length = 4 if family == 4 else 16
        return frozenset(int.from_bytes(packed, "big") for _, packed in self._listed() if len(packed) == length)

    def reclaim(self) -> bool:
        """Free the addresses whose leases have no content. Whether there were any."""
        names = self.held_by("")
        for name in names:
            self.release(name, "")
        return bool(names)

    def clear_temporary(self) -> None:
        """Remove the temporary files of those who were killed (core.files names them so): nobody else is at work."""
        with self._doing("remove temporary files"):
            for name in os.listdir(self.directory):
                if name.startswith(".") and name.endswith("~"):
                    files.remove(f"{self.directory}/{name}")

    def _listed(self) -> Iterator[tuple[str, bytes]]:
        """The name and the address of each file that is named by one."""
        with self._doing("list the leases"):
            names = os.listdir(self.directory)
        for name in names:
            packed = _packed(name)
            if packed:
                yield name, packed

    def _content(self, name: str) -> str | None:
        """A lease's content without white space around it; None when there is no such lease."""
        try:
            # A name may lead to anything: not to another file, and not to a pipe that nobody writes to.
            fd = os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                read = os.read(fd, _USUAL)
                if not read and not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                if len(read) == _USUAL:
                    read += files.read_fd(fd, _LONGEST, name)
                return os.fsdecode(read).strip(" \t\r\n\v\f\0")
            finally:
                os.close(fd)
        except Malformed:
            return None
        except OSError as error:
            if error.errno in _NO_LEASE:
                return None
            raise errors.from_os(error, f"cannot read the lease {name}") from error

    def _last_path(self, number: int) -> str:
        return f"{self.directory}/last_reserved_ip.{number}"

    def _doing(self, what: str) -> Doing:
        return errors.doing(f"cannot {what} in {self.directory}", hints=_HINTS)


def directory_of(data_dir: str, network: str) -> str:
    """Where a network's leases are."""
    return f"{data_dir.rstrip('/')}/{network}"


def _packed(name: str) -> bytes:
    """The address a file is named by; nothing for the lock, the last addresses, and whatever others put there."""
    try:
        return inet_pton(AF_INET6 if ":" in name else AF_INET, name)
    except (OSError, ValueError):
        return b""


def _is_free(path: str) -> bool:
    """Whether there is no lease, or one whose maker died before writing it (containernetworking/plugins#498)."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return True
    return found.st_size == 0 and stat.S_ISREG(found.st_mode)
