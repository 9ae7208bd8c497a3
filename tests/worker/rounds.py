"""A small chore, and a nodeplugd that has it: each file in its directory is a round, "<seconds between> <due> <made>".

`rounds.py DIRECTORY [arguments of nodeplugd]`. Due times are of the clock that starts at the boot. A round named
`broken` is in trouble; one named `raise` makes the run fail, and `hang` makes it hang.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nodeplug.core import files
from nodeplug.core.chore import Chore
from nodeplug.core.errors import Unavailable

if TYPE_CHECKING:
    from nodeplug.core.chore import Turn


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def add(directory: Path, name: str, *, every: float = 3600.0, due: float = 0.0) -> None:
    files.write_atomic(str(directory / name), f"{every} {due} 0".encode(), durable=False)


def made(directory: Path, name: str) -> int:
    return int((directory / name).read_text().split()[2])


class Rounds(Chore):
    name = "rounds"
    patience = 1.0

    def __init__(self, settings: Mapping[str, object], directory: str = "") -> None:
        self.directory = directory or self.directory
        self.settings = settings
        self.runs = 0
        self.last: Turn | None = None

    def run(self, turn: Turn) -> float | None:
        self.runs += 1
        self.last = turn
        coming = []
        for path in sorted(Path(self.directory).glob("[!.]*")):
            if turn.stopping:
                break
            if path.name == "raise":
                raise Unavailable("the rounds cannot be made", hint="remove the file raise")
            if path.name == "fault":
                raise KeyError("fault")
            if path.name == "broken":
                turn.fail("broken", "this round cannot be made")
                continue
            while path.name == "hang" and path.exists():
                time.sleep(0.01)  # without heeding that the daemon ends
            every, due, count = (float(part) for part in path.read_text().split())
            if due <= uptime():
                due = uptime() + every
                files.write_atomic(str(path), f"{every} {due} {count + 1:.0f}".encode(), durable=False)
            coming.append(due - uptime())
        return min(coming, default=None)


if __name__ == "__main__":
    from nodeplug.worker import chores, main

    Rounds.directory = sys.argv.pop(1)
    chores.TABLE["rounds"] = "__main__:Rounds"
    main.main()
