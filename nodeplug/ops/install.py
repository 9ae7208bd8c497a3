"""Putting a door's plugins into a directory that other programs read, and taking them out again.

    DIR/bridge, DIR/host-local ...        hard links of the shim or the launcher, which answer to the name they have
    DIR/.nodeplug/versions/ID/            a compiled copy of the package, `bundle` (all of it in one file) and the
                                          launcher; never changed
    DIR/.nodeplug/lib -> versions/ID      what launchers import; an upgrade swaps this link
    DIR/.nodeplug/exec -> lib/launcher    what a shim runs when no worker answers
    DIR/.nodeplug/worker.sock             a link to the worker's socket, whether or not it is there
    DIR/.nodeplug/absent                  what a shim answers when there is neither
    DIR/.nodeplug/kept/NAME               foreign files that --replace put aside
    DIR/.nodeplug/manifest.json           the digests of our shims and launchers: a file is ours by its content

Every change is one rename, so that a runtime finds a working plugin at each moment, and what a kill leaves behind is
finished or cleared by the next install. The copy before the current one stays: plugins that run keep importing from it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.core import files
from nodeplug.core.errors import (
    ConfigInvalid,
    NotFound,
    PermissionRefused,
    Refused,
    TryAgain,
    from_os,
)
from nodeplug.ops import shim, stage
from nodeplug.ops.manifest import Manifest, digest, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nodeplug.ops.shim import Kind

_PRIVATE = ".nodeplug"
_PATIENCE = 60.0


@dataclass(frozen=True)
class Door:
    """What is installed for a contract: the launcher's name, the rooms (or files) it imports, its main, the plugins'
    names; where the worker listens for it, and what to answer without either."""

    launcher: str
    parts: tuple[str, ...]
    module: str
    names: tuple[str, ...]
    socket: str = ""
    absent: bytes = b""


@dataclass(frozen=True)
class Change:
    """What happened to one plugin's file: "installed", "updated", "current", "replaced", "removed", "restored" or
    "left" (a foreign file that is not ours to touch)."""

    name: str
    what: str


class Directory:
    """A plugin directory of the node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.private = path / _PRIVATE

    def install(
        self,
        door: Door,
        *,
        only: Sequence[str] = (),
        replace: bool = False,
        python: Path = stage.PYTHON,
        kind: Kind = "python",
    ) -> list[Change]:
        """Install the plugins of `door`, or those named by `only`; the same again changes nothing.

        Those that are there already are upgraded with it. A foreign file of a plugin's name refuses all, before
        anything is changed, unless `replace` puts it aside. `kind` says what the files are, see `shim.binary`. Raises
        `Refused`, `ConfigInvalid`, `PermissionRefused`, `Unavailable` (full or read-only file system, no usable Python
        or compiler), `TryAgain` while another install runs.
        """
        names = _chosen(door, only)
        tag = stage.interpreter_tag(python)
        content = shim.binary(kind)
        try:
            _ensure_directory(self.path)
            with self._locked():
                self._prepare()
                return self._install(door, names, replace=replace, python=python, tag=tag, content=content)
        except OSError as error:
            raise from_os(error, f"cannot install into {self.path}", hint=_advice(error)) from error

    def uninstall(self) -> list[Change]:
        """Remove what `install` put there and put back what `--replace` put aside. Foreign files stay.

        Raises `NotFound` where nothing of ours is installed, otherwise as `install`.
        """
        if not self.path.is_dir():
            raise NotFound(f"there is no directory {self.path}")
        try:
            with self._locked():
                if not self.private.exists():
                    raise NotFound(f"nothing of nodeplug is installed in {self.path}")
                self._check_owner(self.private)
                return self._uninstall()
        except OSError as error:
            raise from_os(error, f"cannot uninstall from {self.path}", hint=_advice(error)) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
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

    def _prepare(self) -> None:
        if self.path.stat().st_mode & stat.S_IWOTH:
            raise Refused(f"{self.path} may be written by everyone, so anyone could change what root runs there")
        if os.statvfs(self.path).f_flag & os.ST_NOEXEC:
            raise Refused(f"{self.path} is on a file system mounted noexec, so no plugin could run there")
        _ensure_directory(self.private)
        self._check_owner(self.private)
        for name in ("versions", "kept"):
            _ensure_directory(self.private / name)

    def _check_owner(self, path: Path) -> None:
        found = path.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise Refused(f"{path} is not a directory", hint="move it away")
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionRefused(
                f"{path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, who could change "
                "what runs from it",
                hint="remove it, or run this as its owner",
            )

    def _install(
        self, door: Door, names: Sequence[str], *, replace: bool, python: Path, tag: str, content: bytes
    ) -> list[Change]:
        manifest = Manifest(self.private / "manifest.json")
        foreign = [name for name in names if digest(self.path / name) not in (None, *manifest.launchers)]
        directories = [name for name in foreign if (self.path / name).is_dir() and not (self.path / name).is_symlink()]
        if directories or (foreign and not replace):
            hint = "they are directories" if directories else "--replace keeps them aside and puts them in its place"
            raise Refused(
                f"{self.path} has files that are not nodeplug's: {', '.join(directories or foreign)}", hint=hint
            )
        launcher = stage.launcher_text(door.launcher, python)
        identity = self._stage(door, launcher, python=python, tag=tag, content=content)
        ours = hashlib.sha256(content or launcher).hexdigest()
        upgraded = [name for name in door.names if name not in names and manifest.owns(self.path / name)]
        manifest.announce(ours)
        self._point("lib", f"versions/{identity}")
        self._point("exec", f"lib/{stage.LAUNCHER}")
        if door.socket:
            self._point("worker.sock", door.socket)
        if door.absent:
            say(self.private / "absent", door.absent)
        changes = [self._place(name, ours, manifest, identity) for name in (*names, *upgraded)]
        files.sync_directory(str(self.path))
        self._prune(keep=identity)
        return sorted(changes, key=lambda change: change.name)

    def _stage(self, door: Door, launcher: bytes, *, python: Path, tag: str, content: bytes) -> str:
        """The name of the copy for this door, made where it is not there yet."""
        versions = self.private / "versions"
        for leftover in versions.glob("*.part"):
            shutil.rmtree(leftover)
        identity = stage.identity(door.parts, launcher, tag, content)
        target = versions / identity
        if not target.is_dir():
            part = versions / f"{identity}.part"
            try:
                stage.write(part, identity, door.parts, launcher, python=python, module=door.module, shim=content)
                part.rename(target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            files.sync_directory(str(versions))
        return identity

    def _point(self, name: str, target: str) -> None:
        """Make the link `.nodeplug/name` lead to `target`, in one step."""
        link = self.private / name
        if link.is_symlink() and os.readlink(link) == target:
            return
        fresh = self.private / f"{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.rename(link)

    def _place(self, name: str, ours: str, manifest: Manifest, identity: str) -> Change:
        """Put our file at `name` by a rename; a foreign one is linked to its place among the kept first."""
        target, copy = self.path / name, self.private / "versions" / identity
        source = copy / stage.SHIM if (copy / stage.SHIM).exists() else copy / stage.LAUNCHER
        found = digest(target)
        if found == ours:
            return Change(name, "current")
        what = "installed" if found is None else "updated"
        if found not in (None, *manifest.launchers):
            what = "replaced"
            self._link(target, self.private / "kept" / name)
        self._link(source, target)
        return Change(name, what)

    def _link(self, source: Path, target: Path) -> None:
        """Make `target` another name of `source`, in one step, whatever was there."""
        fresh = self.private / "link.new"
        fresh.unlink(missing_ok=True)
        os.link(source, fresh, follow_symlinks=False)
        fresh.rename(target)
        fresh.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing at all

    def _prune(self, *, keep: str) -> None:
        """Remove copies, all but the current and the one before."""
        versions = self.private / "versions"
        found = sorted(
            (path for path in versions.iterdir() if path.name != keep), key=lambda path: path.stat().st_mtime
        )
        for old in found[:-1]:
            shutil.rmtree(old)

    def _uninstall(self) -> list[Change]:
        manifest = Manifest(self.private / "manifest.json")
        kept = {path.name for path in (self.private / "kept").glob("*")}
        changes = []
        for name in sorted({path.name for path in self.path.iterdir() if path.name != _PRIVATE} | kept):
            ours = manifest.owns(self.path / name)
            if name in kept and (ours or digest(self.path / name) is None):
                (self.private / "kept" / name).rename(self.path / name)
                changes.append(Change(name, "restored"))
            elif ours:
                (self.path / name).unlink()
                changes.append(Change(name, "removed"))
            elif name in kept:
                changes.append(Change(name, "left"))
        files.sync_directory(str(self.path))
        shutil.rmtree(self.private)
        return changes


def _ensure_directory(path: Path) -> None:
    """Make it and its parents readable for all, whatever the umask; those that exist keep their mode."""
    if path.is_dir():
        return
    _ensure_directory(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def _chosen(door: Door, only: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in only if name not in door.names]
    if unknown:
        raise ConfigInvalid(f"no such plugin: {', '.join(unknown)}", hint=f"there are {', '.join(sorted(door.names))}")
    return tuple(dict.fromkeys(only)) or door.names


def _advice(error: OSError) -> str:
    return {
        errno.EROFS: "the file system is read-only; name a directory that can be written",
        errno.ENOSPC: "the disk is full; what was installed before still works",
        errno.EDQUOT: "the disk quota is used up; what was installed before still works",
        errno.EACCES: "run it as the directory's owner, usually root",
        errno.EPERM: "run it as root; a file may also be immutable (lsattr)",
        errno.ENOTDIR: "a part of the path is a file",
    }.get(error.errno or 0, "")
