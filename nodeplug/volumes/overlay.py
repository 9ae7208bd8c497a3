"""The volume `overlay`: a writable copy of directories of the host, or of an image, that takes only what is changed.

The lower directories are never written to. What is changed is in memory or in an image file, of bounded size.
"""

from __future__ import annotations

import os

from nodeplug.core.document import Wrong, choice, expects
from nodeplug.core.errors import ConfigInvalid, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount
from nodeplug.volumes import images
from nodeplug.volumes.contract import Health, Plan, Step, Volume
from nodeplug.volumes.filesystems import KNOWN, ensure_size
from nodeplug.volumes.hostpath import open_allowed, plain_path
from nodeplug.volumes.imagefile import HostImage, ImageMount, image_step, missing_image
from nodeplug.volumes.memory import MemoryFs, ensure_room, files_for
from nodeplug.volumes.options import flag, some_size, words
from nodeplug.volumes.stage import Staged, Unstaged, staged
from nodeplug.volumes.steps import GROUP_OWNED, ReadOnly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place
    from nodeplug.volumes.contract import Grant, Node, Published, Request, Work
    from nodeplug.volumes.policy import Policy

SOURCE = "nodeplug.dev/overlay"
_MOST_LOWER = 32
_LOWER_IMAGE = "lower"
_UPPER = "upper"


@expects("absolute paths between commas; a comma within one is written \\,")
def plain_paths(value: Any, at: Place) -> tuple[str, ...]:
    """Parser: the first path is uppermost."""
    found = tuple(plain_path(path, at) for path in words(value, at))
    if len(found) > _MOST_LOWER:
        raise Wrong(f"at most {_MOST_LOWER} directories can lie on each other")
    for one in found:
        others = found[: found.index(one)] + found[found.index(one) + 1 :]
        if any(f"{one}/".startswith(f"{other.rstrip('/')}/") for other in others):
            raise Wrong("names a directory twice, or one that is below another: overlayfs has them side by side only")
    return found


@expects("an absolute path, or nothing")
def plain_path_or_none(value: Any, at: Place) -> str:
    return "" if value == "" else plain_path(value, at)


class OverlayOptions(Record):
    """What a pod may ask for."""

    lower: tuple[str, ...] = key(plain_paths, default=(), help="the host's directories, the uppermost first")
    image: str = key(plain_path_or_none, default="", help="instead of them, an image file of the host")
    size: int = key(some_size, help="bytes that what is changed may take")
    upper: str = key(choice("tmpfs", "loop"), default="tmpfs", help="where that is: in memory, or in an image file")
    fs: str = key(choice(*KNOWN), default="ext4", help="the image file's file system")
    exec: bool = key(flag, default=False, help="its files may be executed")


class LowerDirectories(Step):
    """The directories opened, as descriptors "lower0" and on."""

    roots: tuple[str, ...]
    paths: tuple[str, ...]

    def do(self, work: Work) -> None:
        for number, (root, path) in enumerate(zip(self.roots, self.paths, strict=True)):
            work.keep(f"lower{number}", open_allowed(root, path))


class UpperDirectories(Step):
    """The two directories that overlayfs writes to. The upper one, when new, has owner and rights of `like`."""

    like: str
    gid: int

    def do(self, work: Work) -> None:
        with doing("cannot prepare what takes the changes"):
            filled = work.fd(_UPPER)
            _ensure_directory("work", filled)
            if not _ensure_directory("upper", filled):
                return
            model = os.stat(".", dir_fd=work.fd(self.like))
            top = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=filled)
            try:
                os.fchown(top, model.st_uid, model.st_gid if self.gid < 0 else self.gid)
                os.fchmod(top, (model.st_mode & 0o7777) | (GROUP_OWNED if self.gid >= 0 else 0))
            finally:
                os.close(top)


def _ensure_directory(name: str, directory: int) -> bool:
    """Whether it is new."""
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        return False
    return True


class OverlayMount(Step):
    """The union of what is open as "lower0" and on, or of the staged image, with what is staged as the upper one.

    Paths do not come into the options, whose commas, colons and backslashes would have to be escaped for each kernel
    differently, and could be made to lead elsewhere meanwhile: a descriptor stays what was opened.
    """

    id: str
    lower: int
    """How many; 0 for the image."""
    attributes: int

    def do(self, work: Work) -> None:
        lower = ":".join(f"/proc/self/fd/{work.fd(f'lower{number}')}" for number in range(self.lower))
        options: dict[str, str | None] = {
            "source": SOURCE,
            "lowerdir": lower or staged(self.id, _LOWER_IMAGE),
            "upperdir": f"{staged(self.id, _UPPER)}/upper",
            "workdir": f"{staged(self.id, _UPPER)}/work",
            # Whoever may write to a lower directory could make it show any other file of its file system.
            "redirect_dir": "nofollow",
            "metacopy": "off",
            "index": "off",
        }
        with doing("cannot make the overlay"):
            work.keep("volume", fsmount.create("overlay", options, attributes=self.attributes))


class Overlay(Volume):
    """See `contract.Volume`."""

    name = "overlay"
    options = OverlayOptions
    ownership = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        options: OverlayOptions = request.options
        if bool(options.lower) == bool(options.image):
            raise ConfigInvalid(
                f"volume {request.volume} is a copy of nothing, or of two things",
                hint="set one of the options lower and image",
            )
        if options.upper == "loop":
            ensure_size(options.size, options.fs)
        return policy.grant(request, size=options.size, wanted=options.lower or (options.image,))

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: OverlayOptions = request.options
        attributes = fsmount.NOSUID | fsmount.NODEV | (0 if options.exec else fsmount.NOEXEC)
        steps: list[Step] = []
        taken_away = []
        if options.image:
            steps += [
                HostImage(root=grant.roots[0], path=options.image),
                ImageMount(path=options.image, fs="", attributes=_QUIET, name="lower0", foreign=True),
                Staged(id=request.id, name=_LOWER_IMAGE, of="lower0"),
            ]
            taken_away.append(Unstaged(id=request.id, name=_LOWER_IMAGE))
        else:
            steps.append(LowerDirectories(roots=grant.roots, paths=options.lower))
        steps += [
            *self._upper(request, grant, node),
            UpperDirectories(like="lower0", gid=-1 if request.fs_group is None else request.fs_group),
            Staged(id=request.id, name=_UPPER, of=_UPPER),
            OverlayMount(id=request.id, lower=len(options.lower), attributes=attributes),
            Unstaged(id=request.id, name=_UPPER),
            *taken_away,
        ]
        if request.read_only:
            steps.append(ReadOnly())
        return Plan(steps=tuple(steps))

    def _upper(self, request: Request, grant: Grant, node: Node) -> list[Step]:
        options: OverlayOptions = request.options
        if options.upper == "loop":
            limits = grant.policy.loop
            path = images.pod_image(limits.directory, request.id)
            file = image_step(path, node.image(path), node, limits, size=options.size, fs=options.fs, full=False)
            return [file, ImageMount(path=path, fs=options.fs, attributes=_QUIET, name=_UPPER)]
        ensure_room(options.size, node)
        memory = MemoryFs(
            size=options.size,
            files=files_for(options.size),
            mode=0o700,
            uid=0,
            gid=0,
            attributes=_QUIET,
            swap=False,
            source=SOURCE,
            name=_UPPER,
        )
        return [memory]

    def health(self, published: Published) -> Health:
        missing = missing_image(published)
        return Health(ok=not missing, reason=missing)


_QUIET = fsmount.NOSUID | fsmount.NODEV | fsmount.NOEXEC
