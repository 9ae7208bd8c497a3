"""A directory of logs as it is found: which files are live, rotated or neither, and how much room is left.

Whoever writes there is not trusted: nothing is followed, nothing but regular files is opened, and all of it is bounded.
"""

from __future__ import annotations

import os
import stat

from nodeplug.kernel import lease, ranges
from nodeplug.volumes.log.index import Entry, Index, Mark
from nodeplug.volumes.log.rules import Rules, Seen, Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEEPEST = 4
MOST_FILES = 4096
DIGITS = 6
"""Of the number that a rotated file's name ends with, at least."""

_MARKS = 64
_MOST_GONE = 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def space(directory: int) -> Space:
    """Of the file system that the open directory is on."""
    found = os.fstatvfs(directory)
    return Space(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def look(directory: int, rules: Rules, index: Index, now: float) -> tuple[list[Seen], Index]:
    """The files, and the index with what is new about them; files that are gone have left it. Raises OSError."""
    known = {each.path: each for each in index.files}
    found: list[Seen] = []
    entries: dict[str, Entry] = {}
    for folder, path, status in _walk(directory):
        try:
            base, sequence = classify(path, rules.files)
            seen, entry = _seen(folder, path, status, rules, known.get(path), base, sequence, now)
        except FileNotFoundError:
            continue  # gone, or another file, meanwhile
        except OSError:
            if path in known:
                entries[path] = known[path]  # it is there, and what is known of it still holds
            continue
        found.append(seen)
        if entry is not None:
            entries[path] = entry
    # What a live file's rotated ones were numbered by stays, though it has not been made again yet.
    gone = [each.replace(inode=0) for path, each in known.items() if path not in entries and each.sequence]
    files = tuple(sorted((*entries.values(), *gone[:_MOST_GONE]), key=lambda each: each.path))
    return found, (index.replace(files=files) if files != index.files else index)


def classify(path: str, patterns: tuple[str, ...]) -> tuple[str, int]:
    """(the live file's path, the rotated one's number); ("", 0) for what is no log of ours."""
    folder, slash, name = path.rpartition("/")
    stem, dot, digits = name.rpartition(".")
    if dot and len(digits) >= DIGITS and digits.isascii() and digits.isdigit() and _is_among(stem, patterns):
        return folder + slash + stem, int(digits)
    return (path, 0) if _is_among(name, patterns) else ("", 0)


def _is_among(name: str, patterns: tuple[str, ...]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern in patterns)


def open_file(directory: int, path: str, inode: int, *, write: bool = False) -> int:
    """The file of that inode at that path. Raises FileNotFoundError when another is there, OSError."""
    folder, _, name = path.rpartition("/")
    opened = [directory]
    try:
        for step in folder.split("/") if folder else ():
            opened.append(os.open(step, _DIRECTORY, dir_fd=opened[-1]))
        fd = os.open(name, (os.O_RDWR if write else os.O_RDONLY) | _FILE, dir_fd=opened[-1])
    finally:
        for each in opened[1:]:
            os.close(each)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_ino != inode:
        os.close(fd)
        raise FileNotFoundError(2, "another file has taken its place", path)
    return fd


def open_folder(directory: int, path: str) -> int:
    """The directory that a file is in, to be closed. Raises OSError."""
    found = os.open(".", _DIRECTORY, dir_fd=directory)
    for step in path.split("/")[:-1]:
        try:
            inner = os.open(step, _DIRECTORY, dir_fd=found)
        finally:
            os.close(found)
        found = inner
    return found


def folders(directory: int) -> Iterator[str]:
    """Every directory below, by its path; first the directory itself, as an empty one."""
    yield ""
    for folder, path, status in _walk(directory, directories=True):
        del folder
        if stat.S_ISDIR(status.st_mode):
            yield path


def _walk(directory: int, *, directories: bool = False) -> Iterator[tuple[int, str, os.stat_result]]:
    """(its directory, path, status) of every regular file, and of every directory if so."""
    pending = [("", 0)]
    count = 0
    while pending:
        path, depth = pending.pop()
        try:
            folder = open_folder(directory, f"{path}/x" if path else "x")
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile
        try:
            for name in sorted(os.listdir(folder)):
                count += 1
                if count > MOST_FILES:
                    return
                found = _status(folder, name)
                if found is None:
                    continue
                inner = f"{path}/{name}" if path else name
                if stat.S_ISDIR(found.st_mode):
                    if depth < DEEPEST:
                        pending.append((inner, depth + 1))
                    if directories:
                        yield folder, inner, found
                elif stat.S_ISREG(found.st_mode) and not directories:
                    yield folder, inner, found
        finally:
            os.close(folder)


def _status(folder: int, name: str) -> os.stat_result | None:
    """None where it is gone, or its name is no text, so that no document could hold it."""
    try:
        name.encode()
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, UnicodeEncodeError):
        return None


