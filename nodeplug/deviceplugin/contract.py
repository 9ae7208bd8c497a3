"""The nouns of the door: what a container is given, what a kubelet wishes, what an author writes. No I/O."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nodeplug.devices.contract import Device, Node

__all__ = ["Device", "Node", "Source"]

WIRE_LIMIT = 4 << 20  # bytes of a message that the kubelet's gRPC client takes
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def render(text: str, values: Mapping[str, str]) -> str:
    """A template filled in; what a device does not have is empty."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], ""), text)


@dataclass(frozen=True, slots=True)
class GivenNode:
    """A device node in an allocation."""

    host: str
    container: str
    permissions: str


@dataclass(frozen=True, slots=True)
class GivenMount:
    """A mount in an allocation."""

    host: str
    container: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one container gets."""

    env: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[GivenNode, ...] = ()
    mounts: tuple[GivenMount, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    cdi: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """What the kubelet asks before it chooses: among which, with which already chosen, how many in all."""

    available: tuple[str, ...]
    chosen: tuple[str, ...]
    size: int


class Source(ABC):
    """Base of an author's plugin: list your devices, name your resource.

    class Leds(Source):
        resource = "example.com/led"

        def devices(self):
            for path in glob.glob("/dev/led*"):
                yield Device(id=device_id(path), nodes=(Node(path),))
    """

    resource: str = ""
    """What pods ask for; required when the class is handed to `run`."""
    interval: float = 5.0
    """Seconds between two calls of `devices`."""
    settings: Mapping[str, Any] = {}
    """More keys of the resource, as in the settings file: share, env, mounts, hold, cdi ..."""

    @abstractmethod
    def devices(self) -> Iterable[Device]:
        """All devices there are now. An exception keeps the last answer for three intervals."""
