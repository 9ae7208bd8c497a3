"""Leases on disk: one file for each attachment, named by its identity, so that whoever knows the one finds the other.

A file is replaced whole. Who reads one to write it again, plugin or chore, holds the attachment's byte of a lock
meanwhile, and for no longer: never while a server is waited for. Raises the errors of core.errors.
"""

from __future__ import annotations

import os

from nodeplug.cni.ipam.dhcp.lease import Lease, encode
from nodeplug.core import document, errors, files, jsontext, paths
from nodeplug.core.errors import ConfigInvalid, Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodeplug.cni.contract import Attachment
    from nodeplug.core.errors import Doing

_LOCK = paths.LOCKS + "/dhcp"
_LARGEST = 64 * 1024
_PREFIX = "np"


class Unreadable(Malformed):
    """A file that holds no lease."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is no lease: {why}", hint="remove it; the server forgets the lease in time")
        self.path = path


class Leases:
    """The leases in a directory. What was read is kept until its file changes."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._seen: dict[str, tuple[tuple[int, int, int], Lease]] = {}

    def lock(self, attachment: Attachment) -> files.RangeLock:
        """In a `with` block: nobody else changes that attachment's lease. Raises `TryAgain`."""
        return files.range_lock(_LOCK, attachment.identity)

    def read(self, attachment: Attachment) -> Lease | None:
        """None when it has none. Raises `Unreadable`."""
        with self._doing(f"read the lease of {attachment}"):
            try:
                return _load(self.path(attachment))
            except FileNotFoundError:
                return None

    def write(self, lease: Lease, *, durable: bool = True) -> None:
        """`durable`: after a power cut it is there. What is not has never been used by anybody."""
        path, data = self.path(lease.attachment), jsontext.dumps(encode(lease), indent=1).encode()
        with self._doing(f"write the lease of {lease.attachment}"):
            try:
                files.write_atomic(path, data, 0o600, durable=durable)
            except FileNotFoundError:
                files.ensure_directory(self.directory, 0o700)
                files.write_atomic(path, data, 0o600, durable=durable)

    def remove(self, attachment: Attachment) -> None:
        with self._doing(f"remove the lease of {attachment}"):
            files.remove(self.path(attachment))

    def path(self, attachment: Attachment) -> str:
        return f"{self.directory}/{attachment.identity}"

    def all(self) -> Iterator[Lease | Unreadable]:
        """Each lease, or what keeps its file from being one."""
        with self._doing("list the leases"):
            try:
                names = os.listdir(self.directory)
            except FileNotFoundError:
                names = []
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        for name in names:
            if not name.startswith(_PREFIX):
                continue
            try:
                yield self._look(name)
            except FileNotFoundError:
                continue  # released meanwhile
            except Unreadable as unreadable:
                yield unreadable

    def clear_temporary(self) -> None:
        """Remove what writers left that were killed."""
        with self._doing("remove temporary files"):
            try:
                names = os.listdir(self.directory)
            except FileNotFoundError:
                return
            for name in names:
                if name.startswith(f".{_PREFIX}") and files.is_abandoned(name):
                    files.remove(f"{self.directory}/{name}")

    def _look(self, name: str) -> Lease:
        path = f"{self.directory}/{name}"
        try:
            found = os.lstat(path)
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            seen = self._seen.get(name)
            if seen is None or seen[0] != stamp:
                seen = self._seen[name] = (stamp, _load(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise errors.from_os(error, f"cannot read the lease {path}") from error
        return seen[1]

    def _doing(self, what: str) -> Doing:
        return errors.doing(f"cannot {what} in {self.directory}")


def _load(path: str) -> Lease:
    try:
        return document.decode(Lease, jsontext.loads(files.read_bounded(path, _LARGEST)), unknown="ignore")
    except ConfigInvalid as invalid:
        raise Unreadable(path, str(invalid)) from None
