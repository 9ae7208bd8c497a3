"""Growing a mounted xfs: ioctl XFS_IOC_FSGROWFSDATA, as xfs_growfs(8) does. For volumes in image files."""

from __future__ import annotations

import fcntl
import struct

_FSGROWFSDATA = 0x4010586E  # _IOW('X', 110, struct xfs_growfs_data)
_GROW = struct.Struct("=QI4x")  # blocks, largest share of inodes in percent


def grow(directory: int, blocks: int, *, inode_share: int = 25) -> None:
    """Let the file system that holds the open `directory` have so many blocks of its own size in all.

    Raises OSError, EINVAL when its device is smaller.
    """
    try:
        fcntl.ioctl(directory, _FSGROWFSDATA, _GROW.pack(blocks, inode_share))
    except OSError as error:
        raise OSError(error.errno, f"XFS_IOC_FSGROWFSDATA: {error.strerror}", f"fd {directory}") from None
