"""Plugins of ours that are being taken out of a node: what comes in their place is put back by whoever deletes the last
attachment that needs them.

`nodeplug uninstall --drain` has noted the plugin directories here and laid out in each what is needed for that; see
`nodeplug.ops.place`. Called by the door after a DEL or GC. Exec dialect, and nothing of it where nothing is noted.
"""

from __future__ import annotations

import fcntl
import os

from nodeplug.cni import live
from nodeplug.core import files, paths
from nodeplug.core.errors import Error, Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_LARGEST = 1 << 20
_PRIVATE = ".nodeplug"


def note(directory: str, plugins: Collection[str]) -> None:
    """These plugins of that directory are being taken out, or no longer any. Raises OSError."""
    before = _noted()
    now = before | {directory} if plugins else before - {directory}
    if now != before:
        _write(now)


def settle(warn: Callable[[str], None]) -> None:
    """Put back what nothing is in the way of any more. What cannot be done now is left to the next call."""
    try:
        for directory in sorted(_noted()):
            if _settle(directory):
                _write(_noted() - {directory})
    except (OSError, Error) as error:
        warn(f"plugins that are being taken out stay for now: {error}")


def _settle(directory: str) -> bool:
    """Whether no plugin of the directory is left to be taken out."""
    old = f"{directory}/{_PRIVATE}/old"
    try:
        names = os.listdir(old)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        # Whoever installs or uninstalls holds it, and sees to all of this.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        needed = live.attachments(patience=0.0)
        for name in names:
            if not needed.get(name):
                _put_back(directory, name)
                files.remove(f"{old}/{name}")
        return not os.listdir(old)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _put_back(directory: str, name: str) -> None:
    target, kept = f"{directory}/{name}", f"{directory}/{_PRIVATE}/kept/{name}"
    if not _is_ours(directory, target):
        return  # somebody else has put a file of his there
    if os.path.lexists(kept):
        os.rename(kept, target)
    else:
        files.remove(target)


def _is_ours(directory: str, target: str) -> bool:
    copies = [f"{directory}/{_PRIVATE}/lib/{kind}" for kind in ("shim", "launcher")]
    return os.path.isfile(target) and any(os.path.exists(copy) and os.path.samefile(copy, target) for copy in copies)


def _noted() -> set[str]:
    try:
        return set(files.read_bounded(paths.LEAVING, _LARGEST).decode("utf-8", "surrogateescape").splitlines())
    except (FileNotFoundError, Malformed):
        return set()


def _write(directories: set[str]) -> None:
    if not directories:
        files.remove(paths.LEAVING)
        return
    text = "".join(f"{directory}\n" for directory in sorted(directories)).encode("utf-8", "surrogateescape")
    files.ensure_directory(os.path.dirname(paths.LEAVING))
    files.write_atomic(paths.LEAVING, text)
