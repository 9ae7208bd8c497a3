"""Image files as they lie on disk: what is in them, and how much room the node has for more. Changes nothing.

Pods' images are in `pod/ID.img` of the images' directory, the node's in `node/NAMESPACE/NAME.img`.
"""

from __future__ import annotations

import os
import stat
import struct

from nodeplug.core.errors import Unavailable
from nodeplug.volumes.contract import Image
from nodeplug.volumes.sizes import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIX = ".img"
_HEAD = 70 * 1024  # as far as any of the superblocks reaches
_EXT_AT = 1024
_EXT_MAGIC = 0xEF53
_EXT_64BIT = 0x80
_EXT_LEAST = 256  # blocks beyond its tables that a group has to have, generously
_XFS_LEAST = 64  # blocks of the smallest allocation group
_BTRFS_AT = 0x10000
_OTHERS = ((0, b"hsqs", "squashfs"), (1024, b"\xe2\xe1\xf5\xe0", "erofs"), (_BTRFS_AT + 64, b"_BHRfS_M", "btrfs"))


def pod_image(directory: str, id: str) -> str:
    return f"{directory}/pod/{id}{SUFFIX}"


def node_image(directory: str, namespace: str, name: str) -> str:
    return f"{directory}/node/{namespace}/{name}{SUFFIX}"


def look(path: str) -> Image | None:
    """The image at `path`; None when there is none, or no plain file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return examine(fd, path)
    finally:
        os.close(fd)


def examine(fd: int, path: str) -> Image | None:
    """The image that `fd` is open on."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        return None
    fs, fs_size, granule = recognise(os.pread(fd, _HEAD, 0))
    used = found.st_blocks * 512
    return Image(path=path, size=found.st_size, used=used, fs=fs, fs_size=fs_size, granule=granule)


def recognise(head: bytes) -> tuple[str, int, int]:
    """Name, size and granule of the file system that begins so; ("", 0, 0) for none that is known."""
    if head[:4] == b"XFSB" and len(head) >= 16:
        block, blocks = struct.unpack_from(">IQ", head, 4)
        return "xfs", block * blocks, block * _XFS_LEAST
    if len(head) >= _EXT_AT + 0x154 and _at("<H", head, 0x38) == _EXT_MAGIC:
        block = 1024 << min(_at("<I", head, 0x18), 6)
        blocks = _at("<I", head, 0x4)
        if _at("<I", head, 0x60) & _EXT_64BIT:
            blocks |= _at("<I", head, 0x150) << 32
        # A last group that would hold little more than its own tables is left out.
        tables = _at("<I", head, 0x28) * _at("<H", head, 0x58) // block + _at("<H", head, 0xCE)
        return "ext4", block * blocks, block * (tables + _EXT_LEAST)
    for at, magic, name in _OTHERS:
        if head[at : at + len(magic)] == magic:
            return name, 0, 0
    return "", 0, 0


def _at(form: str, head: bytes, offset: int) -> int:
    """One number of an ext4 superblock."""
    return int(struct.unpack_from(form, head, _EXT_AT + offset)[0])


def below(directory: str) -> tuple[Image, ...]:
    """All images of the images' directory."""
    found = (look(path) for path in _paths(directory))
    return tuple(image for image in found if image is not None)


def _paths(directory: str) -> Iterable[str]:
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            if name.endswith(SUFFIX) and not name.startswith("."):
                yield f"{folder}/{name}"


def ensure_room(size: int, there: Iterable[Image], free: int, *, total: int, floor: int) -> None:
    """Raise `Unavailable` when `size` more bytes of images are more than the node has room for.

    What sparse images have not taken yet is promised to them: so no pod runs out of disk within its own quota, and the
    node never does because of images.
    """
    there = tuple(there)
    held = sum(image.size for image in there)
    if held + size > total:
        raise Unavailable(
            f"this node's images may have {shown(total)} in all; {shown(held)} are given away, so that {shown(size)} "
            "more do not fit",
            hint="ask for less, remove images that nobody needs, or raise volumes.loop.total",
        )
    promised = sum(max(0, image.size - image.used) for image in there)
    left = free - promised - floor
    if size > left:
        raise Unavailable(
            f"the disk of this node's images has {shown(free)} free, of which {shown(promised)} are promised to sparse "
            f"images and {shown(floor)} stay free always: {shown(size)} more do not fit",
            hint="ask for less, make room on the disk, or lower volumes.loop.floor",
        )
