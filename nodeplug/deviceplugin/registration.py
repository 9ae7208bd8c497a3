"""Making a resource known to the kubelet, and again after each of its restarts: one thread for each resource.

Two flows. At kubelet.sock the plugin serves a socket in device-plugins/ and calls Register, and must do so again
whenever the kubelet has forgotten it: the kubelet removes the sockets there when it starts, makes a new kubelet.sock,
and never opens a second stream. With the plugin watcher the kubelet finds a socket in plugins_registry/ by itself,
also after a restart.

Each registration has a socket of its own name, and the old one is closed first: older kubelets know a plugin by its
resource alone, and the end of an old stream would take the new one down (kubernetes#121994, #127803). For the same
reason one process of a node registers a resource at a time: a second one, started by mistake or by an update, waits
until the first has ended, and takes over then.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from nodeplug.core import files
from nodeplug.core.errors import Error, TryAgain
from nodeplug.core.naming import digest
from nodeplug.deviceplugin import client, protocol
from nodeplug.deviceplugin.kubelet import Kubelet, socket_name

_REGISTER = 15.0  # seconds; the kubelet dials back for up to 10 within the call
_STREAM = 10.0  # from registration to the kubelet's ListAndWatch
_WATCHER = 5.0  # for the watcher to show itself, in auto
_FORGOTTEN = 2.0  # a kubelet that listens and has opened no stream for so long will open none
_SETTLE = 0.1  # an old kubelet's time to put an ended stream away before the next registration
_LEAST, _MOST = 0.01, 5.0
_SHORT = 10.0  # a stream shorter than this counts as a failure
_AT_ONCE = 8
_ASK_LOCK = 0.2

Turn = threading.BoundedSemaphore


def turns() -> Turn:
    """How many resources may be in the middle of a registration at once."""
    return threading.BoundedSemaphore(_AT_ONCE)


class Line(Protocol):
    """A served socket, as `serve.Endpoint` is."""

    @property
    def streaming(self) -> bool:
        """Whether the kubelet has a stream open."""

    @property
    def streams(self) -> int:
        """How many streams were opened so far."""

    @property
    def told(self) -> tuple[bool, str] | None:
        """What the watcher said: registered, and else why not; None before it said anything."""

    def close(self, seconds: float) -> None:
        """End the stream and remove the socket."""


class Listener(Protocol):
    """Whom a registrar tells what happens; see `daemon`."""

    def registered(self, resource: str, flow: str) -> None: ...

    def unregistered(self, resource: str, cause: str) -> None: ...

    def refused(self, resource: str, error: str) -> None: ...


class Registrar:
    """Keeps one resource registered from `start` to `close`.

    `open_line(path, watched)` serves the resource at a new socket; `watched` adds the watcher's service to it. `lock`
    is the directory of the locks that all plugins of ours on the node share.
    """

    def __init__(
        self,
        resource: str,
        kubelet: Kubelet,
        *,
        flow: str,
        options: tuple[bool, bool],
        open_line: Callable[[str, bool], Line],
        listener: Listener,
        turn: Turn,
        lock: str,
    ) -> None:
        self._resource = resource
        self._kubelet = kubelet
        self._flow = flow
        self._options = options
        self._open_line = open_line
        self._listener = listener
        self._turn = turn
        self._lock = lock
        self._over = threading.Event()
        self._failures = 0
        self._line: Line | None = None
        self._met: tuple[int, int, int] | None = None  # the kubelet of the last session
        self._distrusted: tuple[int, int, int] | None = (0, 0, 0)  # the kubelet whose watcher did not take us
        self._thread = threading.Thread(target=self._run, name=f"reg {resource}"[:32], daemon=True)
        self.registered_at = 0.0
        self.unregistered_at = time.monotonic()
        self.flow = ""
        self.trouble = "not registered yet"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin to end; `close` waits."""
        self._over.set()
        self._kubelet.watch.notify()

    def close(self, seconds: float = 10.0) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def registered(self) -> bool:
        """Whether the kubelet knows the resource and follows its list."""
        return self.flow != ""

    @property
    def streaming(self) -> bool:
        line = self._line
        return line is not None and line.streaming

    def _run(self) -> None:
        held = self._take_lock()
        try:
            self._register_again_and_again()
        finally:
            if held >= 0:
                os.close(held)

    def _take_lock(self) -> int:
        """Wait for this resource's lock; its descriptor, -1 where there is none to be had (a directory that is full or
        read-only): then it goes without, as two plugins for one resource are a mistake and none is worse."""
        while not self._over.is_set():
            try:
                files.ensure_directory(self._lock, 0o700)
                return files.flock(os.path.join(self._lock, digest(self._resource, 12)), timeout=0.0)
            except TryAgain:
                self.trouble = "another process of this node serves it; this one waits for its end"
            except OSError as error:
                self.trouble = f"cannot lock {self._lock}: {error.strerror}"
                return -1
            self._over.wait(_ASK_LOCK)
        return -1

    def _register_again_and_again(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                if self._by_watcher():
                    cause = self._session(self._kubelet.registry, self._watched)
                else:
                    cause = self._session(self._kubelet.plugins, self._asked)
            except Exception as error:  # whatever it is, the next attempt must come
                cause = "failed"
                self._failures += 1
                self._refused(str(error) if isinstance(error, (Error, OSError)) else f"{type(error).__name__}: {error}")
            self._close_line(cause)
            if time.monotonic() - began > _SHORT:
                self._failures = 0
            if not self._over.is_set():
                self._pause()

    def _by_watcher(self) -> bool:
        if self._flow != "auto":
            return self._flow == "watcher"
        return self._kubelet.watcher_offered and self._distrusted != self._kubelet.identity()

    def _session(self, directory: str, run: Callable[[str], str]) -> str:
        if not os.path.isdir(directory):
            self.trouble = f"there is no {directory}; does a kubelet run here, with this directory?"
            if not self._until(lambda: os.path.isdir(directory), None):
                return "stopped"
        self._met = self._kubelet.identity()
        return run(os.path.join(directory, socket_name(self._resource)))

    def _until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for a condition; False after the timeout or when it is time to stop."""
        self._kubelet.watch.wait_for(lambda: self._over.is_set() or condition(), timeout)
        return not self._over.is_set() and condition()

    def _asked(self, path: str) -> str:
        """The flow at kubelet.sock. Returns why it ended."""
        if self._kubelet.identity() is None:
            self.trouble = f"there is no {self._kubelet.socket}; does the kubelet run?"
            if not self._until(lambda: self._kubelet.identity() is not None, None):
                return "stopped"
        line = self._line = self._open(path, watched=False)
        identity = self._met = self._register(path)
        if identity is None:
            return "stopped" if self._over.is_set() else "socket removed"
        if not self._until(lambda: line.streams > 0 or self._changed(path, identity), _STREAM):
            self._failures += 1
            return "no stream"
        if line.streams:
            self._is_registered("kubelet.sock")
        self._until(lambda: not line.streaming or self._changed(path, identity), None)
        if self._over.is_set():
            return "stopped"
        alive = line.streaming
        if self._kubelet.identity() not in (identity, None):
            cause = "kubelet restarted"
        elif not os.path.lexists(path):
            cause = "socket removed"
        else:
            cause = "stream ended"
            self._failures += 1
        self._close_line(cause)
        if alive:
            time.sleep(_SETTLE)
        return cause

    def _open(self, path: str, *, watched: bool) -> Line:
        client.ensure_descriptors()
        return self._open_line(path, watched)

    def _changed(self, path: str, identity: tuple[int, int, int]) -> bool:
        return self._kubelet.identity() != identity or not os.path.lexists(path)

    def _register(self, path: str) -> tuple[int, int, int] | None:
        """Call Register until it succeeds; the kubelet's identity then, None when our socket is gone or it is over."""
        request = protocol.write_register(
            os.path.basename(path), self._resource, reset=self._options[0], preferred=self._options[1]
        )
        pause = _LEAST
        while not self._over.is_set() and os.path.lexists(path):
            identity = self._kubelet.identity()
            try:
                if identity is None:
                    raise TryAgain("there is no kubelet.sock")
                with self._turn:
                    client.call(self._kubelet.socket, protocol.REGISTER, request, timeout=_REGISTER)
                return identity
            except TryAgain as error:
                self.trouble = str(error)
            except Error as error:
                self._refused(str(error))
                pause = max(pause, 0.5)
            another = self._await_change(path, identity, _jittered(pause))
            pause = _LEAST if another else min(2 * pause, _MOST)
        return None

    def _await_change(self, path: str, before: tuple[int, int, int] | None, timeout: float) -> bool:
        """Wait for another kubelet.sock than `before`, or for our socket to go; True for the former."""
        self._until(lambda: self._kubelet.identity() != before or not os.path.lexists(path), timeout)
        return self._kubelet.identity() != before

    def _watched(self, path: str) -> str:
        """The plugin watcher's flow. Returns why it ended."""
        line = self._line = self._open(path, watched=True)
        limit = _WATCHER if self._flow == "auto" else None
        self._until(lambda: line.told is not None or line.streaming or not os.path.lexists(path), limit)
        if self._over.is_set():
            return "stopped"
        told = line.told
        if told is None and not line.streaming:
            self._distrusted = self._kubelet.identity()
            return "the plugin watcher did not come" if os.path.lexists(path) else "socket removed"
        if told is not None and not told[0]:
            self._refused(f"the kubelet refused: {told[1]}")
            self._failures += 1
            self._distrusted = self._kubelet.identity()
            return "refused"
        while True:
            if not self._until(lambda: line.streaming or not os.path.lexists(path), _STREAM):
                self._failures += 1
                return "stopped" if self._over.is_set() else "no stream"
            if line.streaming:
                self._is_registered("watcher")
            self._until(lambda: not line.streaming or not os.path.lexists(path), None)
            if self._over.is_set():
                return "stopped"
            if not os.path.lexists(path):
                return "socket removed"
            self._is_unregistered("stream ended")
            if not self._comes_back(line, path):
                self._failures += 1
                return "stopped" if self._over.is_set() else "stream ended"

    def _comes_back(self, line: Line, path: str) -> bool:
        """Whether the kubelet opens a stream again by itself, as one does that was restarted."""
        forgotten = 0.0
        while not line.streaming:
            if self._over.is_set() or not os.path.lexists(path):
                return False
            if not client.listens(self._kubelet.socket):
                forgotten = 0.0
            elif forgotten == 0.0:
                forgotten = time.monotonic()
            elif time.monotonic() - forgotten > _FORGOTTEN:
                return False
            self._until(lambda: line.streaming, 0.25)
        return True

    def _pause(self) -> None:
        """Before the next registration: none when the kubelet forgot us, more and more when it drops us."""
        if not self._failures:
            return
        wait = _jittered(min(_SETTLE * 2 ** min(self._failures - 1, 10), _MOST))
        if self._until(lambda: self._kubelet.identity() not in (self._met, None), wait):
            self._failures = 0  # another kubelet

    def _close_line(self, cause: str) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close(0.0)
        if self.flow:
            self._is_unregistered(cause)

    def _is_registered(self, flow: str) -> None:
        self.registered_at = time.monotonic()
        self.flow = flow
        self.trouble = ""
        self._listener.registered(self._resource, flow)

    def _is_unregistered(self, cause: str) -> None:
        self.unregistered_at = time.monotonic()
        self.flow = ""
        self.trouble = cause
        self._listener.unregistered(self._resource, cause)

    def _refused(self, error: str) -> None:
        if error != self.trouble:
            self._listener.refused(self._resource, error)
        self.trouble = error


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)
