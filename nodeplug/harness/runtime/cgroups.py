"""Control groups of our own pods: no namespace ends them, so they are removed by name.

Only empty groups can be removed (cgroups(7)), so nothing that runs can be hit. For both versions of the hierarchy.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

TOP = Path("/sys/fs/cgroup")
_PREFIX = "nodeplug-"
_OLD = 600.0
_PATIENCE = 5.0


def new_parent() -> str:
    """A fresh name for the group that all pods of one runtime are below."""
    return f"/{_PREFIX}{secrets.token_hex(4)}"


def remove(parent: str) -> None:
    """Remove the groups of `parent` in every hierarchy; waits a little for processes that are ending."""
    groups = [hierarchy / parent.lstrip("/") for hierarchy in _hierarchies()]
    deadline = time.monotonic() + _PATIENCE
    while True:
        for group in groups:
            _remove_tree(group)
        if time.monotonic() > deadline or not any(group.is_dir() for group in groups):
            return
        time.sleep(0.02)


def sweep() -> None:
    """Remove what runtimes left that were killed more than ten minutes ago."""
    for hierarchy in _hierarchies():
        for group in hierarchy.glob(f"{_PREFIX}*"):
            try:
                old = time.time() - group.stat().st_mtime > _OLD
            except FileNotFoundError:
                continue
            if old:
                _remove_tree(group)


def _hierarchies() -> list[Path]:
    return [TOP, *(path for path in TOP.glob("*") if path.is_dir() and not path.is_symlink())]


def _remove_tree(group: Path) -> None:
    if not group.is_dir():
        return
    for path in (*sorted(group.rglob("*/"), reverse=True), group):
        try:
            path.rmdir()
        except OSError:
            pass  # a file of the kernel's, or in use
