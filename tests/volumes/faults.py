"""Faults put before any system call of a function: it runs in a child, where Python tells of each call it makes.

The interpreter's profiler sees every builtin just before it runs, and our one door to foreign functions: what goes to
the kernel counts from 0. At the chosen one the child is killed, or the call fails with an errno. No code of ours is
replaced, and what the function does on its way out is done for real.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from nodeplug.core.errors import Error
from nodeplug.kernel import libc

KILLED = -signal.SIGKILL
_FAILED = 1
_WRONG = 127
_MODULES = frozenset({"posix", "fcntl", "_posixsubprocess", "_io"})
# What never reaches the kernel, or cannot fail there. A close that reports an error has closed.
_HARMLESS = frozenset(
    (
        *(
            "_exit",
            "_path_normpath",
            "close",
            "cpu_count",
            "fsdecode",
            "fsencode",
            "fspath",
            "get_inheritable",
            "getpid",
        ),
        *("kill", "killpg", "major", "makedev", "minor", "strerror", "waitpid", "waitstatus_to_exitcode"),
        *("WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WIFSTOPPED", "WTERMSIG"),
    )
)
# Of these only `open` is a call of its own.
_IO = frozenset({"open"})
_DOORS = frozenset({libc._call.__code__, libc._system.__code__})


def calls_of(function: Callable[[], object]) -> list[str]:
    """The names of the system calls that `function()`, run in a child, makes when nothing is wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _in_child(function, lambda name, _: os.write(writer, f"{name}\n".encode()))
    os.close(writer)
    with open(reader) as told:
        names = told.read().split()
    assert _ended(pid) == 0, "it fails without any fault"
    return names


def killed_at(number: int, function: Callable[[], object]) -> bool:
    """Run it in a child that is killed just before its call of that number. Whether it got that far."""

    def kill(_: str, at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    code = _run(function, kill)
    assert code in (0, KILLED)
    return code == KILLED


def failing_at(number: int, error: int, function: Callable[[], object]) -> bool:
    """Run it in a child whose call of that number fails with that errno. Whether it succeeded all the same.

    It may fail with an error of core.errors and with nothing else.
    """

    def fail(_: str, at: int) -> None:
        if at == number:
            raise OSError(error, os.strerror(error), "injected")

    code = _run(function, fail)
    assert code in (0, _FAILED), "an exception that no door would know what to do with; it is above"
    return code == 0


def _run(function: Callable[[], object], at_call: Callable[[str, int], object]) -> int:
    pid = os.fork()
    if pid == 0:
        _in_child(function, at_call)
    return _ended(pid)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_child(function: Callable[[], object], at_call: Callable[[str, int], object]) -> None:
    number = -1

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal number
        name = ""
        if event == "c_call":
            module, called = getattr(argument, "__module__", None), argument.__name__
            if module in _MODULES and called not in _HARMLESS and (module != "_io" or called in _IO):
                name = called
        elif event == "call" and frame.f_code in _DOORS:
            name = str(frame.f_locals["name"])
        if name:
            number += 1
            at_call(name, number)

    code = _WRONG
    try:
        sys.setprofile(profile)
        function()
        code = 0
    except Error:
        code = _FAILED
    except BaseException:
        sys.setprofile(None)
        import traceback

        traceback.print_exc()
    finally:
        sys.setprofile(None)
        sys.stderr.flush()
        os._exit(code)
