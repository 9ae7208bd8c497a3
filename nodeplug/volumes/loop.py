"""The volume `loop`: an image file with a file system of its own, whose size is a quota that cannot be passed.

An image of scope `pod` lives as long as the pod's volume, reboots included; one of scope `node` is found again by
every pod of its namespace that names it.
"""

from __future__ import annotations

import os

from nodeplug.core.document import choice
from nodeplug.core.errors import ConfigInvalid, Refused, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount, mount
from nodeplug.volumes import images
from nodeplug.volumes.contract import Health, Plan, Resized, Step, Volume
from nodeplug.volumes.filesystems import KNOWN, ensure_size
from nodeplug.volumes.imagefile import ImageMount, XfsGrown, extend, image_step, images_of, missing_image
from nodeplug.volumes.options import flag, is_label, label, mode, number_id, some_size
from nodeplug.volumes.sizes import shown
from nodeplug.volumes.steps import GROUP_OWNED, ReadOnly, TopDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.volumes.contract import Grant, Node, Published, Request
    from nodeplug.volumes.policy import ImageLimits, Policy


class LoopOptions(Record):
    """What a pod may ask for."""

    size: int = key(some_size, help="bytes of the image: what the file system and all in it can have")
    fs: str = key(choice("", *KNOWN), default="", help="its file system; the volume's fsType, else ext4, when empty")
    scope: str = key(choice("pod", "node"), default="pod", help="whose image it is: this pod's, or kept on the node")
    name: str = key(label, default="", help="of a node's image: which one of the namespace")
    reclaim: str = key(
        choice("retain", "delete"), default="retain", help="of a node's image: what becomes of it after its last pod"
    )
    preallocate: str = key(
        choice("sparse", "full"), default="sparse", help="whether its blocks are taken as they are needed, or at once"
    )
    mode: int = key(mode, default=0o777, help="access rights of a new image's top directory")
    uid: int = key(number_id, default=0, help="its owner")
    gid: int = key(number_id, default=0, help="its group; a pod's fsGroup is set in either case")
    exec: bool = key(flag, default=True, help="its files may be executed")


class Loop(Volume):
    """See `contract.Volume`."""

    name = "loop"
    options = LoopOptions
    open = True
    resizes = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        options: LoopOptions = request.options
        ensure_size(options.size, _fs(request))
        if options.scope == "node" and not options.name:
            raise ConfigInvalid(
                f"volume {request.volume} is of scope node, whose images are found by name", hint="set the option name"
            )
        if options.scope == "node" and not is_label(request.pod.namespace):
            raise ConfigInvalid(
                f"volume {request.volume} is of scope node, whose images are a namespace's, and "
                f"{request.pod.namespace!r} is none"
            )
        if options.scope == "pod" and options.name:
            raise ConfigInvalid(
                f"volume {request.volume} has a name, and is of scope pod, whose images have none",
                hint='leave name out, or set scope to "node"',
            )
        return policy.grant(request, size=options.size, scope=options.scope)

    def locks(self, request: Request) -> tuple[str, ...]:
        options: LoopOptions = request.options
        return (node_lock(request.pod.namespace, options.name),) if options.scope == "node" else ()

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: LoopOptions = request.options
        fs = _fs(request)
        limits = grant.policy.loop
        path = _image_of(request, limits)
        found = node.image(path)
        on_node = options.scope == "node"
        if on_node:
            _ensure_only_writer(request, path, node)
        file = image_step(path, found, node, limits, size=options.size, fs=fs, full=options.preallocate == "full")
        attributes = fsmount.NOSUID | fsmount.NODEV
        attributes |= 0 if options.exec else fsmount.NOEXEC
        steps: list[Step] = [
            file.replace(stays=on_node and options.reclaim == "retain", shared=on_node),
            ImageMount(path=path, fs=fs, attributes=attributes),
        ]
        if fs == "xfs" and not file.make:
            steps.append(XfsGrown())
        group = -1 if request.fs_group is None else request.fs_group
        add = GROUP_OWNED if group >= 0 else 0
        if file.make:
            gid = options.gid if group < 0 else group
            steps.append(TopDirectory(mode=options.mode, add=add, uid=options.uid, gid=gid))
        elif group >= 0 and not request.read_only:
            steps.append(TopDirectory(gid=group, add=add))
        if request.read_only:
            steps.append(ReadOnly())  # last: its top directory had still to be furnished
        return Plan(steps=tuple(steps))

    def health(self, published: Published) -> Health:
        there = mount.find(published.target)
        if missing := missing_image(published):
            return Health(ok=False, reason=missing)
        if there is not None and "ro" in there.super_options:
            return Health(ok=False, reason="after an error its file system can only be read")
        return Health(ok=True)

    def resize(self, published: Published, size: int, grant: Grant) -> Resized:
        """The image at once, the file system when it is mounted next: ext4 does not grow while it is mounted."""
        (path,) = images_of(published)
        limits = grant.policy.loop
        with doing(f"cannot grow the image {path}"):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                has = os.fstat(fd).st_size
                if size < has:
                    raise Refused(f"the image {path} has {shown(has)}, and images do not shrink")
                full = published.options["preallocate"] == "full"
                extend(fd, size, full=full, directory=limits.directory, total=limits.total, floor=limits.floor)
            finally:
                os.close(fd)
        return Resized(size=size, pending=size > has)


def node_lock(namespace: str, name: str) -> str:
    """The key that all hold who have to do with that image."""
    return f"node image {namespace}/{name}"


def _fs(request: Request) -> str:
    fs = str(request.options.fs or request.fs_type or "ext4")
    if fs not in KNOWN:
        raise ConfigInvalid(
            f"volume {request.volume} cannot have the file system {fs!r}", hint=f"{', '.join(KNOWN)} can be"
        )
    return fs


def _image_of(request: Request, limits: ImageLimits) -> str:
    if request.options.scope == "node":
        return images.node_image(limits.directory, request.pod.namespace, request.options.name)
    return images.pod_image(limits.directory, request.id)


def _ensure_only_writer(request: Request, path: str, node: Node) -> None:
    """Raise `Refused` when another volume of the node writes to the image, and this one would too."""
    if request.read_only:
        return
    for other in node.published():
        if other.mounted and not other.read_only and path in images_of(other):
            writer = other.pod.name or other.target
            raise Refused(
                f"the image {request.pod.namespace}/{request.options.name} is written by {writer}",
                hint="one pod at a time may; others may have it read-only",
            )
