"""The account of a volume's logs, for collectors and for whoever goes on after a kill: one document beside its mount.

It says whose logs they are, where each file's first whole line is (a file that was given back from the front begins
with a hole), and what was dropped, in files, bytes and lines. What is about to be done is written down before, with the
lines that it drops already counted, so that after kill -9 it is done again or found done, and counted once.
"""

from __future__ import annotations

from nodeplug.core import document, files, jsontext
from nodeplug.core.errors import ConfigInvalid, Malformed, doing
from nodeplug.core.record import Record, key

_LARGEST = 4 << 20
_MOST_FILES = 4096


class Mark(Record):
    """The file was that long at that time: what is before `size` is older."""

    size: int = key(document.integer(0))
    time: float = key(document.number)


class Entry(Record):
    """A file. `start` is the offset of its first line that is kept; `lines` were dropped from it."""

    path: str = key(document.name)
    inode: int = key(document.integer(0))
    start: int = key(document.integer(0), default=0)
    since: float = key(document.number, default=0.0)
    rotated: float = key(document.number, default=0.0)
    """When it was rotated; 0 for a live one."""
    sequence: int = key(document.integer(0), default=0)
    """The highest number that a file rotated from it has had."""
    marks: tuple[Mark, ...] = key(document.array(document.nested(Mark)), default=())


class Dropped(Record):
    """What is gone for good, since the volume was made."""

    files: int = key(document.integer(0), default=0)
    bytes: int = key(document.integer(0), default=0)
    lines: int = key(document.integer(0), default=0)


class Windows(Record):
    """Moments of copytruncate in which lines may have been lost uncounted, in microseconds."""

    count: int = key(document.integer(0), default=0)
    longest: int = key(document.integer(0), default=0)
    total: int = key(document.integer(0), default=0)


class Pending(Record):
    """What is being done: `what` is "rename", "copy", "collapse", "truncate", "cut" or "remove".

    For rename and copy `to` is the rotated file. It has the lines between `start` and `length`; the first `whole` bytes
    leave the live file. For cut, `length` is where the rest begins.
    """

    what: str = key(document.name)
    path: str = key(document.name)
    inode: int = key(document.integer(0))
    to: str = key(document.text, default="")
    start: int = key(document.integer(0), default=0)
    length: int = key(document.integer(0), default=0)
    whole: int = key(document.integer(0), default=0)


class Index(Record):
    """All of it. `ended` is when the pod's volume was taken away; 0 while it is there."""

    volume: str = key(document.text, default="")
    namespace: str = key(document.text, default="")
    pod: str = key(document.text, default="")
    uid: str = key(document.text, default="")
    created: float = key(document.number, default=0.0)
    ended: float = key(document.number, default=0.0)
    rotate: str = key(document.text, default="")
    rotations: int = key(document.integer(0), default=0)
    full: int = key(document.integer(0), default=0)
    """How often the volume was found without room, so that its writers may have been refused; `full_at` is the last."""
    full_at: float = key(document.number, default=0.0)
    dropped: Dropped = key(document.nested(Dropped), default=Dropped())
    windows: Windows = key(document.nested(Windows), default=Windows())
    files: tuple[Entry, ...] = key(document.array(document.nested(Entry), most=_MOST_FILES), default=())
    pending: Pending | None = key(document.nested(Pending), default=None)

    def entry(self, path: str) -> Entry | None:
        return next((each for each in self.files if each.path == path), None)

    def with_entry(self, entry: Entry) -> Index:
        """With this one instead of what was known of its path."""
        others = tuple(each for each in self.files if each.path != entry.path)
        return self.replace(files=(*others, entry))

    def dropping(self, *, files: int = 0, bytes: int = 0, lines: int = 0) -> Index:
        before = self.dropped
        return self.replace(
            dropped=Dropped(files=before.files + files, bytes=before.bytes + bytes, lines=before.lines + lines)
        )


def read(path: str) -> Index:
    """The account at `path`; an empty one where there is none. Raises `Malformed`, OSError."""
    try:
        data = files.read_bounded(path, _LARGEST)
    except FileNotFoundError:
        return Index()
    try:
        return document.decode(Index, jsontext.loads(data), unknown="ignore")
    except ConfigInvalid as invalid:
        raise Malformed(f"the index {path} cannot be understood: {invalid}") from None


def write(path: str, index: Index) -> None:
    """Replace the account. Raises what `errors.from_os` makes of a failure."""
    with doing(f"cannot write the account {path}"):
        files.write_atomic(
            path, jsontext.dumps(document.encode(index), indent=1).encode() + b"\n", 0o644, durable=False
        )
