"""The steps of volumes that are in an image file: the file made or checked, and mounted through a loop device."""

from __future__ import annotations

import errno
import os

from nodeplug.core import files, paths
from nodeplug.core.errors import Refused, Unavailable, doing
from nodeplug.kernel import fsmount, libc, loop
from nodeplug.volumes import filesystems, images, state
from nodeplug.volumes.contract import Image, Step
from nodeplug.volumes.hostpath import open_allowed
from nodeplug.volumes.sizes import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Node, Published, Work
    from nodeplug.volumes.policy import ImageLimits

ROOM = paths.LOCKS + "/images"
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_REMOVAL = 10.0  # seconds that a child of a killed process is waited for


class ImageFile(Step):
    """An image, ready to be mounted, as descriptor "image". Made, if `make`; else checked, and grown to `size`.

    It never has its name before it is whole, and no file that is there is ever made anew. With `stays` it outlives the
    volume; `shared` lets it go with the last volume that has it. `total` and `floor` are `images.ensure_room`'s.
    """

    lasts = True
    kept = True

    path: str
    fs: str
    size: int
    full: bool
    make: bool
    stays: bool
    shared: bool
    directory: str
    total: int
    floor: int

    def do(self, work: Work) -> None:
        files.ensure_directory(os.path.dirname(self.path), 0o700)
        kind = filesystems.KNOWN[self.fs]
        if self.make:
            with doing(f"cannot make the image {self.path} of {shown(self.size)}"):
                work.keep("image", self._unnamed())
                self._fill(work.fd("image"))
                filesystems.make(kind, work.fd("image"), full=self.full, timeout=work.left())
                self._fill(work.fd("image"))  # once more: mkfs punches holes where it wants zeros
                self._name(work.fd("image"))
        # Also a new one, by its name: this is the path that a loop device shows as its own.
        with doing(f"cannot open the image {self.path}"):
            work.keep("image", os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        if not self.make:
            self._ready(work, work.fd("image"))

    def _ready(self, work: Work, fd: int) -> None:
        files.hold(fd, self.path, timeout=work.left())
        found = images.examine(fd, self.path)
        if found is None or found.fs != self.fs:
            raise Refused(f"the image {self.path} holds no {self.fs} any more")
        if not _is_attached(fd, self.path):
            self._mend(work, fd, found)

    def _mend(self, work: Work, fd: int, found: Image) -> None:
        kind = filesystems.KNOWN[self.fs]
        # Larger than its file system is also the file of one that was killed between the two.
        grows = self.size > found.size or found.size - found.fs_size >= found.granule
        filesystems.check(kind, self.path, fd, force=grows, timeout=work.left())
        if not grows:
            return
        if self.size > found.size:
            with doing(f"cannot grow the image {self.path} to {shown(self.size)}"):
                extend(fd, self.size, full=self.full, directory=self.directory, total=self.total, floor=self.floor)
        filesystems.grow(kind, self.path, fd, timeout=work.left())

    def _unnamed(self) -> int:
        """A file that has no name yet, and is gone with this process until it has one."""
        try:
            return os.open(os.path.dirname(self.path), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _NO_UNNAMED:
                raise Unavailable(
                    f"the file system of {self.directory} cannot hold a file without a name (O_TMPFILE)",
                    hint="set volumes.loop.directory to one that can: ext4, xfs, btrfs",
                ) from error
            raise

    def _fill(self, fd: int) -> None:
        os.ftruncate(fd, self.size)
        if self.full:
            libc.fallocate(fd, 0, 0, self.size)

    def _name(self, fd: int) -> None:
        """Give it its name, when there still is room for it: others may have come first."""
        os.fsync(fd)
        with files.range_lock(ROOM, self.directory):
            taken = os.fstat(fd).st_blocks * 512
            free = _free(fd) + taken
            images.ensure_room(self.size, images.below(self.directory), free, total=self.total, floor=self.floor)
            here = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.link(str(fd), self.path, src_dir_fd=here, follow_symlinks=True)
            finally:
                os.close(here)
        files.sync_directory(os.path.dirname(self.path))

    def undo(self) -> None:
        if self.make:
            remove(self.path)

    def end(self) -> None:
        if not self.stays and not (self.shared and self._is_of_another()):
            remove(self.path)

    def _is_of_another(self) -> bool:
        """Whether a volume besides this one, which still has its state, has the image."""
        return len([each for each in state.every() if self.path in images_of(each)]) > 1


def image_step(
    path: str, found: Image | None, node: Node, limits: ImageLimits, *, size: int, fs: str, full: bool
) -> ImageFile:
    """The step for an image of the volume's own. `found` is what lies at its path.

    Raises `Refused` when that is something else, `Unavailable` when there is no room.
    """
    if found is not None and found.fs != fs:
        holds = f"holds {found.fs}" if found.fs else "holds no file system that nodeplug knows"
        raise Refused(
            f"the image {path} {holds}, not {fs}, and is not made anew",
            hint="ask for what it is, or move the file away after a look into it",
        )
    more = size - (found.size if found is not None else 0)
    if more > 0:
        there = node.images(limits.directory)
        images.ensure_room(more, there, node.free(limits.directory), total=limits.total, floor=limits.floor)
    return ImageFile(
        path=path,
        fs=fs,
        size=size,
        full=full,
        make=found is None,
        stays=False,
        shared=False,
        directory=limits.directory,
        total=limits.total,
        floor=limits.floor,
    )


def images_of(published: Published) -> tuple[str, ...]:
    """The paths of the images that a volume has."""
    return tuple(step.path for step in published.steps if isinstance(step, ImageFile))


def missing_image(published: Published) -> str:
    """What is wrong when a volume's image has lost its name; empty when it has not."""
    for path in images_of(published):
        if not os.path.exists(path):
            return f"its image {path} has been removed: what is in it ends with the pod"
    return ""


def extend(fd: int, size: int, *, full: bool, directory: str, total: int, floor: int) -> None:
    """Make an image's file larger, where the node has room for it. Raises `Unavailable`, OSError."""
    with files.range_lock(ROOM, directory):
        more = size - os.fstat(fd).st_size
        images.ensure_room(more, images.below(directory), _free(fd), total=total, floor=floor)
        if full:
            libc.fallocate(fd, 0, 0, size)
        os.ftruncate(fd, size)


def _free(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def remove(path: str) -> None:
    """Take the image away, after who was checking it has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        files.hold(fd, path, timeout=_REMOVAL)
        files.remove(path)
    finally:
        os.close(fd)


def _is_attached(fd: int, path: str) -> bool:
    """Whether a loop device has it: then it is mounted, by a pod beside this one or one that has not let go."""
    found = loop.find(fd, os.path.basename(path))
    for device, _ in found:
        os.close(device)
    return bool(found)


class ImageMount(Step):
    """A mount of the image that descriptor "image" is open on. One that is mounted already is mounted once more.

    The file system is always writable, whatever the mount is: two pods may have it, one of them to read. But what is
    `foreign`, not made by us, is read-only all the way down; `fs` is empty for whatever is in it.
    """

    path: str
    fs: str
    attributes: int
    name: str = "volume"
    foreign: bool = False

    def do(self, work: Work) -> None:
        image = work.fd("image")
        with doing(f"cannot mount the image {self.path}"):
            device, path = self._attached(image)
            try:
                fs = self.fs or self._recognised(image)
                work.keep(self.name, fsmount.create(fs, self._options(fs, path), attributes=self.attributes))
            finally:
                os.close(device)

    def _attached(self, image: int) -> tuple[int, str]:
        """A descriptor that keeps the loop device, and its path."""
        found = loop.find(image, os.path.basename(self.path))
        for spare, _ in found[1:]:
            os.close(spare)
        if found:
            return found[0][0], found[0][1].path
        flags = loop.AUTOCLEAR | (loop.READ_ONLY if self.foreign else loop.DIRECT_IO)
        fd, device = loop.attach(image, self.path, flags=flags)
        return fd, device.path

    def _recognised(self, image: int) -> str:
        found = images.examine(image, self.path)
        if found is None or not found.fs:
            raise Refused(f"{self.path} holds no file system that nodeplug knows")
        return found.fs

    def _options(self, fs: str, device: str) -> dict[str, str | None]:
        options: dict[str, str | None] = {"source": device}
        if not self.foreign:
            return {**options, **filesystems.KNOWN[fs].mounted}
        options["ro"] = None
        if fs == "ext4":
            options["noload"] = None  # a journal that would be replayed needs a device that can be written
        elif fs == "xfs":
            options.update({"norecovery": None, "nouuid": None})
        return options


class HostImage(Step):
    """An image file of the host that the node's policy allows, as descriptor "image"."""

    root: str
    path: str

    def do(self, work: Work) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        work.keep("image", open_allowed(self.root, self.path, flags=flags))


class XfsGrown(Step):
    """The mounted xfs fills its device, which it cannot do before it is mounted."""

    def do(self, work: Work) -> None:
        from nodeplug.kernel import xfs

        found = images.examine(work.fd("image"), "the image")
        if found is None or found.size - found.fs_size < found.granule:
            return
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work.fd("volume"))
        try:
            with doing("cannot grow the xfs"):
                xfs.grow(top, found.size // os.fstatvfs(top).f_frsize)
        finally:
            os.close(top)
