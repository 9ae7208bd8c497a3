"""A plugin directory of the node and what lies in it; the steps of which each change is made, one rename each.

    DIR/bridge, DIR/host-local ...        hard links of the shim or the launcher, which answer to the name they have
    DIR/.nodeplug/versions/ID/            a compiled copy of the package, `bundle` (all of it in one file) and the
                                          launcher; never changed
    DIR/.nodeplug/lib -> versions/ID      what launchers import; an upgrade swaps this link
    DIR/.nodeplug/exec -> lib/launcher    what a shim runs when no worker answers
    DIR/.nodeplug/worker.sock             a link to the worker's socket, whether or not it is there
    DIR/.nodeplug/absent                  what a shim answers when there is neither
    DIR/.nodeplug/kept/NAME               foreign files that --replace put aside
    DIR/.nodeplug/leaving                 while plugins are taken out: the calls that are no longer for ours
    DIR/.nodeplug/old/NAME                what takes those calls: a program, or the text of an answer
    DIR/.nodeplug/manifest.json           the digests of our shims and launchers: a file is ours by its content

A runtime finds a working plugin at each moment, and what a kill leaves behind is finished or cleared by the next one
who works in the directory. Used by `install` and `uninstall`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodeplug.core.errors import PermissionRefused, Refused, TryAgain
from nodeplug.ops import stage
from nodeplug.ops.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PRIVATE = ".nodeplug"
_PATIENCE = 60.0


def _nobody() -> Mapping[str, Sequence[str]]:
    return {}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Leaving:
    """How a contract's plugins are taken out. `calls` are variables (`CNI_COMMAND=ADD`) of the calls that are no longer
    for ours, `answer` is theirs where nothing comes in a plugin's place; `attachments` says what still needs which
    plugin, by its name, when no call is under way that could make more; `note` is told which plugins of a directory are
    left to be taken out."""

    calls: tuple[str, ...] = ()
    answer: bytes = b""
    attachments: Callable[[], Mapping[str, Sequence[str]]] = _nobody
    note: Callable[[Path, Sequence[str]], None] = lambda _directory, _names: None


@dataclass(frozen=True)
class Door:
    """What is installed for a contract: the launcher's name, the rooms (or files) it imports, its main, the plugins'
    names; where the worker listens for it, and what to answer without either. `replacing` is told before a foreign file
    is put aside."""

    launcher: str
    parts: tuple[str, ...]
    module: str
    names: tuple[str, ...]
    socket: str = ""
    absent: bytes = b""
    replacing: Callable[[], None] = _nothing
    leaving: Leaving = field(default_factory=Leaving)


@dataclass(frozen=True)
class Change:
    """What happened to one plugin's file: "installed", "updated", "current", "replaced", "removed", "restored", "left"
    (a foreign file that is not ours to touch), "needed" or "leaving" (still needed, and taken out with the last who
    does)."""

    name: str
    what: str


class Place:
    """A plugin directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.private = path / PRIVATE

    def manifest(self) -> Manifest:
        """Which files are ours. Raises `Unavailable`."""
        return Manifest(self.private / "manifest.json")

    def ours(self) -> list[str]:
        """The plugins whose files are ours."""
        if not self.private.exists():
            return []
        manifest = self.manifest()
        return sorted(path.name for path in self.path.iterdir() if path.name != PRIVATE and manifest.owns(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory itself: a lock file would have to go while others wait for it."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TryAgain(f"another install has been at work in {self.path} for {_PATIENCE:g} s") from None
                time.sleep(0.02)
            yield
        finally:
            os.close(fd)

    def check_owner(self, path: Path) -> None:
        found = path.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise Refused(f"{path} is not a directory", hint="move it away")
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionRefused(
                f"{path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, who could change "
                "what runs from it",
                hint="remove it, or run this as its owner",
            )

    def point(self, name: str, target: str) -> None:
        """Make the link `.nodeplug/name` lead to `target`, in one step."""
        link = self.private / name
        if link.is_symlink() and os.readlink(link) == target:
            return
        fresh = self.private / f"{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)

    def link(self, source: Path, target: Path) -> None:
        """Make `target` another name of `source`, in one step, whatever was there."""
        fresh = self.private / "link.new"
        fresh.unlink(missing_ok=True)
        os.link(source, fresh, follow_symlinks=False)
        fresh.rename(target)
        fresh.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing at all

    def program(self) -> Path:
        """What our plugins' files are other names of, in the copy in use."""
        copy = self.private / "lib"
        return copy / stage.SHIM if (copy / stage.SHIM).exists() else copy / stage.LAUNCHER


def ensure_directory(path: Path) -> None:
    """Make it and its parents readable for all, whatever the umask; those that exist keep their mode."""
    if path.is_dir():
        return
    ensure_directory(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def advice(error: OSError) -> str:
    return {
        errno.EROFS: "the file system is read-only; name a directory that can be written",
        errno.ENOSPC: "the disk is full; what was installed before still works",
        errno.EDQUOT: "the disk quota is used up; what was installed before still works",
        errno.EACCES: "run it as the directory's owner, usually root",
        errno.EPERM: "run it as root; a file may also be immutable (lsattr)",
        errno.ENOTDIR: "a part of the path is a file",
    }.get(error.errno or 0, "")
