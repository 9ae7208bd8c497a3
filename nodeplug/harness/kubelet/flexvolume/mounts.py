"""What the kubelet itself does with mount points around a driver's verbs (k8s.io/mount-utils, pkg/volume)."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error
from nodeplug.kernel import libc, mount

if TYPE_CHECKING:
    from pathlib import Path

_CORRUPT = frozenset((errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EACCES, errno.EHOSTDOWN))
_RW, _RO, _DIRECTORY = 0o660, 0o440, 0o110


class KubeletFailed(Error):
    """A step of the kubelet's own, beside the driver's verbs, did not succeed."""


def is_likely_not_mount_point(path: Path, *, statx: bool) -> bool:
    """As the kubelet asks before it mounts. Raises OSError, FileNotFoundError among them.

    Older kubelets compare the device of a directory with its parent's, to which a bind mount within one file system
    looks like no mount; newer ones ask statx(2), which knows. `statx` selects.
    """
    here = os.lstat(path)
    if statx:
        return not mount.is_mounted(str(path))
    return here.st_dev == os.lstat(path.parent).st_dev


def prepare_for_mount(path: Path, *, statx: bool) -> bool:
    """Whether it is mounted already; the directory is made where it is missing."""
    try:
        return not is_likely_not_mount_point(path, statx=statx)
    except FileNotFoundError:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return False


def path_exists(path: Path) -> bool:
    """Whether something is there; a mount that cannot be read any more raises its OSError."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def is_corrupt(error: OSError) -> bool:
    """Whether that error is of a mount whose server or device has gone."""
    return error.errno in _CORRUPT


def remove_directory(path: Path) -> None:
    """os.Remove: never recursively. Raises `KubeletFailed`, for which a pod stays Terminating."""
    try:
        os.rmdir(path)
    except OSError as error:
        raise KubeletFailed(f"remove {path}: {(error.strerror or '').lower()}") from error


def unmount(path: Path) -> None:
    """Raises `KubeletFailed`."""
    try:
        mount.unmount(str(path))
    except OSError as error:
        raise KubeletFailed(f"unmount {path}: {(error.strerror or '').lower()}") from error


def bind(source: Path, target: Path) -> None:
    """The default of a mount: the node's mount of the volume, shown to the pod. Raises `KubeletFailed`."""
    try:
        mount.bind(str(source), str(target))
    except OSError as error:
        raise KubeletFailed(f"mount --bind {source} {target}: {(error.strerror or '').lower()}") from error


def mount_device(device: str, target: Path, fstype: str, *, read_only: bool) -> None:
    """The default of mountdevice. Raises `KubeletFailed`."""
    try:
        libc.mount(device, str(target), fstype or "ext4", mount.MS_RDONLY if read_only else 0)
    except OSError as error:
        raise KubeletFailed(f"mount {device} {target}: {(error.strerror or '').lower()}") from error


def set_ownership(top: Path, group: int, *, read_only: bool) -> None:
    """Give the volume to a group, entry by entry, as the kubelet does where a driver has fsGroup."""
    for directory, names, others in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *others))):
            found = os.lstat(path)
            os.lchown(path, -1, group)
            if stat.S_ISLNK(found.st_mode):
                continue
            mode = stat.S_IMODE(found.st_mode) | (_RO if read_only else _RW)
            if stat.S_ISDIR(found.st_mode):
                mode |= _DIRECTORY | stat.S_ISGID
            os.chmod(path, mode)
