"""What a plan depends on besides its request, read from this node when it is asked for."""

from __future__ import annotations

import os

from nodeplug.core.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.volumes.contract import Image, Published


class ThisNode:
    """See `contract.Node`. `published` gives the volumes of the node, without the one that is asked for."""

    def __init__(self, published: Callable[[], tuple[Published, ...]]) -> None:
        self.published = published

    def memory_available(self) -> int:
        """Bytes that could be used without swapping."""
        with open("/proc/meminfo", "rb", buffering=0) as file:
            for line in file.read(4096).splitlines():
                name, _, rest = line.partition(b":")
                if name == b"MemAvailable":
                    return int(rest.split()[0]) * 1024
        raise Unavailable("/proc/meminfo does not say how much memory is available")

    def free(self, directory: str) -> int:
        """Bytes that may still be written to the file system of `directory`, or where it will be made."""
        while True:
            try:
                found = os.statvfs(directory)
            except FileNotFoundError:
                if directory == "/":
                    raise
                directory = os.path.dirname(directory) or "/"
            else:
                return found.f_bavail * found.f_frsize

    def image(self, path: str) -> Image | None:
        """The image file at `path`; None when there is none."""
        from nodeplug.volumes import images

        return images.look(path)

    def images(self, directory: str) -> tuple[Image, ...]:
        """All image files below `directory`."""
        from nodeplug.volumes import images

        return images.below(directory)
