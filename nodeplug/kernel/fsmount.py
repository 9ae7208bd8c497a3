"""Mounts that are mounted nowhere as yet: made and furnished through a descriptor, then shown in one move.

See fsopen(2), fsmount(2), open_tree(2), mount_setattr(2) and move_mount(2); all need Linux 5.12. A mount that was never
shown ends with its descriptor, so a process killed in the middle leaves nothing behind.

    volume = fsmount.create("tmpfs", {"size": "65536", "mode": "0750"}, attributes=NOSUID | NODEV)
    os.mkdir("inside", dir_fd=volume)
    fsmount.show(volume, directory)
"""

from __future__ import annotations

import os
import struct

from nodeplug.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
NOATIME = 0x10
NOSYMFOLLOW = 0x200000

_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_FSPICK_CLOEXEC = 0x1
_FSPICK_EMPTY_PATH = 0x8
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_OPEN_TREE_CLONE = 0x1
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MS_PRIVATE = 0x40000

_ATTRIBUTES = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, userns_fd


def create(fstype: str, options: Mapping[str, str | None], *, attributes: int = 0) -> int:
    """A new mount's descriptor (as of O_PATH). `options` are the file system's, None for one without a value.

    "source" is what mountinfo shows as such, or the device. Raises OSError with what the file system itself had to say
    of it; its `filename` is the option that was refused, or `fstype`.
    """
    context = libc.fsopen(fstype, _FSOPEN_CLOEXEC)
    try:
        _configure(context, options, _FSCONFIG_CMD_CREATE, fstype)
        return libc.fsmount(context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def reconfigure(mount: int, options: Mapping[str, str | None]) -> None:
    """Change options of the file system that is mounted there, for all who have it mounted."""
    context = libc.fspick(mount, "", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
    try:
        _configure(context, options, _FSCONFIG_CMD_RECONFIGURE, f"fd {mount}")
    finally:
        os.close(context)


def _configure(context: int, options: Mapping[str, str | None], command: int, subject: str) -> None:
    at = subject
    try:
        for name, value in options.items():
            at = name
            if value is None:
                libc.fsconfig(context, _FSCONFIG_SET_FLAG, name, None, 0)
            else:
                libc.fsconfig(context, _FSCONFIG_SET_STRING, name, value, 0)
        at = subject
        libc.fsconfig(context, command, "", None, 0)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_said(context)}", at) from None


def _said(context: int) -> str:
    """What the file system told of its failure, in brackets: a context is read message by message."""
    messages = []
    for _ in range(8):
        try:
            messages.append(os.read(context, 512).decode("utf-8", "replace").strip())
        except OSError:
            break
    return f" ({'; '.join(messages)})" if messages else ""


def at(path: str) -> int:
    """A descriptor (as of O_PATH) of what is mounted at `path`, whose last part is not followed when it is a link."""
    return libc.open_tree(libc.AT_FDCWD, path, os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW)


def clone(directory: int, path: str = "", *, recursive: bool = False) -> int:
    """A descriptor of a copy of the mount at `path`, its root the directory or file that `path` leads to.

    An empty path is what `directory` itself is open on (O_PATH does). With `recursive` all that is mounted below comes
    along.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return libc.open_tree(directory, path, flags | (0 if path else _AT_EMPTY_PATH))


def set_attributes(mount: int, *, on: int = 0, off: int = 0, private: bool = False) -> None:
    """Turn attributes (RDONLY, NOSUID ...) of this mount on and off; `private` ends its sharing with other mounts."""
    attributes = _ATTRIBUTES.pack(on, off, _MS_PRIVATE if private else 0, 0)
    libc.mount_setattr(mount, "", _AT_EMPTY_PATH, attributes)


def show(mount: int, directory: int) -> None:
    """Mount it on what `directory` is open on, in one step."""
    libc.move_mount(mount, directory, "", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
