"""What a driver does with its own process first: nothing it prints is heard, nothing it was told is seen.

The kubelet reads stdout and stderr as one, and takes any byte beside the one JSON value for a failure. Secrets come in
the arguments, which /proc shows to everybody. Imports nothing but os and sys.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_ARG_START, _ARG_END = 48 - 3, 49 - 3  # of /proc/PID/stat, counted from the third field
_PR_SET_DUMPABLE = 4


def take_output() -> int:
    """The descriptor on which the answer is due; from now on 1 and 2 lead nowhere, for children too.

    stderr stays where it is a terminal: there somebody tries the driver by hand. Without a descriptor to spare it is
    as it was.
    """
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        out = os.dup(1)
    except OSError:
        return 1
    os.dup2(null, 1)
    if not os.isatty(2):
        os.dup2(null, 2)
    os.close(null)
    return out


def hide_arguments(arguments: Sequence[str]) -> None:
    """Overwrite these, the last ones of this process, in what /proc/PID/cmdline shows. Does its best, and never raises.

    What was there between the start of the process and this call has been seen by whoever looked.
    """
    length = sum(len(os.fsencode(argument)) + 1 for argument in arguments)
    try:
        with open("/proc/self/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if 0 < length < end - start:
            memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(memory, bytes(length), end - length)
            finally:
                os.close(memory)
    except (OSError, ValueError, IndexError):
        pass


def forbid_dumps() -> None:
    """No core file of this process is written, and nobody without rights over it may look into its memory."""
    from nodeplug.kernel import libc

    try:
        libc.prctl(_PR_SET_DUMPABLE, 0)
    except OSError:
        pass


def read_arguments() -> list[str]:
    """The arguments that a shim passes on stdin, each with its NUL, so that they stand in no command line."""
    parts = []
    while part := os.read(0, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode(sys.getfilesystemencoding(), "surrogateescape").split("\0")[:-1]


def kill_children() -> None:
    """End what this process has started, each child with its process group."""
    from signal import SIGKILL

    for child in _children():
        try:
            group = os.getpgid(child)
            if group == os.getpgid(0):
                os.kill(child, SIGKILL)
            else:
                os.killpg(group, SIGKILL)
        except OSError:
            pass  # it has ended


def _children() -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # the thread has ended, or this kernel does not tell
    return found
