"""How the kubelet finds drivers: the whole directory at its start, inotify from then on, init at each finding.

Events are taken up when somebody looks a driver up, as the kubelet does for each operation on a volume; what fails then
stays queued and is tried again with every look-up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from nodeplug.core.errors import Error, NotFound
from nodeplug.harness.kubelet.flexvolume.answer import Panic
from nodeplug.harness.kubelet.flexvolume.call import Caller
from nodeplug.harness.kubelet.flexvolume.plugin import ROOT, Habits, Plugin
from nodeplug.kernel import inotify

if TYPE_CHECKING:
    from types import TracebackType

    Operation = Literal["add or update", "remove"]
    Kind = Literal["create", "write", "remove", "rename", "chmod"]

DIRECTORY = Path("/usr/libexec/kubernetes/kubelet-plugins/volume/exec")

# What fsnotify asks for, and what it makes of it.
_MASK = (
    inotify.IN_MOVED_TO
    | inotify.IN_MOVED_FROM
    | inotify.IN_CREATE
    | inotify.IN_ATTRIB
    | inotify.IN_MODIFY
    | inotify.IN_MOVE_SELF
    | inotify.IN_DELETE
    | inotify.IN_DELETE_SELF
)
_KINDS: tuple[tuple[int, Kind], ...] = (
    (inotify.IN_CREATE | inotify.IN_MOVED_TO, "create"),
    (inotify.IN_DELETE | inotify.IN_DELETE_SELF, "remove"),
    (inotify.IN_MODIFY, "write"),
    (inotify.IN_MOVE_SELF | inotify.IN_MOVED_FROM, "rename"),
    (inotify.IN_ATTRIB, "chmod"),
)


@dataclass(frozen=True)
class Probed:
    """One attempt to load or to forget a driver's directory; `error` is empty when it succeeded."""

    name: str
    operation: Operation
    error: str = ""


class Prober:
    """A kubelet's view of a plugin directory, which is made where it is missing. Close it, or use `with`."""

    def __init__(
        self,
        directory: Path = DIRECTORY,
        *,
        caller: Caller | None = None,
        root: Path = ROOT,
        habits: Habits | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.caller = caller or Caller()
        self.root = root.absolute()
        self.habits = habits or Habits()
        self.plugins: dict[str, Plugin] = {}
        self.probed: list[Probed] = []
        self._queue: dict[str, Operation] = {}
        self._watches: dict[int, Path] = {}
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._notify = inotify.Inotify()
        self._watch(self.directory)
        self._all = True

    def close(self) -> None:
        self._notify.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def find(self, driver: str) -> Plugin:
        """The plugin for a volume of that driver ("vendor/driver"), after a look at what has happened.

        Raises `NotFound`, as which a pod's event shows it.
        """
        self.refresh()
        if driver not in self.plugins:
            raise NotFound("no volume plugin matched")
        return self.plugins[driver]

    def refresh(self) -> list[Probed]:
        """Take up what has happened, and probe what is queued; what fails stays queued. Returns what was tried."""
        self._drain()
        if self._all:
            self._all = False
            names = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir(follow_symlinks=False))
            tried = [self._probe(name, "add or update") for name in names if not name.startswith(".")]
        else:
            tried = []
            for name, operation in list(self._queue.items()):
                outcome = self._probe(name, operation)
                tried.append(outcome)
                if not outcome.error:
                    del self._queue[name]
        failed = [outcome.error for outcome in tried if outcome.error]
        if failed:
            self.caller.journal.say(f"Error dynamically probing plugins: [{', '.join(failed)}]")
        self.probed += tried
        return tried

    @property
    def queued(self) -> dict[str, Operation]:
        """What would be probed with the next look-up, and with each after that for which it fails."""
        self._drain()
        return dict(self._queue)

    def _probe(self, name: str, operation: Operation) -> Probed:
        driver = name.replace("~", "/")
        if operation == "remove":
            self.plugins.pop(driver, None)
            return Probed(name, operation)
        try:
            self.plugins[driver] = Plugin(self.directory, name, self.caller, root=self.root, habits=self.habits)
        except Panic:
            raise
        except Error as error:
            return Probed(
                name, operation, f"error creating Flexvolume plugin from directory {name}, skipping. Error: {error}"
            )
        return Probed(name, operation)

    def _watch(self, path: Path) -> None:
        """That directory and all below; symbolic links are not followed."""
        if path.is_symlink() or not path.is_dir():
            return
        try:
            self._watches[self._notify.add(str(path), _MASK)] = path
            for entry in sorted(path.iterdir()):
                self._watch(entry)
        except FileNotFoundError:
            pass  # gone again

    def _drain(self) -> None:
        while events := self._notify.read(0):
            for event in events:
                if event.ended:
                    self._watches.pop(event.watch, None)
                    continue
                path = self._watches.get(event.watch)
                if path is None:
                    continue
                whole = path / event.name if event.name else path
                for bits, kind in _KINDS:
                    if event.mask & bits:
                        self._heard(whole, kind)

    def _heard(self, path: Path, kind: Kind) -> None:
        if path.name.startswith("."):
            return
        if path == self.directory:
            if kind == "remove":
                self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                self._watch(self.directory)
            return
        if kind == "create":
            self._watch(path)
        name = path.relative_to(self.directory).parts[0]
        executable = self.directory / name / name.rpartition("~")[2]
        gone = kind == "remove" and (path == executable or path.parent == self.directory)
        if not self._all:
            self._queue[name] = "remove" if gone else "add or update"
