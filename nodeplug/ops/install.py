"""Putting a door's plugins into a directory that other programs read. `place` says what lies there.

Every change is one rename, so that a runtime finds a working plugin at each moment, and what a kill leaves behind is
finished or cleared by the next install. The copy before the current one stays: plugins that run keep importing from it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from typing import TYPE_CHECKING

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, from_os
from nodeplug.ops import shim, stage, uninstall
from nodeplug.ops.manifest import digest, say
from nodeplug.ops.place import Change, Door, Place, advice, ensure_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nodeplug.ops.manifest import Manifest
    from nodeplug.ops.place import Leaving
    from nodeplug.ops.shim import Kind


class Directory(Place):
    """A plugin directory of the node, filled and emptied."""

    def install(
        self,
        door: Door,
        *,
        only: Sequence[str] = (),
        replace: bool = False,
        python: Path | None = stage.PYTHON,
        kind: Kind = "python",
        program: bytes | None = None,
    ) -> list[Change]:
        """Install the plugins of `door`, or those named by `only`; the same again changes nothing.

        Those that are there already are upgraded with it. A foreign file of a plugin's name refuses all, before
        anything is changed, unless `replace` puts it aside. `kind` says what the files are, see `shim.binary`, unless
        `program` is their content. Without `python` nothing runs here but the shim, for a worker elsewhere. Raises
        `Refused`, `ConfigInvalid`, `PermissionRefused`, `Unavailable` (full or read-only file system, no usable Python
        or compiler), `TryAgain` while another install runs.
        """
        names = _chosen(door, only)
        tag = "" if python is None else stage.interpreter_tag(python)
        content = shim.binary("c" if python is None else kind) if program is None else program
        try:
            ensure_directory(self.path)
            with self.locked():
                self._prepare()
                return self._install(door, names, replace=replace, python=python, tag=tag, content=content)
        except OSError as error:
            raise from_os(error, f"cannot install into {self.path}", hint=advice(error)) from error

    def uninstall(
        self, leaving: Leaving | None = None, *, only: Sequence[str] = (), drain: bool = False
    ) -> list[Change]:
        """Remove what `install` put there and put back what `--replace` put aside; see `uninstall.take_out`.

        Raises `NotFound` where nothing of ours is installed, otherwise as `install` and `take_out`.
        """
        if not self.path.is_dir():
            raise NotFound(f"there is no directory {self.path}")
        try:
            with self.locked():
                if not self.private.exists():
                    raise NotFound(f"nothing of nodeplug is installed in {self.path}")
                self.check_owner(self.private)
                return uninstall.take_out(self, leaving, only=only, drain=drain)
        except OSError as error:
            raise from_os(error, f"cannot uninstall from {self.path}", hint=advice(error)) from error

    def _prepare(self) -> None:
        if self.path.stat().st_mode & stat.S_IWOTH:
            raise Refused(f"{self.path} may be written by everyone, so anyone could change what root runs there")
        if os.statvfs(self.path).f_flag & os.ST_NOEXEC:
            raise Refused(f"{self.path} is on a file system mounted noexec, so no plugin could run there")
        ensure_directory(self.private)
        self.check_owner(self.private)
        for name in ("versions", "kept"):
            ensure_directory(self.private / name)

    def _install(
        self, door: Door, names: Sequence[str], *, replace: bool, python: Path | None, tag: str, content: bytes
    ) -> list[Change]:
        manifest = self.manifest()
        foreign = [name for name in names if digest(self.path / name) not in (None, *manifest.launchers)]
        directories = [name for name in foreign if (self.path / name).is_dir() and not (self.path / name).is_symlink()]
        if directories or (foreign and not replace):
            hint = "they are directories" if directories else "--replace keeps them aside and puts them in its place"
            raise Refused(
                f"{self.path} has files that are not nodeplug's: {', '.join(directories or foreign)}", hint=hint
            )
        launcher = b"" if python is None else stage.launcher_text(door.launcher, python)
        identity = self._stage(door, launcher, python=python, tag=tag, content=content)
        ours = hashlib.sha256(content or launcher).hexdigest()
        upgraded = [name for name in door.names if name not in names and manifest.owns(self.path / name)]
        manifest.announce(ours)
        if foreign:
            door.replacing()
        self.point("lib", f"versions/{identity}")
        if python is None:
            (self.private / "exec").unlink(missing_ok=True)
        else:
            self.point("exec", f"lib/{stage.LAUNCHER}")
        if door.socket:
            self.point("worker.sock", door.socket)
        if door.absent:
            say(self.private / "absent", door.absent)
        changes = [self._place(name, ours, manifest, identity) for name in (*names, *upgraded)]
        for name in names:
            (self.private / "old" / name).unlink(missing_ok=True)  # it was being taken out
        files.sync_directory(str(self.path))
        self._prune(keep=identity)
        return sorted(changes, key=lambda change: change.name)

    def _stage(self, door: Door, launcher: bytes, *, python: Path | None, tag: str, content: bytes) -> str:
        """The name of the copy for this door, made where it is not there yet."""
        versions = self.private / "versions"
        for leftover in versions.glob("*.part"):
            shutil.rmtree(leftover)
        parts = door.parts if python is not None else ()
        identity = stage.identity(parts, launcher, tag, content)
        target = versions / identity
        if not target.is_dir():
            part = versions / f"{identity}.part"
            try:
                if python is None:
                    stage.write_shim(part, content)
                else:
                    stage.write(part, identity, parts, launcher, python=python, module=door.module, shim=content)
                part.rename(target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            files.sync_directory(str(versions))
        return identity

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
            self.link(target, self.private / "kept" / name)
        self.link(source, target)
        return Change(name, what)

    def _prune(self, *, keep: str) -> None:
        """Remove copies, all but the current and the one before."""
        versions = self.private / "versions"
        found = sorted(
            (path for path in versions.iterdir() if path.name != keep), key=lambda path: path.stat().st_mtime
        )
        for old in found[:-1]:
            shutil.rmtree(old)


def _chosen(door: Door, only: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in only if name not in door.names]
    if unknown:
        raise ConfigInvalid(f"no such plugin: {', '.join(unknown)}", hint=f"there are {', '.join(sorted(door.names))}")
    return tuple(dict.fromkeys(only)) or door.names
