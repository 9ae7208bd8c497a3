"""Files that change together, laid out as the kubelet's projected volumes are (its AtomicWriter).

    ..2026_07_30_10_15_00.000000017/    one generation: the files themselves
    ..data -> ..2026_07_30_...          swapped by one rename
    tls.crt -> ..data/tls.crt           what a reader opens

A reader who opens `..data` once and the files from there gets all of one generation; so does one who watches `..data`
with inotify. Two opens of the outer names may fall on either side of a swap. Earlier generations stay as long as `keep`
says, so that who has just opened `..data` finds its files. For the volumes `secret` and `identity`; everything happens
below an open directory. Raises OSError, `ConfigInvalid` for names.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeplug.core.secret import Secret

DATA = "..data"
_COMING = "..data_tmp"  # what the kubelet calls it
_LONGEST = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class File(Record):
    """One file. `uid` and `gid` -1 leave it to the process."""

    content: Secret
    mode: int = 0o644
    uid: int = -1
    gid: int = -1


def write(directory: int, wanted: Mapping[str, File], *, keep: int = 0) -> bool:
    """Show exactly these files in the open `directory`; False when it did already.

    What a killed writer left is cleared, and the next write after a failed one starts from what was shown before.
    """
    for name in wanted:
        _check(name)
    shown = _shown(directory)
    changed = shown == "" or not _holds(directory, shown, wanted)
    if changed:
        shown = _swap(directory, _fill(directory, wanted))
    _link(directory, wanted)
    _clear(directory, shown, keep)
    return changed


def read(directory: int, name: str, limit: int) -> bytes:
    """The content shown under that name. Raises FileNotFoundError, `Malformed` when it is longer than `limit` bytes."""
    fd = os.open(f"{DATA}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return files.read_fd(fd, limit, name)
    finally:
        os.close(fd)


def wipe(directory: int) -> None:
    """Overwrite every file of every generation and remove all: memory that is freed keeps its content for a while."""
    for name in os.listdir(directory):
        if _is_generation(name):
            _remove_generation(directory, name, overwrite=True)
        else:
            os.unlink(name, dir_fd=directory)


def _check(name: str) -> None:
    if not name or name.startswith("..") or name == "." or "/" in name or "\0" in name:
        raise ConfigInvalid(f"{name!r} cannot be the name of a file in a volume")
    if len(os.fsencode(name)) > _LONGEST:
        raise ConfigInvalid(f"the name of a file in a volume has more than {_LONGEST} bytes: {name[:40]!r}...")


def _is_generation(name: str) -> bool:
    return name.startswith("..") and name not in (DATA, _COMING)


def _shown(directory: int) -> str:
    """The generation that `..data` leads to; empty when there is none."""
    try:
        found = os.readlink(DATA, dir_fd=directory)
        os.stat(found, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    return found


def _holds(directory: int, generation: str, wanted: Mapping[str, File]) -> bool:
    inside = os.open(generation, _DIRECTORY, dir_fd=directory)
    try:
        return set(os.listdir(inside)) == set(wanted) and all(
            _is_same(inside, name, file) for name, file in wanted.items()
        )
    finally:
        os.close(inside)


def _is_same(inside: int, name: str, file: File) -> bool:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        found = os.fstat(fd)
        data = file.content.reveal()
        return (
            found.st_mode & 0o7777 == file.mode
            and file.uid in (-1, found.st_uid)
            and file.gid in (-1, found.st_gid)
            and found.st_size == len(data)
            and files.read_fd(fd, len(data), name) == data
        )
    finally:
        os.close(fd)


def _fill(directory: int, wanted: Mapping[str, File]) -> str:
    """Write a new generation; its name is later than that of any other, wherever the clock went."""
    name = _next_name(directory)
    os.mkdir(name, 0o700, dir_fd=directory)
    try:
        inside = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            for each, file in wanted.items():
                _create(inside, each, file)
            os.fchmod(inside, 0o755)
        finally:
            os.close(inside)
    except BaseException:
        _remove_generation(directory, name)
        raise
    return name


def _next_name(directory: int) -> str:
    now = time.time_ns()
    name = f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime(now // 10**9))}.{now % 10**9:09d}"
    latest = max((found for found in os.listdir(directory) if _is_generation(found)), default="")
    return name if name > latest else latest + "0"


def _create(inside: int, name: str, file: File) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inside)
    try:
        files.write_all(fd, file.content.reveal())
        if file.uid != -1 or file.gid != -1:
            os.fchown(fd, file.uid, file.gid)
        os.fchmod(fd, file.mode)  # after the owner, whose change takes set-id bits away; and whatever the umask
    finally:
        os.close(fd)


def _swap(directory: int, generation: str) -> str:
    _unlink(directory, _COMING)
    os.symlink(generation, _COMING, dir_fd=directory)
    os.rename(_COMING, DATA, src_dir_fd=directory, dst_dir_fd=directory)
    return generation


def _link(directory: int, wanted: Mapping[str, File]) -> None:
    """The names that readers open. New ones come after the swap, so that none leads nowhere."""
    found = {name for name in os.listdir(directory) if not name.startswith("..")}
    for name in wanted:
        if name not in found:
            os.symlink(f"{DATA}/{name}", name, dir_fd=directory)
    for name in found - set(wanted):
        _unlink(directory, name)


def _clear(directory: int, shown: str, keep: int) -> None:
    """Remove generations: later ones, which a killed writer did not finish, and earlier ones but the last `keep`."""
    _unlink(directory, _COMING)
    found = sorted(name for name in os.listdir(directory) if _is_generation(name) and name != shown)
    earlier = [name for name in found if name < shown]
    kept = earlier[len(earlier) - keep :] if keep else []
    for name in found:
        if name not in kept:
            _remove_generation(directory, name)


def _remove_generation(directory: int, name: str, *, overwrite: bool = False) -> None:
    inside = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        for each in os.listdir(inside):
            if overwrite:
                _overwrite(inside, each)
            os.unlink(each, dir_fd=inside)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=directory)


def _overwrite(inside: int, name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        files.write_all(fd, bytes(os.fstat(fd).st_size))
    finally:
        os.close(fd)


def _unlink(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
