"""A directory of logs on a small file system of its own, writers of numbered lines, and the count of what became of
them: each line is there once, or was counted as dropped."""

from __future__ import annotations

import os
from pathlib import Path

from nodeplug.core import files
from nodeplug.volumes.log import index
from nodeplug.volumes.log.look import classify
from nodeplug.volumes.log.rotation import Kept, Rotation
from nodeplug.volumes.log.rules import Rules
from tests.ledger import Ledger
from tests.volumes.places import Place

KIB = 1 << 10
MIB = 1 << 20
NOW = 1_700_000_000.0
PATTERNS = ("*.log",)


def rules(**changes: object) -> Rules:
    found = Rules(
        rotate="rename",
        files=PATTERNS,
        max_size=64 * KIB,
        max_files=3,
        max_age=0.0,
        every=0.0,
        high_water=80,
    )
    return found.replace(**changes)


def line(number: int, size: int = 100) -> bytes:
    """One line: its number, and dots to make it that long."""
    return f"{number:012d} ".encode() + b"." * (size - 14) + b"\n"


class Logs:
    """A volume of that kind and size, kept by hand."""

    def __init__(self, ledger: Ledger, kind: str = "tmpfs", size: str = "8Mi", **changes: object) -> None:
        self.place = Place(ledger)
        request = self.place.request(kind, size=size, **({"fs": "xfs"} if size == "300Mi" else {}))
        self.place.service.publish(request)
        ledger.adopt("volume", lambda: self.place.service.unpublish(request.target))
        self.top = Path(request.target)
        self.fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        ledger.adopt("descriptor", lambda: os.close(self.fd))
        self.account = self.place.top / "account.json"
        self.rules = rules(**changes)
        self.written = 0

    def rotation(self) -> Rotation:
        return Rotation(self.fd, str(self.account), self.rules)

    def keep(self, after: float = 0.0) -> Kept:
        """One pass of a new keeper, as after a restart."""
        return self.rotation().keep(NOW + after)

    def write(self, count: int, name: str = "app.log", *, to: int = -1) -> None:
        """That many lines more, by a writer that opens its file each time, or to a descriptor that it keeps."""
        fd = to if to >= 0 else os.open(self.top / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            files.write_all(fd, b"".join(line(number) for number in range(self.written, self.written + count)))
            self.written += count
        finally:
            if to < 0:
                os.close(fd)

    def open(self, ledger: Ledger, name: str = "app.log") -> int:
        """A writer's descriptor, kept until the test ends."""
        fd = os.open(self.top / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        ledger.adopt("writer", lambda: os.close(fd))
        return fd

    @property
    def index(self) -> index.Index:
        return index.read(str(self.account))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.top.iterdir() if path.name != "lost+found")

    def lines(self) -> list[int]:
        """The number of every line that is there, in the order of files and within them; fails for a torn one."""
        found: list[int] = []
        order = []
        for path in self.top.rglob("*"):
            base, sequence = classify(path.relative_to(self.top).as_posix(), PATTERNS)
            if base and path.is_file():
                order.append((base, sequence or 1 << 60, path))
        for _base, _sequence, path in sorted(order):
            for text in path.read_bytes().lstrip(b"\0").splitlines(keepends=True):
                if text.strip(b" \n"):
                    assert text == line(int(text[:12])), f"torn in {path.name}: {text[:40]!r}"
                    found.append(int(text[:12]))
        return found

    def check(self) -> list[int]:
        """Every line written is there once or counted as dropped, and those that are there are the youngest."""
        found = self.lines()
        assert len(set(found)) == len(found), "a line is there twice"
        assert len(found) + self.index.dropped.lines == self.written
        assert found == list(range(self.written - len(found), self.written))
        return found
