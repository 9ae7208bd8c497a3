"""One execution of a driver, as the kubelet does it: stdout and stderr as one, exit code, status, and its own log.

Where the kubelet would wait for ever this ends after `PATIENCE` seconds and raises `Hung`.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error, NotFound
from nodeplug.harness.kubelet.flexvolume import answer
from nodeplug.harness.kubelet.flexvolume.answer import NotSupported, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATIENCE = 115.0
"""Seconds, a little less than after which a pod's event says that its volumes are late."""

KUBELET_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
BARE_ENV: dict[str, str] = {}
"""What a controller manager may have: nothing, not even PATH."""

_LINGER = 2.0
_TERMINATE = 10.0
_LIMIT = 4 << 20


class Hung(Error):
    """The kubelet would wait for ever: the driver does not end, or a child of it keeps its output open."""


class ExecFailed(Error):
    """The driver could not be started, or ended with an exit status or a signal."""


@dataclass(frozen=True)
class Executed:
    """How an execution ended; `code` is negative for a signal. `held` tells that somebody kept the output open."""

    argv: tuple[str, ...]
    code: int
    output: bytes
    seconds: float
    held: bool = False
    late: bool = False


@dataclass
class Journal:
    """What a kubelet logs, and what it ran; shared by plugins and threads."""

    lines: list[str] = field(default_factory=list)
    executed: list[Executed] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def verbs(self) -> list[str]:
        """The verbs that were run, in order."""
        return [execution.argv[1] for execution in self.executed]

    def leaks(self, secrets: Sequence[str]) -> list[str]:
        """The lines with one of these in them."""
        return [line for line in self.lines if any(secret in line for secret in secrets)]


@dataclass(frozen=True)
class Caller:
    """Runs executables. `watch`, where given, is told of each process that is started."""

    env: Mapping[str, str] = field(default_factory=lambda: dict(KUBELET_ENV))
    cwd: str = "/"
    patience: float = PATIENCE
    journal: Journal = field(default_factory=Journal)

    def execute(self, path: Path, arguments: Sequence[str], *, timeout: float = 0.0) -> Executed:
        """Run it to its end, and to the end of its output. `timeout` is the kubelet's own, 0 for none.

        Raises `NotFound` and `ExecFailed` when it cannot be started, `Hung` when it or its output does not end.
        """
        argv = (str(path), *arguments)
        began = time.monotonic()
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                cwd=self.cwd,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise NotFound(f"fork/exec {path}: no such file or directory") from None
        except OSError as error:
            raise ExecFailed(f"fork/exec {path}: {(error.strerror or '').lower()}") from error
        watch = _Stopper(child, timeout) if timeout else None
        held = True
        try:
            output, ended, held = _listen(child, began + self.patience)
        finally:
            if watch is not None:
                watch.cancel()
            if child.poll() is None or held:
                _kill_group(child.pid)
            code = child.wait()
            assert child.stdout is not None
            child.stdout.close()
        late = watch is not None and watch.fired
        done = Executed(argv, code, output, time.monotonic() - began, held=held, late=late)
        self.journal.executed.append(done)
        if not ended:
            raise Hung(f"{path.name} {arguments[0]} had not ended after {self.patience:g} s")
        if held:
            raise Hung(f"{path.name} {arguments[0]} ended, and a process that it started keeps its output open")
        return done

    def call(self, path: Path, verb: str, *arguments: str, timeout: float = 0.0) -> Status:
        """One verb from arguments to status, with the lines that a kubelet logs about it.

        Raises `Unreadable`, `NotSupported`, `Failed`, and what `execute` does.
        """
        log = self.journal
        try:
            done = self.execute(path, (verb, *arguments), timeout=timeout)
        except (NotFound, ExecFailed) as error:
            _judged(verb, b"", log)
            log.say(f"FlexVolume: driver call failed: executable: {path}, args: {[verb, *arguments]}, error: {error}")
            raise
        if done.late:
            raise ExecFailed("timeout")
        outcome = _judged(verb, done.output, log)
        if done.code == 0:
            if isinstance(outcome, Error):
                raise outcome
            return outcome
        ending = f"signal {-done.code}" if done.code < 0 else f"exit status {done.code}"
        if isinstance(outcome, Status):
            log.say(f"FlexVolume: driver bug: {path}: exec error ({ending}) but no error in response.")
            raise ExecFailed(ending)
        if not isinstance(outcome, NotSupported):
            # Here the whole command line is logged, and with it the secrets of a mount.
            log.say(
                f"FlexVolume: driver call failed: executable: {path}, args: {[verb, *arguments]}, "
                f"error: {ending}, output: {done.output!r}"
            )
        raise outcome


def _judged(verb: str, output: bytes, log: Journal) -> Status | Error:
    try:
        return answer.judge(verb, output)
    except NotSupported as error:
        return error
    except answer.Failed as error:
        log.say(error.message)
        return error
    except answer.Unreadable as error:
        log.say(f"Failed to unmarshal output for command: {verb}, output: {output!r}, error: {error.message}")
        return error


def _listen(child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool, bool]:
    """What it wrote; whether it ended; whether its output was held open by somebody else then."""
    assert child.stdout is not None
    heard = bytearray()
    ended = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, "output")
            selector.register(ended, selectors.EVENT_READ, "end")
            waiting = {"output", "end"}
            while "output" in waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                for ready, _ in selector.select(left):
                    if ready.data == "end":
                        selector.unregister(ended)
                        waiting.discard("end")
                        deadline = min(deadline, time.monotonic() + _LINGER)
                    elif part := os.read(child.stdout.fileno(), 1 << 16):
                        heard += part[: max(0, _LIMIT - len(heard))]
                    else:
                        selector.unregister(child.stdout)
                        waiting.discard("output")
            if "end" in waiting and "output" not in waiting:
                # Nothing holds the output any more, and the kubelet waits for the process itself.
                selector.select(max(0.0, deadline - time.monotonic()))
                if child.poll() is not None:
                    waiting.discard("end")
    finally:
        os.close(ended)
    return bytes(heard), "end" not in waiting, "end" not in waiting and "output" in waiting


class _Stopper:
    """The kubelet's timer: SIGTERM, and SIGKILL ten seconds later."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        self._child = child
        self.fired = False
        self._timers = [
            threading.Timer(seconds, self._stop, (signal.SIGTERM,)),
            threading.Timer(seconds + _TERMINATE, self._stop, (signal.SIGKILL,)),
        ]
        for timer in self._timers:
            timer.start()

    def _stop(self, number: int) -> None:
        self.fired = True
        self._child.send_signal(number)

    def cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
