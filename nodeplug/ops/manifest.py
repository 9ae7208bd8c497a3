"""Which files of a plugin directory are ours: those whose content is a launcher or shim that an install announced.

By content and not by name, so that a file somebody puts over ours is known to be theirs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from typing import TYPE_CHECKING

from nodeplug.core import files
from nodeplug.core.errors import Malformed, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 1024 * 1024
_LARGEST = 4 * 1024 * 1024  # a static shim has 0.7 MiB


class Manifest:
    """The file at `path`: digests of every launcher and shim that may lie in the directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.launchers = self._read()

    def _read(self) -> tuple[str, ...]:
        try:
            found = json.loads(files.read_bounded(str(self.path), _LIMIT))
            launchers = [str(entry) for entry in found["launchers"]]
        except FileNotFoundError:
            return ()
        except (ValueError, TypeError, KeyError, Malformed) as error:
            hint = "remove it, and install with --replace"
            raise Unavailable(f"{self.path} cannot be understood: {error!r}", hint=hint) from error
        return tuple(launchers)

    def announce(self, launcher: str) -> None:
        """Know this one from now on too: before the first file is put in place, whenever that ends."""
        known = tuple(dict.fromkeys((*self.launchers, launcher)))
        say(self.path, (json.dumps({"launchers": known}, indent=2) + "\n").encode())
        self.launchers = known

    def owns(self, path: Path) -> bool:
        """Whether that file is ours."""
        return digest(path) in self.launchers


def say(path: Path, content: bytes) -> None:
    """Have the file hold that, in one step; what a kill left of an earlier attempt goes."""
    for leftover in path.parent.glob(f".{path.name}.*~"):
        leftover.unlink()
    if not path.is_file() or path.read_bytes() != content:
        files.write_atomic(str(path), content)


def digest(path: Path) -> str | None:
    """The digest of a regular file's content; "" for anything that can be no launcher; None when absent."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            return ""
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return hashlib.sha256(files.read_fd(fd, _LARGEST, str(path))).hexdigest()
    except Malformed:
        return ""
    finally:
        os.close(fd)
