"""The executed contracts as the worker knows them: what to say for a call in the last resort, and who answers it.

A table, so that nothing is loaded by a name that came over a socket.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.cni import dispatch as cni_dispatch
from nodeplug.cni import lastwords as cni_lastwords
from nodeplug.cni import main as cni_main
from nodeplug.flexvolume import dispatch as flexvolume_dispatch
from nodeplug.flexvolume import lastwords as flexvolume_lastwords
from nodeplug.flexvolume import main as flexvolume_main
from nodeplug.flexvolume import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.core.call import Answer, Call, LastWords


@dataclass(frozen=True)
class Door:
    """One contract. `rooms` are the packages that its calls import; `open` reads what they need of the node's settings,
    their log among it, and returns what answers them; it raises `ConfigInvalid`. `failed` tells a failure by its
    answer."""

    rooms: tuple[str, ...]
    last_words: Callable[[Call], LastWords]
    open: Callable[[], Callable[[Call], Answer]]
    failed: Callable[[Answer], bool]


def _open_cni() -> Callable[[Call], Answer]:
    to = cni_main.open_log()
    return lambda call: cni_dispatch.answer(call, to=to)


def _open_flexvolume() -> Callable[[Call], Answer]:
    means = flexvolume_main.load()
    return lambda call: flexvolume_dispatch.answer(call, to=means.log, policy=means.policy)


DOORS = {
    "cni": Door(
        rooms=("nodeplug.core", "nodeplug.kernel", "nodeplug.cni"),
        last_words=cni_lastwords.last_words,
        open=_open_cni,
        failed=lambda answer: answer.code != 0,
    ),
    "flexvolume": Door(
        rooms=("nodeplug.core", "nodeplug.kernel", "nodeplug.volumes", "nodeplug.flexvolume"),
        last_words=flexvolume_lastwords.last_words,
        open=_open_flexvolume,
        failed=protocol.is_failure,
    ),
}


def preload(door: Door) -> None:
    """Import all that the door's calls may need: no call waits for it, and files that change later do no harm."""
    for room in door.rooms:
        package = importlib.import_module(room)
        for found in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not found.name.endswith((".cli", ".__main__")):
                importlib.import_module(found.name)
    for name in ("difflib", "hashlib", "ipaddress", "json", "selectors", "signal", "subprocess"):
        importlib.import_module(name)  # what the exec path imports on the branch that needs it


def opened() -> dict[str, tuple[Door, Callable[[Call], Answer]]]:
    """Each door with what answers its calls. Raises `ConfigInvalid`."""
    return {name: (door, door.open()) for name, door in DOORS.items()}
