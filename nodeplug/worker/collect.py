"""Whether the collection after a boot (`collector`) is still to be done. Apart from it, to be light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodeplug.core import files, paths
from nodeplug.core.errors import Malformed

if TYPE_CHECKING:
    from nodeplug.worker.settings import WorkerSettings

DONE = paths.RUN + "/collected"
"""Holds the id of the boot that a collection was done in."""


def is_due(settings: WorkerSettings) -> bool:
    """Whether it is to be started, as far as can be told before a host is entered."""
    return settings.collect.enabled and (bool(settings.host) or not is_done())


def is_done() -> bool:
    """Whether it was done since the boot."""
    try:
        return files.read_bounded(DONE, 100) == _boot()
    except (FileNotFoundError, Malformed):
        return False


def done() -> None:
    """Note that it was done. Raises OSError."""
    files.ensure_directory(paths.RUN)
    files.write_atomic(DONE, _boot(), durable=False)


def _boot() -> bytes:
    return files.read_bounded("/proc/sys/kernel/random/boot_id", 100)
