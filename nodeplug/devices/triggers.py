"""What tells discovery that something may be different: kernel events, directories, and a way to be woken.

Every wait is bounded. What cannot be had (no inotify instance left, no watch left, a user namespace, in which the
kernel's events never arrive) is named in `missing`, and discovery polls instead.
"""

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Collection

from nodeplug.devices.contract import Change
from nodeplug.devices.host import read_text
from nodeplug.kernel import inotify, uevent

_ENTRIES = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_ATTRIB
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
    | inotify.IN_ONLYDIR
)
_LOST_SELF = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | inotify.IN_UNMOUNT | inotify.IN_IGNORED
_RETRY = 30.0


class Triggers:
    """The descriptors discovery waits on. Used by one thread; `wake` by any."""

    def __init__(self, *, on_loss: Callable[[str], None]) -> None:
        self._on_loss = on_loss
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._waking = threading.Lock()
        self._uevents: uevent.Listener | None = None
        self._inotify: inotify.Inotify | None = None
        self._watches: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._inodes: dict[str, tuple[int, int]] = {}
        self._wanted: frozenset[str] = frozenset()
        self._missing: dict[str, str] = {}
        self._retry = 0.0
        self._open()

    @property
    def missing(self) -> dict[str, str]:
        """What cannot be had ("uevents", "inotify"), and why."""
        return self._missing

    def close(self) -> None:
        for part in (self._uevents, self._inotify):
            if part is not None:
                part.close()
        with self._waking:
            os.close(self._wake_out)
            os.close(self._wake_in)
            self._wake_in = -1

    def wake(self) -> None:
        """Make a `wait` under way return. Nothing happens once closed: its number may be somebody else's by then."""
        with self._waking:
            if self._wake_in < 0:
                return
            try:
                os.write(self._wake_in, b"x")
            except BlockingIOError:
                pass  # awake already

    def watch(self, directories: Collection[str]) -> bool:
        """Watch these directories' entries and no others; True when one is new, so that it has to be looked at again.

        A directory that is not there is left out: the source names its nearest parent too.
        """
        self._wanted = frozenset(directories)
        if self._inotify is None:
            return False
        for path in list(self._numbers):
            # A path may lead to another directory than the one that is watched: a link that was turned, a new one in
            # the place of one that was moved away.
            if path not in self._wanted or _inode(path) != self._inodes[path]:
                self._drop(path)
        new = False
        missing = ""
        for path in sorted(self._wanted - self._numbers.keys()):
            try:
                number = self._inotify.add(path, _ENTRIES)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    missing = "no watch is left (fs.inotify.max_user_watches)"
                elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    missing = f"cannot watch {path}: {error.strerror}"
                continue
            self._watches[number] = path
            self._numbers[path] = number
            self._inodes[path] = _inode(path)
            new = True
        if missing:
            self._missing = {**self._missing, "inotify": missing}
        elif "inotify" in self._missing:
            self._missing = {name: why for name, why in self._missing.items() if name != "inotify"}
        return new

    def wait(self, timeout: float) -> list[Change]:
        """What was heard, after at most `timeout` seconds. One `everything` stands for what was lost."""
        self._reopen()
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        if self._uevents is not None:
            poll.register(self._uevents.fileno(), select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, timeout) * 1000 + 0.5)}
        now = time.monotonic()
        found: list[Change] = []
        if self._wake_out in ready:
            try:
                os.read(self._wake_out, 4096)
            except BlockingIOError:
                pass
        if self._inotify is not None and self._inotify.fileno() in ready:
            found += self._heard_directories(self._inotify, now)
        if self._uevents is not None and self._uevents.fileno() in ready:
            found += self._heard_kernel(self._uevents, now)
        return found

    def _heard_kernel(self, listener: uevent.Listener, now: float) -> list[Change]:
        events, dropped = listener.read()
        found = [Change(devpath=event.devpath, subsystem=event.subsystem, at=now) for event in events]
        for event in events:
            old = event.variables.get("DEVPATH_OLD", "")
            if old:
                found.append(Change(devpath=old, subsystem=event.subsystem, at=now))
        if dropped:
            self._on_loss("uevents")
            found.append(Change(everything=True, at=now))
        return found

    def _heard_directories(self, watcher: inotify.Inotify, now: float) -> list[Change]:
        found = []
        for event in watcher.read(0):
            if event.overflow:
                self._on_loss("inotify")
                found.append(Change(everything=True, at=now))
                continue
            directory = self._watches.get(event.watch, "")
            if not directory:
                continue
            if event.mask & _LOST_SELF:
                if event.ended:
                    self._forget(event.watch)
                found.append(Change(path=directory, at=now))
            elif event.name:
                found.append(Change(path=f"{directory.rstrip('/')}/{event.name}", at=now))
        return found

    def _open(self) -> None:
        missing = {}
        if self._uevents is None:
            try:
                if not in_first_user_namespace():
                    raise OSError(errno.EPERM, "the kernel sends no device events into a user namespace")
                self._uevents = uevent.Listener()
            except OSError as error:
                missing["uevents"] = error.strerror or str(error)
        if self._inotify is None:
            try:
                self._inotify = inotify.Inotify()
            except OSError as error:
                missing["inotify"] = f"{error.strerror} (fs.inotify.max_user_instances)"
        self._missing = missing
        self._retry = time.monotonic() + _RETRY

    def _reopen(self) -> None:
        if self._missing and time.monotonic() >= self._retry:
            self._open()
            if self._inotify is not None:
                self.watch(self._wanted)

    def _drop(self, path: str) -> None:
        number = self._numbers.pop(path)
        del self._inodes[path]
        self._watches.pop(number, None)
        assert self._inotify is not None
        try:
            self._inotify.remove(number)
        except OSError:
            pass  # its directory went first

    def _forget(self, number: int) -> None:
        path = self._watches.pop(number, "")
        if self._numbers.get(path) == number:
            del self._numbers[path]
            del self._inodes[path]


def _inode(path: str) -> tuple[int, int]:
    """Which directory a path leads to now; (0, 0) for none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def in_first_user_namespace() -> bool:
    """Whether this process lives in the user namespace the machine began with."""
    return read_text("/proc/self/uid_map", 4096).split() in ([], ["0", "0", "4294967295"])
