"""File systems in image files: made, checked and grown by their own programs, each a bounded child.

The children get the image as an inherited descriptor that holds its lock (flock(2)): should their parent be killed,
nobody else touches the image before they have ended.
"""

from __future__ import annotations

import os

from nodeplug.core import child
from nodeplug.core.errors import ConfigInvalid, Unavailable
from nodeplug.core.record import Record
from nodeplug.volumes.sizes import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.core.child import Finished

_PATH = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_ENV = {"PATH": ":".join(_PATH), "LC_ALL": "C", "E2FSPROGS_LIBMAGIC_SUPPRESS": "1"}
_MOST_WORDS = 400
_FSCK_FAILED = 4  # e2fsck(8): 1 and 2 are errors that it has corrected


class FileSystem(Record):
    """What to run for one kind. `sparse` and `full` are the options for images of which blocks are given or not."""

    name: str
    package: str
    smallest: int
    """Bytes that one can be made in."""
    make: tuple[str, ...]
    sparse: tuple[str, ...]
    full: tuple[str, ...]
    mounted: dict[str, str | None]
    """Mount options."""


EXT4 = FileSystem(
    name="ext4",
    package="e2fsprogs",
    smallest=8 << 20,
    # The quota is the pod's, all of it; an error must not go on to spoil more.
    make=("mkfs.ext4", "-q", "-F", "-m", "0", "-e", "remount-ro"),
    sparse=("-E", "discard"),
    full=("-E", "nodiscard"),  # it would give the blocks back
    mounted={},
)
XFS = FileSystem(
    name="xfs",
    package="xfsprogs",
    smallest=300 << 20,
    make=("mkfs.xfs", "-q", "-f"),
    sparse=(),
    full=("-K",),
    mounted={"nouuid": None},  # a copied image has its original's
)
KNOWN = {kind.name: kind for kind in (EXT4, XFS)}


def ensure_size(size: int, fs: str) -> None:
    """Raise `ConfigInvalid` when that is too little for such a file system."""
    smallest = KNOWN[fs].smallest
    if size < smallest:
        raise ConfigInvalid(f"{shown(size)} is too little for {fs}", hint=f"{shown(smallest)} is the least")


def make(kind: FileSystem, fd: int, *, full: bool, timeout: float) -> None:
    """A new file system in the whole of an open file. Raises `Unavailable` with the program's words."""
    # By the descriptor: the file has no name as yet.
    done = _run(kind, [*kind.make, *(kind.full if full else kind.sparse), f"/proc/self/fd/{fd}"], fd, timeout)
    if done.code != 0:
        raise Unavailable(f"{kind.make[0]} failed: {_words(done)}")


def check(kind: FileSystem, path: str, fd: int, *, force: bool, timeout: float) -> None:
    """Replay the journal and mend what can be mended without a question. Raises `Unavailable` when that is not enough.

    xfs does it by itself when it is mounted, and has no other check that is meant for every start.
    """
    if kind is not EXT4:
        return
    done = _run(kind, ["e2fsck", "-p", *(["-f"] if force else []), path], fd, timeout)
    if done.code >= _FSCK_FAILED or done.code < 0:
        raise Unavailable(
            f"the file system in {path} is damaged: {_words(done)}",
            hint=f"save what is in it, then `e2fsck -f {path}` while no pod has it",
        )


def grow(kind: FileSystem, path: str, fd: int, *, timeout: float) -> None:
    """Let an ext4 that is mounted nowhere fill its file. Another grows when it is mounted."""
    if kind is not EXT4:
        return
    done = _run(kind, ["resize2fs", path], fd, timeout)
    if done.code != 0:
        raise Unavailable(f"resize2fs failed: {_words(done)}")


def _run(kind: FileSystem, command: Sequence[str], fd: int, timeout: float) -> Finished:
    program = _find(command[0], kind.package)
    return child.run([program, *command[1:]], env=_ENV, timeout=timeout, fds=(fd,))


def _find(name: str, package: str) -> str:
    for directory in _PATH:
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    raise Unavailable(f"{name} is not on this node", hint=f"install {package}")


def _words(done: Finished) -> str:
    said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
    return f"{said[-_MOST_WORDS:] or 'without a word'} (exit status {done.code})"
