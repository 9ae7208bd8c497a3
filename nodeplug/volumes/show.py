"""Where a volume is seen: a finished mount shown at the target in one move, and taken away again whatever it is.

The target is never looked into while something may be mounted there: a dead file system would hold the caller for ever.
What is mounted is read from mountinfo. Raises OSError, `Refused`.
"""

from __future__ import annotations

import errno
import os
import time

from nodeplug.core import company, files
from nodeplug.core.errors import Refused
from nodeplug.kernel import fsmount, mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MODE = 0o750  # the kubelet's for the directories it makes
_PATIENCE = (0.01, 0.04, 0.15, 0.3, 0.5)  # seconds between attempts, until who is still in it is left behind
_MOST_LAYERS = 64
_MOST_HOLDERS = 5


def show(volume: int, target: str, warn: Callable[[str], None]) -> None:
    """Mount `volume` at the target, which is made where it is missing."""
    made = False
    try:
        directory = _open(target)
    except FileNotFoundError:
        files.ensure_directory(os.path.dirname(target), 0o755)
        os.mkdir(target, _MODE)
        made = True
        directory = _open(target)
    try:
        hidden = os.listdir(directory)
        if hidden:
            warn(f"{target} was not empty: its {len(hidden)} entries are hidden below the volume")
        # Nobody but root writes to the host's disk should the mount ever go away under a pod (kubernetes#109955).
        os.fchmod(directory, 0)
        try:
            fsmount.show(volume, directory)
        except BaseException:
            os.fchmod(directory, _MODE)
            if made:
                os.rmdir(target)
            raise
    finally:
        os.close(directory)


def _open(target: str) -> int:
    try:
        return os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise Refused(f"{target} is not a directory, so no volume can be shown there") from None


def take_away(target: str, warn: Callable[[str], None]) -> bool:
    """Unmount all that is mounted at the target; whether anything was. What stays in use ends with its last user."""
    found = False
    for _ in range(_MOST_LAYERS):
        if not _unmount(target, warn, again=found):
            return found
        found = True
    raise Refused(f"more than {_MOST_LAYERS} mounts lie on each other at {target}", hint="something mounts there still")


def _unmount(target: str, warn: Callable[[str], None], *, again: bool) -> bool:
    for pause in _PATIENCE:
        try:
            with company.present().waiting():  # for a grace period of the kernel's
                return mount.unmount(target, again=again)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return False  # a path that cannot be a mount point
            if error.errno != errno.EBUSY:
                break
        with company.present().waiting():
            time.sleep(pause)
    holders = _held(target)  # whose paths say where they are as long as it is attached
    done = mount.unmount(target, detach=True)
    warn(f"the volume at {target} was still in use and ends with its last user{holders}")
    return done


def _held(target: str) -> str:
    """Who is in it, as far as can be told without looking into it."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and _is_inside(pid, target):
            found.append(pid)
            if len(found) == _MOST_HOLDERS:
                break
    return f": process {', '.join(found)}" if found else ""


def _is_inside(pid: str, target: str) -> bool:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    try:
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass
    for link in links:
        try:
            leads = os.readlink(link)
        except OSError:
            continue
        if leads == target or leads.startswith(target + "/"):
            return True
    return False
