"""What belongs to no pod: half made when its maker was killed, unmounted by a reboot, or of a pod that has vanished.

Called by `service` while no other call is at work. What a pod that may come back still needs is not left over.
"""

from __future__ import annotations

import os

from nodeplug.core import files
from nodeplug.core.errors import Error
from nodeplug.kernel import loop, mount
from nodeplug.volumes import imagefile, images, stage, state
from nodeplug.volumes.contract import Leftover
from nodeplug.volumes.execute import end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.volumes.contract import Published
    from nodeplug.volumes.policy import Policy

_OURS = "nodeplug.dev/"  # how the sources of our mounts begin, in mountinfo


class Collector:
    """One look at the node. `apply` removes what is found; what cannot be removed is reported with the reason."""

    def __init__(self, *, apply: bool) -> None:
        self.apply = apply
        self.found: list[Leftover] = []

    def note(self, kind: str, name: str, reason: str, remove: Callable[..., object] | None, *arguments: object) -> None:
        """One thing that is left over, which `remove(*arguments)` removes; without it, it is only told of."""
        removed = False
        if self.apply and remove is not None:
            try:
                remove(*arguments)
                removed = True
            except (Error, OSError) as error:
                reason = f"{reason}; it cannot be removed: {error}"
        self.found.append(Leftover(kind=kind, name=name, reason=reason, removed=removed))


def collect(
    published: tuple[Published, ...], policy: Policy, *, apply: bool
) -> tuple[tuple[Published, ...], list[Leftover]]:
    """The volumes that stay, of those the node knows of, and what is left over besides."""
    at = Collector(apply=apply)
    known = _states(at, published)
    _staged(at)
    _mounts(at, known)
    _images(at, published, policy)
    return known, at.found


def _states(at: Collector, published: tuple[Published, ...]) -> tuple[Published, ...]:
    for path in state.abandoned():
        at.note("state", path, "its writer was killed", files.remove, path)
    readable = {each.id for each in published}
    for id in state.ids():
        if id not in readable:
            at.note("state", id, "it cannot be understood", state.remove, id)
    staying = []
    for each in published:
        reason = "" if each.mounted else _why_over(each)
        if reason:
            at.note("volume", each.target, reason, end, each)
        else:
            staying.append(each)
    return tuple(staying)


def _why_over(known: Published) -> str:
    """Why a volume that is not mounted will not be again; empty when it may be."""
    if not known.device:
        return "whoever made it was killed before it could be shown"
    if is_gone(known):
        return "its pod is gone"
    if not any(step.kept for step in known.steps):
        return "it is not mounted any more, and nothing of it is kept"
    return ""


def is_gone(known: Published) -> bool:
    """Whether the pod of a volume that is not mounted is gone: its directory is, where those of pods can be seen."""
    if os.path.lexists(known.target):
        return False
    parts = known.target.split("/")
    if known.pod.uid in parts[1:]:
        at = parts.index(known.pod.uid, 1)
        return os.path.isdir("/".join(parts[:at]) or "/") and not os.path.lexists("/".join(parts[: at + 1]))
    return os.path.isdir(os.path.dirname(known.target))


def _staged(at: Collector) -> None:
    for id, name in stage.left():
        reason = "whoever needed it for a moment was killed"
        at.note("mount", stage.staged(id, name), reason, stage.unstage, id, name)


def _mounts(at: Collector, known: tuple[Published, ...]) -> None:
    targets = {os.path.realpath(os.path.dirname(each.target)) + "/" + os.path.basename(each.target) for each in known}
    for each in mount.mounts():
        if each.source.startswith(_OURS) and each.point not in targets and not each.point.startswith(stage.STAGE + "/"):
            # A pod may have it still; its end unmounts it, with or without a state.
            at.note("mount", each.point, "no state tells of it; it goes when its pod does", None)


def _images(at: Collector, published: tuple[Published, ...], policy: Policy) -> None:
    """Images of volumes that are over are theirs, and go with them."""
    directory = policy.loop.directory
    wanted = {path for each in published for path in imagefile.images_of(each)}
    attached = {device.backing for device in loop.devices()}
    for image in images.below(f"{directory}/pod"):
        if image.path in wanted:
            continue
        if image.path in attached:
            at.note("image", image.path, "it is of no volume, and mounted somewhere", None)
        else:
            at.note("image", image.path, "it is of no volume", imagefile.remove, image.path)
    for device in loop.devices():
        if device.deleted and device.backing.startswith(f"{directory}/"):
            reason = f"its image {device.backing} is gone; it ends with its last user"
            at.note("loop device", device.path, reason, loop.detach, device.path)
