"""Which leases a container holds, found without reading all of them: a cache beside a network's lease directory.

One symbolic link for each holder, in `<dataDir>/.nodeplug/<network>/`, named by a hash of what its leases contain and
pointing to their names ("10.1.0.5 fd00::5"): a link appears whole, costs one call to write and one to read, and needs
no block of its own. The reference plugin reads every file below the network's own directory, so it lies elsewhere.

How it knows that it is complete: whoever adds or removes a lease gives the lease directory a new modification time.
`seal` sets that time to one no clock will give any more and writes it down in `stamp`, with the index's own. As long as
they agree, nobody else has been there; after anybody's visit, or a crash half way, they differ, and the store reads
every lease once.

Used by `store` only, under the network's lock. Whatever it says is checked against the lease before it is believed.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files
from nodeplug.core.naming import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STAMP = "stamp"
_A_SECOND = 10**9


class Index:
    """The index of the leases in `leases`, kept in `home`. Methods that write raise OSError."""

    def __init__(self, leases: str, home: str) -> None:
        self._leases = leases
        self._home = home

    def is_current(self) -> bool:
        """Whether it holds all there is."""
        try:
            return files.read_small(f"{self._home}/{_STAMP}", 128) == self._times()
        except OSError:
            return False

    def find(self, holder: str) -> list[str] | None:
        """The names of the leases with that content as it knows them; None when it cannot say."""
        try:
            return os.readlink(self._path(holder)).split(" ")
        except FileNotFoundError:
            return []
        except OSError:
            return None

    def put(self, holder: str, names: Sequence[str]) -> None:
        """Note them all; none removes the entry."""
        path = self._path(holder)
        if names:
            try:
                os.symlink(" ".join(names), path)
                return
            except FileExistsError:
                pass
        files.remove(path)
        if names:
            os.symlink(" ".join(names), path)

    def rebuild(self, holders: Mapping[str, Sequence[str]]) -> None:
        """Make it say just that."""
        files.ensure_directory(self._home, 0o700)
        wanted = {os.path.basename(self._path(holder)): " ".join(names) for holder, names in holders.items() if names}
        for name in os.listdir(self._home):
            path = f"{self._home}/{name}"
            if name == _STAMP:
                continue
            if name in wanted and os.path.islink(path) and os.readlink(path) == wanted[name]:
                del wanted[name]
            else:
                os.unlink(path)
        for name, target in wanted.items():
            os.symlink(target, f"{self._home}/{name}")

    def seal(self) -> None:
        """Say that from now on it is complete."""
        now = time.time_ns()
        os.utime(self._leases, ns=(now, now - _A_SECOND))
        fd = os.open(f"{self._home}/{_STAMP}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            times = self._times()
            files.write_all(fd, times)
            os.ftruncate(fd, len(times))
        finally:
            os.close(fd)

    def _times(self) -> bytes:
        """Modification and change time of both directories; of a restored backup, only the former would be the same."""
        leases, home = os.stat(self._leases), os.stat(self._home)
        return b"%d %d %d %d" % (leases.st_mtime_ns, leases.st_ctime_ns, home.st_mtime_ns, home.st_ctime_ns)

    def _path(self, holder: str) -> str:
        # Of the bytes: what they are as text depends on the locale of the process.
        return f"{self._home}/{digest(os.fsencode(holder).decode('utf-8', 'surrogateescape'), 26)}"
