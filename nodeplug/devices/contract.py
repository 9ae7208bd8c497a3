"""The nouns of discovery: nodes, devices, what a source answers, and what may have changed. No I/O.

Implemented by the modules in `sources`, and by authors' plugins through `Inventory`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Node:
    """One device node (or, for authors, any file) that a container gets.

    `host` is a path on the node that stays right when the device comes back under another number; `real` is the
    kernel's node at this moment; `container` is where a container finds it. `number` is ("c" or "b", major, minor).
    """

    host: str
    real: str = ""
    container: str = ""
    permissions: str = ""  # a subset of "rwm"; empty: the resource's
    number: tuple[str, int, int] | None = None
    common: bool = False  # shared by many devices (/dev/vfio/vfio): not what makes two devices the same


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `id` never changes while the thing is the same, whatever its number or order; at most 57 characters.

    `properties` feed templates (serial, vendor, product, address, interface ...). `numa` lists its memory nodes; empty
    when it has none. `reason` says why it is not healthy. `roams` is set for what leaves sight while a pod has it (a
    network interface moves into the pod's namespace).
    """

    id: str
    nodes: tuple[Node, ...] = ()
    healthy: bool = True
    reason: str = ""
    numa: tuple[int, ...] = ()
    properties: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    rule: int = 0
    roams: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A hint that something may be different. Either a path (inotify) or a place below /sys (uevent).

    `everything` means that hints were lost or that there is no way to say what changed. `at` is the monotonic time it
    was heard of.
    """

    path: str = ""
    devpath: str = ""
    subsystem: str = ""
    everything: bool = False
    at: float = 0.0


class Source(Protocol):
    """Where devices come from. Asked by one thread only.

    A source names its units by keys (a path, a PCI address) and looks at one at a time, so that one change costs one
    look. None of its methods may wait for anything but the file system; what has to wait answers from memory
    (`sources.polled`) and calls `wake` when it has news.
    """

    def keys(self) -> Iterable[str]:
        """All units there are now."""

    def look(self, key: str) -> tuple[Device, ...]:
        """The devices of one unit: none when it is not, or not yet, what the rule asks for."""

    def touched(self, change: Change) -> Iterable[str] | None:
        """The units that `change` may concern, ones that are gone included; None for all."""

    def directories(self) -> Collection[str]:
        """Directories whose entries matter (inotify), after the last `keys`."""

    def explain(self, path: str) -> str:
        """Why the node at `path` is or is not a device of this rule; one sentence."""

    def close(self) -> None:
        """Stop what it started."""


class Inventory(Protocol):
    """What an author writes: a thing that can list its devices. Called on a thread of its own, every `interval`."""

    interval: float
    """Seconds between two calls of `devices`."""

    def devices(self) -> Iterable[Device]:
        """All devices there are now. An exception keeps the last answer and is told in the log."""


InUse = Callable[[str], Collection[str] | None]
"""Given a pool's name: the ids of its devices that somebody holds now; None when that cannot be known."""
