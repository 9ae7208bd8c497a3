"""What is to be done with a directory of logs, one action at a time. Pure: from what was seen to the next action.

    by size, time      a live file is rotated: renamed, copied out of, or its front given back
    by count, age      the oldest rotated file of a live one goes
    by high water      the oldest of all goes, then the front of the largest

Files that a process still has open for writing are never unlinked: that would free nothing, and lose lines that nobody
could count. Their front is given back instead.
"""

from __future__ import annotations

from nodeplug.core import document
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 4096


class Rules(Record):
    """One volume's. Sizes in bytes, times in seconds; 0 is no limit by time."""

    rotate: str = key(document.choice("rename", "punch", "copytruncate"))
    """ "rename" for writers that reopen; "punch" and "copytruncate" for those that keep their descriptor."""
    files: tuple[str, ...] = key(document.array(document.name))
    """Patterns of live files' names."""
    max_size: int = key(document.integer(1))
    max_files: int = key(document.integer(1))
    max_age: float = key(document.number)
    every: float = key(document.number)
    high_water: int = key(document.integer(1, 100))
    """Percent of the volume."""


class Seen(Record):
    """A file of the volume, as it was found. `path` is relative to its root."""

    path: str
    inode: int
    size: int
    held: int
    """Bytes of the disk it takes."""
    changed: float
    base: str = ""
    """Of a rotated file: the live one's path; of a live one: its own; empty for what is neither."""
    sequence: int = 0
    """Of a rotated file; 0 for a live one."""
    start: int = 0
    """The first byte that is not given back."""
    since: float = 0.0
    """When its first line that is kept may have been written."""
    aged: int = 0
    """Up to where it is older than `max_age`."""
    written: bool = False
    """Whether a process has it open for writing."""

    @property
    def kept(self) -> int:
        return self.size - self.start

    @property
    def is_live(self) -> bool:
        return bool(self.base) and not self.sequence


class Space(Record):
    """The volume's file system, in bytes."""

    total: int
    free: int


class Action(Record):
    """One thing to be done with the file that had this inode."""

    path: str
    inode: int


class Rename(Action):
    """Move a live file to its next rotated name; its writer makes a new one."""


class Copy(Action):
    """Copy a live file's lines to the next rotated name, and take them out of it."""


class Cut(Action):
    """Give back the front of a file up to the first line that begins at `upto` or later."""

    start: int
    upto: int
    why: str


class Remove(Action):
    """Unlink a rotated file."""

    start: int
    why: str


def next_action(files: Sequence[Seen], space: Space, rules: Rules, now: float) -> Action | None:
    """What to do next; None when all is as it should be, or nothing more can be done."""
    for find in (_too_many, _too_old, _to_rotate):
        action = find(files, space, rules, now)
        if action is not None:
            return action
    return _above_the_mark(files, space, rules)


def mark(space: Space, rules: Rules) -> int:
    """Bytes that may be in use before the oldest goes."""
    return space.total * rules.high_water // 100


def others(files: Sequence[Seen]) -> int:
    """Bytes that files take which are no logs, so that nothing may be done about them."""
    return sum(each.held for each in files if not each.base)


def _rotated(files: Sequence[Seen], base: str) -> list[Seen]:
    return sorted((each for each in files if each.sequence and each.base == base), key=lambda each: each.sequence)


def _too_many(files: Sequence[Seen], _space: Space, rules: Rules, _now: float) -> Action | None:
    for base in sorted({each.base for each in files if each.sequence}):
        found = _rotated(files, base)
        for each in found[: max(0, len(found) - rules.max_files)]:
            if not each.written:
                return Remove(path=each.path, inode=each.inode, start=each.start, why="count")
    return None


def _too_old(files: Sequence[Seen], _space: Space, rules: Rules, now: float) -> Action | None:
    if not rules.max_age:
        return None
    for each in files:
        if each.sequence and not each.written and each.changed < now - rules.max_age:
            return Remove(path=each.path, inode=each.inode, start=each.start, why="age")
        if each.base and each.aged - each.start >= BLOCK:
            return Cut(path=each.path, inode=each.inode, start=each.start, upto=each.aged, why="age")
    return None


def _to_rotate(files: Sequence[Seen], space: Space, rules: Rules, now: float) -> Action | None:
    for each in files:
        if not each.is_live or each.kept <= 0:
            continue
        if rules.rotate == "punch":
            window = rules.max_size * rules.max_files
            if each.kept >= window + rules.max_size:
                upto = each.size - window
                return Cut(path=each.path, inode=each.inode, start=each.start, upto=upto, why="size")
        elif each.kept >= rules.max_size or (rules.every and now - each.since >= rules.every):
            if rules.rotate == "rename":
                return Rename(path=each.path, inode=each.inode)
            if space.free > each.kept + space.total // 64:
                return Copy(path=each.path, inode=each.inode)
    return None


def _above_the_mark(files: Sequence[Seen], space: Space, rules: Rules) -> Action | None:
    need = space.total - space.free - mark(space, rules)
    if need <= 0:
        return None
    closed = [each for each in files if each.sequence and not each.written]
    if closed:
        oldest = min(closed, key=lambda each: (each.changed, each.sequence))
        return Remove(path=oldest.path, inode=oldest.inode, start=oldest.start, why="high water")
    # The last block stays, so that a file never looks as if nothing had been written.
    logs = [each for each in files if each.base and each.kept > 2 * BLOCK and each.held > 2 * BLOCK]
    if not logs:
        return None
    largest = max(logs, key=lambda each: each.held)
    more = max(need, space.total // 32)
    upto = min(largest.start + more, largest.size - BLOCK)
    return Cut(path=largest.path, inode=largest.inode, start=largest.start, upto=upto, why="high water")
