"""One record per operation, as a JSON line or readable text.

Executed plugins append to a file that rotates by size; daemons write to stderr, where journald reads the level from the
prefix. Each record is one write, so that many writers never mix their lines. A log that cannot be written never fails
the operation it tells of. Imports core only.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files, jsontext, paths
from nodeplug.core.errors import Error
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    Level = Literal["debug", "info", "warning", "error"]
    Outcome = Literal["ok", "error", "refused", "note"]
    Form = Literal["json", "text"]

_SEVERITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_LONGEST = 16 * 1024


class Pod(Record):
    """Whose operation it was, where the contract tells."""

    namespace: str = ""
    name: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Event(Record):
    """One operation, or one thing worth telling within it (outcome "note")."""

    contract: str
    op: str
    level: Level = "info"
    id: str = ""  # what was operated on: attachment, resource, key id, volume
    pod: Pod | None = None
    duration_ms: float | None = None
    outcome: Outcome = "ok"
    code: int | None = None  # the contract's own code, where the outcome has one
    message: str = ""


def as_json(event: Event, now: float) -> str:
    """One JSON object, absent fields left out."""
    fields: dict[str, object] = {"ts": _stamp(now)}
    for name in ("level", "contract", "op", "id", "pod", "duration_ms", "outcome", "code", "message"):
        value = getattr(event, name)
        if value is None or value == "":
            continue
        if name == "pod":
            value = {key: part for key, part in value.__dict__.items() if part}
        elif name == "duration_ms":
            value = round(value, 3)
        fields[name] = value
    return jsontext.dumps(fields)


def as_text(event: Event, now: float) -> str:
    """One line for a person."""
    parts = [_stamp(now), f"{event.level:<7}", event.contract, event.op]
    if event.id:
        parts.append(event.id)
    if event.pod is not None:
        parts.append(f"pod={event.pod}")
    if event.duration_ms is not None:
        parts.append(f"{event.duration_ms:.1f}ms")
    parts.append(event.outcome if event.code is None else f"{event.outcome}({event.code})")
    if event.message:
        parts.append("- " + " ".join(event.message.split()))
    return " ".join(parts)


def _stamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"


class Log:
    """Formats events and hands each to `sink` as one line of bytes. Safe among threads if the sink is."""

    def __init__(self, sink: Callable[[bytes, Level], None], *, form: Form = "json", level: Level = "info") -> None:
        self._sink = sink
        self._format = as_json if form == "json" else as_text
        self._quietest = _SEVERITY[level]

    def write(self, event: Event) -> None:
        if _SEVERITY[event.level] > self._quietest:
            return
        if len(event.message) > _LONGEST // 2:
            event = event.replace(message=event.message[: _LONGEST // 2] + " (cut)")
        line = self._format(event, time.time()).encode("utf-8", "replace")[: _LONGEST * 2]
        self._sink(line + b"\n", event.level)


def to_descriptor(fd: int, *, journal: bool = False) -> Callable[[bytes, Level], None]:
    """A sink on an open descriptor; `journal` puts the level before each line as sd-daemon(3) says."""

    def sink(line: bytes, level: Level) -> None:
        try:
            os.write(fd, f"<{_SEVERITY[level]}>".encode() + line if journal else line)
        except OSError:
            pass  # nobody to tell

    return sink


def to_nowhere(_line: bytes, _level: Level) -> None:
    """A sink that keeps nothing."""


class RotatingFile:
    """A sink on a file that moves to `path.1` when it has grown to `limit` bytes; `keep` old ones stay.

    Opened for each line: a record is rare beside the work it tells of, and a writer never holds a file that was
    rotated away. Who finds it full rotates under a lock and looks again first, so that of many writers one does it.
    """

    def __init__(self, path: str, *, limit: int = 8 << 20, keep: int = 3, locks: str = paths.LOCKS) -> None:
        self.path = path
        self.limit = limit
        self.keep = keep
        self._lock = os.path.join(locks, "log")

    def __call__(self, line: bytes, _level: Level) -> None:
        try:
            fd = self._open()
            try:
                full = os.fstat(fd).st_size + len(line) > self.limit
                if not full:
                    os.write(fd, line)
                    return
            finally:
                os.close(fd)
            self._rotate(len(line))
            fd = self._open()
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError:
            pass  # a full or read-only disk fails the operation by itself where it matters

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags, 0o640)
        except FileNotFoundError:
            files.ensure_directory(os.path.dirname(self.path), 0o750)
            return os.open(self.path, flags, 0o640)

    def _rotate(self, coming: int) -> None:
        try:
            with files.range_lock(self._lock, self.path, timeout=1.0):
                if os.stat(self.path).st_size + coming <= self.limit:
                    return
                for n in range(self.keep - 1, 0, -1):
                    try:
                        os.rename(f"{self.path}.{n}", f"{self.path}.{n + 1}")
                    except FileNotFoundError:
                        pass
                if self.keep > 0:
                    os.rename(self.path, f"{self.path}.1")
                else:
                    files.remove(self.path)
        except (Error, FileNotFoundError):
            pass  # somebody is at it, or has just done it
