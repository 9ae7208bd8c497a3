"""FlexVolume drivers in the directory that a kubelet watches: put there without an unready moment, and taken out again.

    DEST/nodeplug.dev~tmpfs/tmpfs         the shim or the launcher, under the driver's name
    DEST/nodeplug.dev~tmpfs/.nodeplug     a link to STORE/.nodeplug
    STORE/tmpfs, STORE/.nodeplug/         all the rest, as `install` lays it out for any contract

The kubelet takes every change below DEST for a reason to call init again, with two exceptions: names that begin with a
dot, and directories it has not seen when it started. And what fails its init is tried for ever. So there is nothing in
a driver's directory but those two names; a new one is made whole under a hidden name and then renamed; what changes is
renamed over; and what goes is the executable first, by its deletion, for a rename would not be noticed as one. What a
kill leaves under a hidden name has nothing in it but hidden names, or is whole and only needs its rename.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nodeplug.core import files, naming, paths
from nodeplug.core.errors import NotFound, Refused, from_os
from nodeplug.kernel import mount
from nodeplug.ops import stage
from nodeplug.ops.install import Directory
from nodeplug.ops.manifest import Manifest, digest
from nodeplug.ops.place import Change

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nodeplug.ops.place import Door
    from nodeplug.ops.shim import Kind

VENDOR = "nodeplug.dev"
STORE = Path(paths.VAR) / "flexvolume"
_PRIVATE = ".nodeplug"
_PLACES = "places.json"
_PATIENCE = 60.0
_CALLS = 10.0
_LIMIT = 1 << 20


class Drivers:
    """The drivers in one plugin directory. Several directories of a node share a store."""

    def __init__(self, path: Path, *, store: Path = STORE) -> None:
        self.path = path
        self.store = store
        self.private = store / _PRIVATE

    def install(
        self,
        door: Door,
        *,
        only: Sequence[str] = (),
        replace: bool = False,
        python: Path = stage.PYTHON,
        kind: Kind = "python",
    ) -> list[Change]:
        """Install the drivers of `door`, or those named by `only`; the same again changes nothing.

        Those that are there already are upgraded with it. An executable in a driver's place that is not nodeplug's
        refuses all, before anything is changed in the directory, unless `replace` keeps it aside. Raises what
        `Directory.install` does.
        """
        with self._changing("install into"):
            self._check()
            ours = Directory(self.store).install(door, only=only, python=python, kind=kind)
            chosen = [change.name for change in ours if not only or change.name in only]
            chosen += [name for name in door.names if name not in chosen and self._owns(name)]
            foreign = [name for name in chosen if not self._free(name)]
            if any(not _is_directory(self._directory(name)) for name in foreign) or (foreign and not replace):
                raise Refused(
                    f"{self.path} has drivers of these names that are not nodeplug's: {', '.join(sorted(foreign))}",
                    hint="--replace keeps the executables aside and puts nodeplug's in their place",
                )
            self._remember({*self._places(), str(self.path)})
            changes = [self._place(name) for name in sorted(chosen)]
            files.sync_directory(str(self.path))
            return changes

    def uninstall(self) -> list[Change]:
        """Remove what `install` put there, and put back what was kept aside. What is not nodeplug's stays.

        Raises `NotFound` where nothing of nodeplug's is installed, and `Refused` while volumes are published, whose
        pods could not end without the driver.
        """
        if not self.path.is_dir():
            raise NotFound(f"there is no directory {self.path}")
        with self._changing("uninstall from"):
            names = self._installed()
            if not names:
                raise NotFound(f"nothing of nodeplug is installed in {self.path}")
            held = published(names)
            if held:
                raise Refused(
                    f"{len(held)} volumes of these drivers are published: {', '.join(held)}",
                    hint="end their pods first; without the driver they would stay Terminating",
                )
            changes = [self._remove(name) for name in names]
            files.sync_directory(str(self.path))
            others = {place for place in self._places() if place != str(self.path) and os.path.isdir(place)}
            if others:
                self._remember(others)
            elif self.private.is_dir():
                self._await_calls()
                Directory(self.store).uninstall()
                _remove_if_empty(self.store)
            return changes

    @contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        try:
            with files.range_lock(f"{paths.LOCKS}/install", str(self.store), timeout=_PATIENCE):
                yield
        except OSError as error:
            raise from_os(error, f"cannot {doing} {self.path}") from error

    def _check(self) -> None:
        if not self.path.is_dir():
            self.path.mkdir(parents=True)
            self.path.chmod(0o755)  # whatever the umask
        if self.path.stat().st_mode & stat.S_IWOTH:
            raise Refused(f"{self.path} may be written by everyone, so anyone could change what root runs there")
        if os.statvfs(self.path).f_flag & os.ST_NOEXEC:
            raise Refused(f"{self.path} is on a file system mounted noexec, so no driver could run there")

    def _directory(self, name: str) -> Path:
        return self.path / f"{VENDOR}~{name}"

    def _staged(self, name: str) -> Path:
        return self.path / f".{VENDOR}~{name}.new"

    def _kept(self, name: str) -> Path:
        return self.private / "replaced" / naming.digest(str(self.path), 13) / name

    def _owns(self, name: str) -> bool:
        return Manifest(self.private / "manifest.json").owns(self._directory(name) / name)

    def _free(self, name: str) -> bool:
        """Whether the place is empty or nodeplug's."""
        directory = self._directory(name)
        if not os.path.lexists(directory):
            return True
        return _is_directory(directory) and (digest(directory / name) is None or self._owns(name))

    def _installed(self) -> list[str]:
        """The drivers here that are nodeplug's, those that were half removed or half made among them."""
        found = []
        for entry in self.path.iterdir():
            hidden = entry.name.startswith(".")
            vendor, _, name = (entry.name[1:].removesuffix(".new") if hidden else entry.name).partition("~")
            ours = hidden or (entry / _PRIVATE).is_symlink() or self._owns(name)
            if vendor == VENDOR and _is_directory(entry) and ours:
                found.append(name)
        return sorted(set(found))

    def _place(self, name: str) -> Change:
        directory = self._directory(name)
        self._finish_staged(name)
        source = self.store / name
        if not directory.exists():
            staged = self._staged(name)
            staged.mkdir()
            staged.chmod(0o755)
            (staged / _PRIVATE).symlink_to(self.private)
            _put(source, staged / name)
            files.sync_directory(str(staged))
            staged.rename(directory)
            return Change(name, "installed")
        self._point(directory)
        found = digest(directory / name)
        if found == digest(source):
            return Change(name, "current")
        what = "installed" if found is None else "updated"
        if found is not None and not self._owns(name):
            what = "replaced"
            self._kept(name).parent.mkdir(parents=True, exist_ok=True)
            _put(directory / name, self._kept(name))
        _put(source, directory / name)
        return Change(name, what)

    def _finish_staged(self, name: str) -> None:
        """What a killed install left: with its executable it is whole; without, nothing in it has ever been seen."""
        staged = self._staged(name)
        if not _is_directory(staged):
            return
        if (staged / name).exists() and not self._directory(name).exists():
            staged.rename(self._directory(name))
        else:
            shutil.rmtree(staged)

    def _point(self, directory: Path) -> None:
        """Make the link to the store in one step."""
        link = directory / _PRIVATE
        if link.is_symlink() and os.readlink(link) == str(self.private):
            return
        fresh = directory / f"{_PRIVATE}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.private)
        fresh.rename(link)

    def _remove(self, name: str) -> Change:
        self._finish_staged(name)
        directory = self._directory(name)
        executable = directory / name
        if digest(executable) is not None and not self._owns(name):
            what = "left"  # somebody has put his own there
        elif self._kept(name).exists():
            _put(self._kept(name), executable)
            what = "restored"
        else:
            executable.unlink(missing_ok=True)
            what = "removed"
        for hidden in (_PRIVATE, f"{_PRIVATE}.new", f".{name}.new"):
            (directory / hidden).unlink(missing_ok=True)
        _remove_if_empty(directory)
        return Change(name, what)

    def _await_calls(self) -> None:
        """Let the calls end that began before their driver was removed: they still need the store."""
        beginnings = (f"{self.path}/{VENDOR}~".encode(), f"{self.private}/exec".encode())
        deadline = time.monotonic() + _CALLS
        while time.monotonic() < deadline and _is_run(beginnings):
            time.sleep(0.02)

    def _places(self) -> list[str]:
        """The plugin directories that use the store."""
        try:
            return [str(place) for place in json.loads(files.read_bounded(str(self.private / _PLACES), _LIMIT))]
        except (FileNotFoundError, ValueError):
            return []

    def _remember(self, places: set[str]) -> None:
        files.write_atomic(str(self.private / _PLACES), (json.dumps(sorted(places)) + "\n").encode())


def published(names: Sequence[str]) -> list[str]:
    """The volumes of these drivers that are mounted now, as POD/DRIVER/VOLUME."""
    found = set()
    for known in mount.mounts():
        parts = known.point.split("/")
        for name in names:
            if parts[-3:-1] == ["volumes", f"{VENDOR}~{name}"] and len(parts) > 4:
                found.add(f"{parts[-4]}/{name}/{parts[-1]}")
    return sorted(found)


def _is_run(beginnings: tuple[bytes, ...]) -> bool:
    """Whether a process has an argument that begins so."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if any(argument.startswith(beginnings) for argument in arguments):
            return True
    return False


def _put(source: Path, target: Path) -> None:
    """Have `target` be the file `source`, in one step and under a name that is not watched until then."""
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, fresh)
        fresh.chmod(stat.S_IMODE(source.stat().st_mode))
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    fresh.rename(target)
    fresh.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing at all


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
