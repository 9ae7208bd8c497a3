"""A few directories followed for a few listeners: the kubelet's sockets and the settings file.

Events where inotify can be had, and in any case a look every two seconds: hostPath mounts are replaced, instances run
out, events get lost. One thread and one inotify instance for all.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Collection

from nodeplug.devices.sources.finders import nearest_directory
from nodeplug.kernel import inotify

TICK = 2.0
_RETRY = 30.0  # seconds until an inotify instance is asked for again
_MASK = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_CLOSE_WRITE
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
    | inotify.IN_ONLYDIR
)


class Watch:
    """Wakes everybody who waits in `wait_for` when something happened in the directories, and every two seconds."""

    def __init__(self, directories: Collection[str], *, tick: float = TICK) -> None:
        self._directories = tuple(dict.fromkeys(directories))
        self._tick = tick
        self._condition = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._stopping = False
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._armed: dict[int, tuple[str, tuple[int, int]]] = {}
        self._inotify: inotify.Inotify | None = None
        self._retry = 0.0
        self._open()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def _open(self) -> None:
        self._retry = time.monotonic() + _RETRY
        try:
            self._inotify = inotify.Inotify()
        except OSError:
            pass  # the ticks do it, more slowly, until there is one

    def start(self) -> None:
        self._arm()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, on the watching thread, at each event and tick."""
        self._listeners.append(listener)

    def notify(self) -> None:
        """Make everybody who waits ask again."""
        with self._condition:
            self._condition.notify_all()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `predicate()` holds, asked at each event and tick; False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(predicate, timeout)

    def close(self) -> None:
        self._stopping = True
        os.write(self._wake_in, b"x")
        if self._thread.is_alive():
            self._thread.join(5.0)
        self.notify()
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _run(self) -> None:
        while not self._stopping:
            poll = select.poll()
            poll.register(self._wake_out, select.POLLIN)
            if self._inotify is not None:
                poll.register(self._inotify.fileno(), select.POLLIN)
            poll.poll(self._tick * 1000)
            self._drain()
            for listener in self._listeners:
                listener()
            self.notify()

    def _drain(self) -> None:
        if self._inotify is None:
            if time.monotonic() < self._retry:
                return
            self._open()
            if self._inotify is None:
                return
        try:
            self._inotify.read(0)
        except OSError:
            pass  # what it would have told is looked at in any case
        self._arm()

    def _arm(self) -> None:
        """Watch what the paths lead to now: a directory may have been replaced, or may not be there yet."""
        if self._inotify is None:
            return
        wanted = {}
        for path in self._directories:
            place = nearest_directory(path)
            # Its parent tells when it is replaced.
            for directory in (place, os.path.dirname(place)):
                try:
                    status = os.stat(directory)
                except OSError:
                    continue
                wanted[directory] = (status.st_dev, status.st_ino)
        armed = {path: (number, identity) for number, (path, identity) in self._armed.items()}
        for path, (number, identity) in armed.items():
            if wanted.get(path) != identity:
                del self._armed[number]
                try:
                    self._inotify.remove(number)
                except OSError:
                    pass  # it ended with its directory
        for path, identity in wanted.items():
            if path in armed and armed[path][1] == identity:
                continue
            try:
                self._armed[self._inotify.add(path, _MASK)] = (path, identity)
            except OSError:
                continue  # the next tick tries again
