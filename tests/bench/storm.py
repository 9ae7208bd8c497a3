"""Many executions at once, by a driver that costs little itself: spawn up to so many, reap whichever ends."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """One process to be run. `stdin` is a file's path."""

    argv: Sequence[str]
    env: Mapping[str, str]
    stdin: str


def storm(executions: Sequence[Execution], *, at_once: int) -> float:
    """Seconds until all have ended, `at_once` under way at any time. AssertionError when one of them fails."""
    running: dict[int, Execution] = {}
    waiting = list(reversed(executions))
    failed: list[Execution] = []
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        while waiting or running:
            while waiting and len(running) < at_once:
                one = waiting.pop()
                actions = [
                    (os.POSIX_SPAWN_OPEN, 0, one.stdin, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                ]
                running[os.posix_spawn(one.argv[0], one.argv, dict(one.env), file_actions=actions)] = one
            pid, status = os.wait()
            if status:
                failed.append(running[pid])
            del running[pid]
        seconds = time.perf_counter() - begin
        said = os.pread(output.fileno(), 2000, 0).decode(errors="replace") if failed else ""
    assert not failed, f"{len(failed)} of {len(executions)} failed, the first: {failed[0].env}\n{said}"
    return seconds
