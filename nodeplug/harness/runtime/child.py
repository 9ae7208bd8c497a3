"""One program run to its end: bytes in, bytes out, both bounded, and never longer than its time.

Used for plugins, which are other people's programs: one that floods its output, never ends or leaves a child holding
its pipes must not take the runtime with it.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CHUNK = 64 * 1024
_BUSY_ATTEMPTS = 6
_BUSY_PAUSE = 1.0
_LINGER = 1.0
"""Seconds that the pipes of an ended program are still read when a child of it keeps them open."""


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit status as subprocess gives it (negative: a signal) and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class TooSlow(Exception):
    """It was still running when its time was over, and was killed with all of its process group."""

    def __init__(self, stderr: bytes) -> None:
        super().__init__()
        self.stderr = stderr


class TooLoud(Exception):
    """It wrote more than it may, and was killed with all of its process group. `stream` is "stdout" or "stderr"."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream


def run(program: Path, stdin: bytes, env: Mapping[str, str], *, timeout: float, limit: int) -> Finished:
    """Run `program` without arguments in a session of its own.

    A program that is being written at this moment (ETXTBSY) is tried six times, a second apart, as libcni does. Raises
    `TooSlow`, `TooLoud` and, where it cannot be started, OSError.
    """
    deadline = time.monotonic() + timeout
    for attempt in range(1, _BUSY_ATTEMPTS + 1):
        try:
            child = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY or attempt == _BUSY_ATTEMPTS or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE)
            continue
        with child:
            try:
                return _converse(child, stdin, deadline, limit)
            finally:
                _end(child)
    raise AssertionError("the last attempt returns or raises")


def _converse(child: subprocess.Popen[bytes], stdin: bytes, deadline: float, limit: int) -> Finished:
    assert child.stdin and child.stdout and child.stderr
    said = {"stdout": bytearray(), "stderr": bytearray()}
    with ExitStack() as stack:
        ended = os.pidfd_open(child.pid)
        stack.callback(os.close, ended)
        selector = stack.enter_context(selectors.DefaultSelector())
        for stream in (child.stdin, child.stdout, child.stderr):
            os.set_blocking(stream.fileno(), False)
        selector.register(ended, selectors.EVENT_READ, "ended")
        selector.register(child.stdout, selectors.EVENT_READ, "stdout")
        selector.register(child.stderr, selectors.EVENT_READ, "stderr")
        selector.register(child.stdin, selectors.EVENT_WRITE, "stdin")
        open_pipes = {"stdout", "stderr"}
        running = True
        sent = 0
        while running or open_pipes:
            left = deadline - time.monotonic()
            if left <= 0:
                if running:
                    raise TooSlow(bytes(said["stderr"]))
                break
            for key, _ in selector.select(left):
                if key.data == "ended":
                    running = False
                    selector.unregister(ended)
                    deadline = min(deadline, time.monotonic() + _LINGER)
                elif key.data == "stdin":
                    sent = _feed(child.stdin.fileno(), stdin, sent)
                    if sent >= len(stdin):
                        selector.unregister(child.stdin)
                        child.stdin.close()
                else:
                    data = os.read(key.fd, _CHUNK)
                    said[key.data] += data
                    if len(said[key.data]) > limit:
                        raise TooLoud(key.data)
                    if not data:
                        open_pipes.discard(key.data)
                        selector.unregister(key.fd)
    return Finished(child.wait(), bytes(said["stdout"]), bytes(said["stderr"]))


def _feed(fd: int, data: bytes, sent: int) -> int:
    """How much is sent after one more write; all of it when the reader has gone, who then had no wish for the rest."""
    try:
        return sent + os.write(fd, data[sent : sent + _CHUNK])
    except BrokenPipeError:
        return len(data)
    except BlockingIOError:
        return sent


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what still runs. The group is named by the leader's pid, which stays taken until it has been waited for."""
    if child.returncode is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
