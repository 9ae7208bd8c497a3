"""One directory of logs kept in bounds: what the rules say is done, step by step, and accounted for.

Each action is written down before it is done (`index.Pending`), so that after kill -9 `recover` does it again, finds it
done, or takes it back; a line is counted as dropped once, and none is both kept and counted.
"""

from __future__ import annotations

import os

from nodeplug.core.record import Record
from nodeplug.kernel import ranges
from nodeplug.volumes.log import copying, index, rules
from nodeplug.volumes.log.index import Entry, Index, Pending
from nodeplug.volumes.log.look import DIGITS, look, open_file, open_folder, space
from nodeplug.volumes.log.rules import BLOCK, Action, Copy, Cut, Remove, Rename, Rules, Seen, Space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_ACTIONS = 64
_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 20
_REMEMBERED = 60.0
"""Seconds for which a volume that was full is in trouble."""

_UNWILLING = 60.0
"""Seconds after its rotation by which a file's writer should have reopened it."""


class Kept(Record):
    """What one pass found and did."""

    space: Space
    actions: int
    troubles: tuple[str, ...] = ()


class Rotation:
    """Of the open `directory` by `rules`; its account is the document at `path`. Used by one thread."""

    def __init__(self, directory: int, path: str, rules: Rules) -> None:
        self.directory = directory
        self.path = path
        self.rules = rules
        self.index = index.read(path)
        if self.index.pending is not None:
            self._recover(self.index.pending)

    def keep(self, now: float) -> Kept:
        """Do all that is due. Raises OSError where the directory cannot be read, and what `index.write` does."""
        before = self.index
        start = space(self.directory)
        freed = 0
        blocked: set[str] = set()
        for actions in range(_MOST_ACTIONS):  # noqa: B007  # how many there were is told
            seen, self.index = look(self.directory, self.rules, self.index, now)
            free = max(space(self.directory).free, min(start.total, start.free + freed))
            room = Space(total=start.total, free=free)  # xfs counts what was freed only after a while
            action = rules.next_action([each for each in seen if each.path not in blocked], room, self.rules, now)
            if action is None:
                break
            given = self._do(action, seen, now)
            if given < 0:
                blocked.add(action.path)  # it cannot be done now, and must not keep others from it
            freed += max(0, given)
        room = space(self.directory)
        if start.free < 2 * BLOCK:
            self.index = self.index.replace(full=self.index.full + 1, full_at=now)
        if self.index != before:
            index.write(self.path, self.index)
        return Kept(space=room, actions=actions, troubles=tuple(self._troubles(seen, room, now)))

    def _do(self, action: Action, seen: Sequence[Seen], now: float) -> int:
        """The bytes that it gave back; -1 when it could not be done."""
        before = self.index
        try:
            if isinstance(action, Rename):
                return self._rename(action, seen, now)
            if isinstance(action, Remove):
                return self._remove(action)
            if isinstance(action, Cut):
                return self._cut(action)
            assert isinstance(action, Copy)
            return self._copy(action, seen, now)
        except OSError:  # its writer was quicker, or has put something in the way
            self._take_back(before)
            return -1

    def _announce(self, pending: Pending | None, found: Index) -> None:
        self.index = found.replace(pending=pending)
        index.write(self.path, self.index)

    def _take_back(self, before: Index) -> None:
        """The last step of an action failed: what it announced has not happened, unless a copy stands."""
        pending = self.index.pending
        if pending is None:
            self.index = before
        elif pending.what in copying.ACTIONS and copying.recover(self.directory, pending):
            self._announce(None, self.index)
        else:
            self._announce(None, before)

    def _done(self) -> None:
        """In memory; the next announcement or the end of the pass writes it down. A second time does no harm."""
        self.index = self.index.replace(pending=None)

    def _rename(self, action: Rename, seen: Sequence[Seen], now: float) -> int:
        known = self.index.entry(action.path) or Entry(path=action.path, inode=action.inode)
        to, sequence = self._next(known, seen)
        pending = Pending(what="rename", path=action.path, inode=action.inode, to=to)
        moved = known.replace(path=to, rotated=now, sequence=0, marks=())
        left = Entry(path=action.path, inode=0, sequence=sequence)
        found = self.index.with_entry(left).with_entry(moved)
        self._announce(pending, found.replace(rotations=found.rotations + 1))
        self._finish_rename(pending)
        self._done()
        return 0

    def _finish_rename(self, pending: Pending) -> None:
        folder = open_folder(self.directory, pending.path)
        try:
            name, to = (each.rpartition("/")[2] for each in (pending.path, pending.to))
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino == pending.inode:
                os.rename(name, to, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def _next(self, known: Entry, seen: Sequence[Seen]) -> tuple[str, int]:
        """The next rotated name of a live file: no number comes twice, so that a gap is a file that was dropped."""
        used = [each.sequence for each in seen if each.base == known.path]
        sequence = max([known.sequence, *used]) + 1
        return f"{known.path}.{sequence:0{DIGITS}d}", sequence

    def _remove(self, action: Remove) -> int:
        fd = open_file(self.directory, action.path, action.inode)
        try:
            status = os.fstat(fd)
            lines = count_lines(fd, action.start, status.st_size, unfinished=True)
        finally:
            os.close(fd)
        pending = Pending(what="remove", path=action.path, inode=action.inode)
        left = tuple(each for each in self.index.files if each.path != action.path)
        found = self.index.replace(files=left).dropping(files=1, bytes=status.st_size - action.start, lines=lines)
        self._announce(pending, found)
        self._finish_remove(pending)
        self._done()
        return status.st_blocks * 512

    def _finish_remove(self, pending: Pending) -> None:
        folder = open_folder(self.directory, pending.path)
        try:
            name = pending.path.rpartition("/")[2]
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino == pending.inode:
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)

    def _cut(self, action: Cut) -> int:
        fd = open_file(self.directory, action.path, action.inode, write=True)
        try:
            upto = line_after(fd, action.upto)
            if upto - action.start < BLOCK:
                return -1
            lines = count_lines(fd, action.start, upto)
            entry = self.index.entry(action.path) or Entry(path=action.path, inode=action.inode)
            since = next((mark.time for mark in entry.marks if mark.size >= upto), entry.since)
            found = self.index.with_entry(entry.replace(start=upto, since=since))
            self._announce(
                Pending(what="cut", path=action.path, inode=action.inode, length=upto),
                found.dropping(bytes=upto - action.start, lines=lines),
            )
            ranges.punch(fd, 0, upto)
            self._done()
            return upto - action.start
        finally:
            os.close(fd)

    def _copy(self, action: Copy, seen: Sequence[Seen], now: float) -> int:
        known = self.index.entry(action.path) or Entry(path=action.path, inode=action.inode)
        to, sequence = self._next(known, seen)
        fd = open_file(self.directory, action.path, action.inode, write=True)
        folder = open_folder(self.directory, action.path)
        try:
            job = copying.Job(fd, folder, action.path.rpartition("/")[2], to.rpartition("/")[2], known.start)
            pending = Pending(what="copy", path=action.path, inode=action.inode, to=to, start=known.start)
            self._announce(pending, self.index)
            job.copy()
            moved = Entry(path=to, inode=job.inode, since=known.since, rotated=now)
            # What is left of the last block is one empty line, which was never written.
            begin = job.length - job.whole if job.whole else 0
            left = known.replace(sequence=sequence, start=begin, since=now, marks=())
            found = self.index.with_entry(left).with_entry(moved)
            found = found.replace(rotations=found.rotations + 1)
            what = "collapse" if job.whole else "truncate"
            self._announce(pending.replace(what=what, length=job.length, whole=job.whole), found)
            window = job.take_out()
            if window is not None:
                self.index = self.index.replace(windows=copying.with_window(self.index.windows, window))
            self._done()
            return 0
        finally:
            os.close(folder)
            os.close(fd)

    def _recover(self, pending: Pending) -> None:
        """Go on where another was killed. Raises OSError."""
        found = self.index
        try:
            if pending.what == "rename":
                self._finish_rename(pending)
            elif pending.what == "remove":
                self._finish_remove(pending)
            elif pending.what == "cut":
                fd = open_file(self.directory, pending.path, pending.inode, write=True)
                try:
                    ranges.punch(fd, 0, pending.length)
                finally:
                    os.close(fd)
            elif not copying.recover(self.directory, pending) and pending.what != "copy":
                entry = found.entry(pending.path)
                if entry is not None:
                    found = found.with_entry(entry.replace(start=pending.start))
                found = found.replace(rotations=found.rotations - 1)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            pass  # what it was about is gone, or another thing is in its place
        self._announce(None, found)

    def _troubles(self, seen: Sequence[Seen], room: Space, now: float) -> list[str]:
        said = []
        used = room.total - room.free
        if now - self.index.full_at < _REMEMBERED:
            said.append(
                "it was full, and its writers may have been refused: they are quicker than the oldest can be dropped"
            )
        if used > rules.mark(room, self.rules) and rules.others(seen) > used // 8:
            said.append(
                f"more than {self.rules.high_water} % of it are in use, and nothing can be dropped, because files that "
                f"are no logs ({', '.join(self.rules.files)}) hold too much of it"
            )
        for each in seen:
            entry = self.index.entry(each.path)
            held = self.rules.rotate == "rename" and each.written and entry is not None and bool(entry.rotated)
            if held and entry is not None and each.changed > entry.rotated + _UNWILLING:
                said.append(
                    f"the writer of {each.path} keeps it open though it was renamed; set rotate to punch or "
                    "copytruncate for a writer that does not reopen its file"
                )
        return said


def line_after(fd: int, offset: int) -> int:
    """Where the first line begins at `offset` or later; the end of the file when none does.

    Within a line that is longer than a mebibyte it is the offset itself.
    """
    if offset <= 0:
        return 0
    chunk = os.pread(fd, _LONGEST_LINE, offset - 1)
    at = chunk.find(b"\n")
    if at >= 0:
        return offset + at
    return offset if len(chunk) == _LONGEST_LINE else offset - 1 + len(chunk)


def count_lines(fd: int, start: int, end: int, *, unfinished: bool = False) -> int:
    """Newlines in that range; with `unfinished` what follows the last one is a line too."""
    buffer = bytearray(min(_CHUNK, max(1, end - start)))
    found = 0
    last = b"\n"
    while start < end:
        size = os.preadv(fd, [memoryview(buffer)[: min(len(buffer), end - start)]], start)
        if size <= 0:
            break
        found += buffer.count(b"\n", 0, size)
        last = bytes(buffer[size - 1 : size])
        start += size
    return found + (unfinished and last != b"\n")
