"""Faults put into a call between any two of its steps: the call is made in a child, which Python tells of each step.

Python reports opening, linking, unlinking, renaming, listing, locking and setting times to audit hooks just before they
happen; a hook in the child counts those that touch the directory, and at the chosen one kills the child, or lets the
system call fail. No code of ours is replaced.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_STEPS = {
    "open",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.symlink",
    "os.truncate",
    "os.utime",
}
_STEPS |= {"fcntl.flock"}
KILLED = -signal.SIGKILL


def steps_of(function: Callable[[], object], within: str) -> list[str]:
    """What `function()`, called in a child, does to files below `within`, one name each."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _in_child(function, within, lambda step, _: os.write(writer, f"{step}\n".encode()))
    os.close(writer)
    with open(reader) as told:
        steps = told.read().split()
    _ended(pid)
    return steps


def killed_at(step: int, function: Callable[[], object], within: str) -> bool:
    """Call `function()` in a child and kill it before its step of that number, from 0. Whether it got that far."""

    def kill(_: str, number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return _called(function, within, kill) == KILLED


def failing_at(step: int, error: int, function: Callable[[], object], within: str) -> int:
    """Call it with the step of that number failing with that errno. What it returned, 0 to 127."""

    def fail(_: str, number: int) -> None:
        if number == step:
            raise OSError(error, os.strerror(error))

    return _called(function, within, fail)


def _called(function: Callable[[], object], within: str, at_step: Callable[[str, int], object]) -> int:
    pid = os.fork()
    if pid == 0:
        _in_child(function, within, at_step)
    return _ended(pid)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(function: Callable[[], object], within: str, at_step: Callable[[str, int], object]) -> None:
    number = -1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        # Descriptors (to lock, to truncate) are of files that were opened within.
        if event in _STEPS and any(isinstance(part, int) or within in str(part) for part in arguments[:2]):
            number += 1
            at_step(event, number)

    code = 127
    try:
        sys.addaudithook(hook)
        found = function()
        code = found if isinstance(found, int) else 0
    finally:
        os._exit(code)
