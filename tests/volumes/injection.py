"""Faults put between any two steps of a function that works on files: it runs in a child, whose Python tells of each.

Python reports what it is about to do with files to audit hooks; a hook in the child counts, and at the chosen step it
kills the child or lets the system call fail. No code of ours is replaced. Reading a library is no step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_STEPS = frozenset(
    {
        *("open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
        *("os.symlink", "os.truncate", "os.utime", "subprocess.Popen"),
    }
)
_QUIET = ("/usr", "/proc", "/dev/urandom", os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
KILLED = -signal.SIGKILL


def steps_of(function: Callable[[], object]) -> list[str]:
    """What `function()`, called in a child, does, one name each."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _in_child(function, lambda step, _: os.write(writer, f"{step}\n".encode()))
    os.close(writer)
    with open(reader) as told:
        steps = told.read().split()
    assert _ended(pid) < 127, "the function raised"
    return steps


def killed_at(step: int, function: Callable[[], object]) -> bool:
    """Call `function()` in a child and kill it before its step of that number, from 0. Whether it got that far."""

    def kill(_: str, number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return _called(function, kill) == KILLED


def failing_at(step: int, error: int, function: Callable[[], object]) -> bool:
    """Call it with the step of that number failing with that errno. Whether it failed."""

    def fail(_: str, number: int) -> None:
        if number == step:
            raise OSError(error, os.strerror(error))

    return _called(function, fail) == 127


def _called(function: Callable[[], object], at_step: Callable[[str, int], object]) -> int:
    pid = os.fork()
    if pid == 0:
        _in_child(function, at_step)
    return _ended(pid)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(function: Callable[[], object], at_step: Callable[[str, int], object]) -> None:
    number = -1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event in _STEPS and not str(arguments[0]).startswith(_QUIET):
            number += 1
            at_step(event, number)

    code = 127
    try:
        sys.addaudithook(hook)
        function()
        code = 0
    finally:
        os._exit(code)