def _seen(
    folder: int,
    path: str,
    status: os.stat_result,
    rules: Rules,
    known: Entry | None,
    base: str,
    sequence: int,
    now: float,
) -> tuple[Seen, Entry | None]:
    held = status.st_blocks * 512
    plain = Seen(path=path, inode=status.st_ino, size=status.st_size, held=held, changed=status.st_mtime)
    if not base:
        return plain, None
    entry = _entry(folder, path, status, known, now)
    marks = _marked(entry.marks, status.st_size, rules, now) if not sequence and rules.max_age else ()
    entry = entry.replace(marks=marks)
    seen = plain.replace(
        base=base,
        sequence=sequence,
        start=entry.start,
        since=entry.since,
        aged=max((mark.size for mark in marks if mark.time < now - rules.max_age), default=0),
        written=bool(sequence) and _is_written(folder, path),
    )
    return seen, entry


def _entry(folder: int, path: str, status: os.stat_result, known: Entry | None, now: float) -> Entry:
    """What is known of the file, or to be found out: a new one, one that was cut or emptied by its writer."""
    if known is not None and known.inode == status.st_ino and known.start <= status.st_size:
        return known if known.since or not status.st_size else known.replace(since=now)
    start = _first_line(folder, path) if status.st_blocks * 512 + 4096 < status.st_size else 0
    sequence = known.sequence if known is not None else 0
    since = now if status.st_size else 0.0
    return Entry(path=path, inode=status.st_ino, start=start, since=since, sequence=sequence)


def _first_line(folder: int, path: str) -> int:
    """Where the content of a file begins that was cut, though nothing is known of it."""
    fd = os.open(path.rpartition("/")[2], os.O_RDONLY | _FILE, dir_fd=folder)
    try:
        first = ranges.first_data(fd)
        head = os.pread(fd, 65536, first)
        return first + len(head) - len(head.lstrip(b"\0"))
    finally:
        os.close(fd)


def _is_written(folder: int, path: str) -> bool:
    """Whether somebody has it open for writing; no where that cannot be asked."""
    fd = os.open(path.rpartition("/")[2], os.O_RDONLY | _FILE, dir_fd=folder)
    try:
        return bool(lease.is_written(fd))
    finally:
        os.close(fd)


def _marked(marks: tuple[Mark, ...], size: int, rules: Rules, now: float) -> tuple[Mark, ...]:
    """With a mark of now, where the last one is old enough; every other goes where there are too many."""
    if marks and marks[-1].size > size:
        marks = ()  # emptied by its writer
    if size and (not marks or (now - marks[-1].time >= rules.max_age / _MARKS and marks[-1].size < size)):
        marks = (*marks, Mark(size=size, time=now))
    gone = [mark for mark in marks if mark.time < now - rules.max_age]
    kept = marks[max(0, len(gone) - 1) :]
    return kept if len(kept) <= 2 * _MARKS else kept[::2]
