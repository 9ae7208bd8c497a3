"""What the worker's parts are handed to tell what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nodeplug.core.log import Level


class Note(Protocol):
    """Takes a sentence for the daemon's log."""

    def __call__(self, message: str, *, level: Level = "info") -> None: ...
