"""Children with a bound: run one to its end, or keep one running and end it with all it started.

Every child leads a process group of its own, so that ending it ends its children too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Finished:
    """What a child left behind. `code` is its exit status, -N when signal N ended it."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    def json(self) -> Any:
        """stdout as the one JSON value it must be."""
        return json.loads(self.stdout)

    def ok(self) -> Finished:
        """Itself, after making sure that the child succeeded."""
        assert self.code == 0, f"{' '.join(self.argv)}: exit status {self.code}\n{self.stderr.decode(errors='replace')}"
        return self


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    netns: str = "",
    timeout: float = 30.0,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run `argv` to its end. `env` None inherits ours; `netns` is the path of the network namespace to run it in.

    Raises AssertionError, with the output so far, when it runs longer than `timeout` seconds.
    """
    command = _command(argv, netns)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
        pass_fds=pass_fds,
    ) as child:
        try:
            stdout, stderr = child.communicate(stdin, timeout=timeout)
        except BaseException as error:
            end_group(child)
            if isinstance(error, subprocess.TimeoutExpired):
                stdout, stderr = child.communicate()
                raise AssertionError(f"{command} ran longer than {timeout} s\n{stdout!r}\n{stderr!r}") from error
            raise
    return Finished(tuple(command), child.returncode, stdout, stderr)


class Process:
    """A child that keeps running. Made by `Ledger.start`, which also ends it. stdout and stderr go to one file."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        netns: str = "",
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._child = subprocess.Popen(
            _command(argv, netns),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.pid = self._child.pid

    def output(self) -> str:
        """What it wrote so far to stdout and stderr."""
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def running(self) -> bool:
        return self._child.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to it alone, not to its children."""
        self._child.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status, -N for signal N. AssertionError, with its output, when it still runs after `timeout`."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self._child.args!r} still runs after {timeout} s\n{self.output()}") from error

    def end(self) -> None:
        """Kill it and all of its group; no matter whether it still runs."""
        end_group(self._child)
        self._child.wait()
        self._output.close()


def end_group(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole process group that `child` leads."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def until(condition: Callable[[], Any], what: str, *, timeout: float = 10.0) -> Any:
    """Wait until `condition()` is true and return its value. AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {what}"
        time.sleep(0.01)


def _command(argv: Sequence[str | os.PathLike[str]], netns: str) -> list[str]:
    command = [os.fspath(part) for part in argv]
    return ["nsenter", f"--net={netns}", "--", *command] if netns else command
