"""The executed contracts as the worker knows them: what to say for a call in the last resort, and who answers it.

A table, so that nothing is loaded by a name that came over a socket.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodeplug.cni import dispatch, lastwords
from nodeplug.cni import main as cni_main

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.core.call import Answer, Call, LastWords
    from nodeplug.core.log import Log


@dataclass(frozen=True)
class Door:
    """One contract. `rooms` are the packages that its calls import; `open_log` is where its calls are told of."""

    rooms: tuple[str, ...]
    open_log: Callable[[], Log]
    last_words: Callable[[Call], LastWords]
    answer: Callable[[Call, Log], Answer]


def _answer_cni(call: Call, log: Log) -> Answer:
    return dispatch.answer(call, to=log)


DOORS = {
    "cni": Door(
        rooms=("nodeplug.core", "nodeplug.kernel", "nodeplug.cni"),
        open_log=cni_main.open_log,
        last_words=lastwords.last_words,
        answer=_answer_cni,
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


def opened() -> dict[str, tuple[Door, Log]]:
    """Each door with its log. Raises `ConfigInvalid`."""
    return {name: (door, door.open_log()) for name, door in DOORS.items()}
