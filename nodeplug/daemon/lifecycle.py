"""The life of a daemon: signals become events, the service manager is told what goes on, draining is bounded.

Used by each daemon's `main`, in the main thread:

    with Lifecycle(os.environ) as life:
        server.start()
        life.ready("serving")
        while (event := life.wait()) is not Event.STOP:
            life.reloading()
            reload()
            life.ready("serving")
        life.stopping()

See sd_notify(3), systemd.service(5) for `Type=notify-reload` and `WatchdogSec`.
"""

import enum
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Self

from nodeplug.core import errors

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: started again, it may work
EXIT_PERMISSION = 77  # EX_NOPERM
EXIT_CONFIG = 78  # EX_CONFIG: starting again helps nothing; RestartPreventExitStatus=78 in the units

_LOOK = 1.0
"""Seconds for which the main thread waits at most. A signal that comes while it gives the interpreter to another
thread, on its way into the wait, does not end that wait: seen with SIGTERM to a busy process, which then stayed."""

_EXIT_CODES: dict[type[BaseException], int] = {
    BaseException: EXIT_FAILED,
    errors.ConfigInvalid: EXIT_CONFIG,
    errors.PermissionRefused: EXIT_PERMISSION,
    errors.TryAgain: EXIT_TRY_AGAIN,
}


def exit_code(error: BaseException) -> int:
    """The code a daemon ends with for `error`, after sysexits.h."""
    return errors.code_of(error, _EXIT_CODES)


class Event(enum.Enum):
    """What `Lifecycle.wait` returns."""

    STOP = "stop"
    RELOAD = "reload"


_SIGNALS = {signal.SIGTERM: Event.STOP, signal.SIGINT: Event.STOP, signal.SIGHUP: Event.RELOAD}


class Lifecycle:
    """Signals as events and messages to the service manager. Made and used by the main thread; `post` by any.

    `environ` gives NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. `alive`, which may be set later, is asked before each
    watchdog message: once it is False the messages stop and the service manager restarts the process.
    """

    def __init__(self, environ: Mapping[str, str], *, alive: Callable[[], bool] = lambda: True) -> None:
        self._notify_socket = environ.get("NOTIFY_SOCKET", "")
        self.alive = alive
        self._watchdog = _watchdog_seconds(environ)
        self._fed = time.monotonic()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._previous: dict[signal.Signals, object] = {}
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]  # what signal.signal gave us
        self._previous.clear()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        event = _SIGNALS[signal.Signals(number)]
        if event is Event.STOP:
            self._stopping.set()
        self._events.put(event)  # SimpleQueue.put may be called while a put is under way

    @property
    def must_stop(self) -> bool:
        """Whether a stop was asked for, even if `wait` has not returned it yet: for long steps of a start."""
        return self._stopping.is_set()

    def post(self, event: Event) -> None:
        """Make `wait` return `event`: for a thread that saw a file change."""
        if event is Event.STOP:
            self._stopping.set()
        self._events.put(event)

    def wait(self, timeout: float | None = None) -> Event | None:
        """The next event, or None after `timeout` seconds; sends the watchdog's messages meanwhile."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            step = _LOOK
            if self._watchdog:
                step = min(step, max(0.0, self._fed + self._watchdog / 2 - time.monotonic()))
            if end is not None:
                step = min(step, max(0.0, end - time.monotonic()))
            try:
                return self._events.get(timeout=step)
            except queue.Empty:
                pass
            if self._watchdog and time.monotonic() >= self._fed + self._watchdog / 2:
                self._fed = time.monotonic()
                if self.alive():
                    self.notify("WATCHDOG=1")
            if end is not None and time.monotonic() >= end:
                return None

    def ready(self, status: str = "") -> None:
        """READY=1: the start, or a reload, is complete."""
        self.notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """RELOADING=1, with the time stamp `Type=notify-reload` asks for."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.notify(f"STATUS={text}")

    def stopping(self) -> None:
        """STOPPING=1: from here on only the drain."""
        self.notify("STOPPING=1")

    def notify(self, *lines: str) -> None:
        """Send lines of state. A service manager that is not there or does not listen is no reason to fail."""
        if not self._notify_socket:
            return
        address = "\0" + self._notify_socket[1:] if self._notify_socket.startswith("@") else self._notify_socket
        text = "\n".join(line.replace("\n", " ") for line in lines if not line.endswith("="))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(1.0)
            try:
                peer.sendto(text.encode(), address)
            except OSError:
                return


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """How often the service manager wants to hear from us; 0 when it does not. See sd_watchdog_enabled(3)."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not microseconds.isdecimal():
        return 0.0
    return int(microseconds) / 1_000_000


def drain(seconds: float, *steps: Callable[[float], object]) -> bool:
    """Run the steps of an orderly end, each given the seconds that are left; False when the time ran out.

    Every step is run, with 0.0 once nothing is left, so that a slow one does not keep the next from closing.
    """
    end = time.monotonic() + seconds
    for step in steps:
        step(max(0.0, end - time.monotonic()))
    return time.monotonic() <= end
