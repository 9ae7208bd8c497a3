"""What doors and `nodeplug volume` call: publish, unpublish and what there is, for every back-end alike.

Holds locks, state and journal, so that a call is safe beside others and after kill -9. Back-ends are reached through a
static table and imported when they are called for.
"""

from __future__ import annotations

import os
import sys
import time

from nodeplug.core import document, files, paths
from nodeplug.core.errors import ConfigInvalid, Error, Malformed, NotFound, Refused, TryAgain, Unavailable, doing
from nodeplug.kernel import mount
from nodeplug.volumes import state
from nodeplug.volumes.contract import Health, Request, Stats, Volume, volume_id
from nodeplug.volumes.execute import UnderWay, carry_out, end, roll_back
from nodeplug.volumes.node import ThisNode
from nodeplug.volumes.options import is_label
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.show import take_away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nodeplug.kernel.mount import Mount
    from nodeplug.volumes.contract import Leftover, Published, Resized

DRIVERS = {
    "bind": "nodeplug.volumes.bind:Bind",
    "identity": "nodeplug.volumes.identity.volume:Identity",
    "log": "nodeplug.volumes.log.volume:Log",
    "loop": "nodeplug.volumes.loop:Loop",
    "overlay": "nodeplug.volumes.overlay:Overlay",
    "secret": "nodeplug.volumes.secret:SecretFiles",
    "tmpfs": "nodeplug.volumes.tmpfs:Tmpfs",
}

_ATTEMPTS = 8
LOCK = paths.LOCKS + "/volumes"
# Whose server or process may be gone, so that asking them anything may take for ever.
_REMOTE = frozenset({"9p", "afs", "ceph", "cifs", "coda", "fuseblk", "gfs2", "lustre", "nfs", "nfs4", "smb3"})
_SAME = ("driver", "options", "read_only", "fs_group", "fs_type", "pod")


def implementation(name: str) -> type[Volume]:
    """One of our back-ends. Raises `ConfigInvalid` when there is none of that name."""
    where = DRIVERS.get(name)
    if where is None:
        raise ConfigInvalid(f"nodeplug has no volume {name!r}", hint=f"it has {', '.join(sorted(DRIVERS))}")
    module, _, kind = where.partition(":")
    __import__(module)  # importlib would bring warnings and contextlib along
    return getattr(sys.modules[module], kind)  # type: ignore[no-any-return]  # the table above names back-ends


def request_of(published: Published) -> Request:
    """What was asked for, read from the state; without secrets. Raises `ConfigInvalid` for options no longer known."""
    options = document.decode(implementation(published.driver).options, published.options)
    fields = {name: getattr(published, name) for name in Request._fields if name in published.__dict__}
    return Request(**{**fields, "options": options})


def _nowhere(_sentence: str) -> None:
    pass


class Service:
    """All volumes of this node, under one policy. Safe among threads, processes and kill -9.

    `timeout` bounds each operation, in seconds: the kubelet itself waits for ever. `warn` is told in a sentence of what
    went wrong besides, though the operation succeeds.
    """

    def __init__(
        self, policy: Policy | None = None, *, timeout: float = 90.0, warn: Callable[[str], None] = _nowhere
    ) -> None:
        self.policy = policy or Policy()
        self.timeout = timeout
        self.warn = warn

    def publish(self, request: Request) -> Published:
        """Show the volume at the request's target.

        The same request again is success, and brings its content up to date; any other on a live target is `Refused`.
        A failure leaves nothing behind, and nothing mounted. Raises what `Volume.validate` and `plan` do, `Refused`
        (something else is mounted there), `TryAgain` (another call is at it), `TimedOut`, `Unavailable`.
        """
        deadline = time.monotonic() + self.timeout
        _check_target(request.target)
        volume = implementation(request.driver)()
        with doing(f"cannot publish volume {request.volume}"), self._locked((request.id, *volume.locks(request))):
            before = self._read(request.id)
            there = mount.find(request.target)
            if there is not None:
                return self._again(volume, request, before, there)
            grant = volume.validate(request, self.policy)
            before = _earlier(request, before, self.warn)
            plan = volume.plan(request, grant, ThisNode(lambda: self._others(request.id)))
            work = UnderWay(request, deadline, self.warn)
            return carry_out(plan, state.record_of(request, time.time()), before, work)

    def _again(self, volume: Volume, request: Request, before: Published | None, there: Mount) -> Published:
        """The call came before, or another is in the way."""
        if before is None or not _is_of(there, before):
            raise Refused(
                f"{there.fstype} of {there.source!r} is mounted at {request.target}, and is no volume of this request",
                hint="it has to be unmounted before the volume can be shown there",
            )
        wanted = state.record_of(request, before.created)
        others = [name for name in _SAME if getattr(wanted, name) != getattr(before, name)]
        if others:
            raise Refused(
                f"the volume at {request.target} was published with other {', '.join(others)}",
                hint="a mounted volume does not change; it has to be unpublished first",
            )
        volume.refresh(request, before)
        return before.replace(mounted=True)

    def unpublish(self, target: str) -> None:
        """Take away whatever is at the target, and what was made for it: the directory is empty then, or missing.

        Needs nothing but the path: no state, no directory, no mount, an unreadable mount are all fine, and twice too.
        """
        _check_target(target)
        id = volume_id(target)
        keys: tuple[str, ...] = (id,)
        with doing(f"cannot unpublish {target}"):
            for _ in range(_ATTEMPTS):
                with self._locked(keys):
                    known = self._read(id)
                    needed = (id, *_locks_of(known))
                    if set(needed) <= set(keys):
                        if known is not None:
                            self._part(known)
                        take_away(target, self.warn)
                        if known is not None:
                            end(known)
                        else:
                            state.remove(id)  # what a killed writer left of it
                        return
                keys = needed  # all are taken at once, in the order in which everybody does
        raise TryAgain(f"{target} is published anew all the while")

    def _part(self, known: Published) -> None:
        try:
            kind = implementation(known.driver)
            if kind.part is Volume.part:
                return  # without a look at what is mounted
            there = mount.find(known.target)
            if there is not None and _is_of(there, known):
                kind().part(known)
        except (Error, OSError) as error:
            self.warn(f"the content of {known.target} was left as it was: {error}")

    def stats(self, target: str) -> Stats:
        """What the volume at the target holds. Raises `NotFound` when there is none."""
        known, there = self._mounted(target)
        found = implementation(known.driver)().stats(known)
        if found is not None:
            return found
        if there.fstype in _REMOTE or there.fstype.startswith("fuse"):
            raise Unavailable(f"{target} is of {there.fstype}, which may not answer, so it is not asked")
        with doing(f"cannot look at {target}"):
            held = os.statvfs(target)
        return Stats(
            total=held.f_blocks * held.f_frsize,
            available=held.f_bavail * held.f_frsize,
            used=(held.f_blocks - held.f_bfree) * held.f_frsize,
            files=held.f_files,
            files_free=held.f_ffree,
        )

    def health(self, target: str) -> Health:
        """Whether the volume at the target is well. Raises `NotFound` when the node knows of none."""
        known = state.read(volume_id(target))
        if known is None:
            raise NotFound(f"there is no volume for {target}")
        there = mount.find(target)
        if there is None:
            return Health(ok=False, reason=f"nothing is mounted at {target}")
        if not _is_of(there, known):
            return Health(ok=False, reason=f"{there.fstype} of {there.source!r} is mounted over {target}")
        return implementation(known.driver)().health(known)

    def resize(self, target: str, size: int) -> Resized:
        """Make the volume at the target `size` bytes large. Raises `NotFound`, or what the back-end does."""
        known, _ = self._mounted(target)
        with doing(f"cannot resize the volume at {target}"), self._locked((known.id, *_locks_of(known))):
            known, _ = self._mounted(target)
            volume = implementation(known.driver)()
            asked = request_of(known)
            if "size" in asked.options.__dict__:
                asked = asked.replace(options=asked.options.replace(size=size))
            return volume.resize(known, size, volume.validate(asked, self.policy))

    def published(self) -> tuple[Published, ...]:
        """Every volume that the node has a state of, oldest first; `mounted` tells which are at their target now."""
        points = {each.point: each for each in mount.mounts()}  # the last on a point covers those before
        found = []
        for id in state.ids():
            known = self._read(id)
            if known is not None:
                there = points.get(_real(known.target))
                found.append(known.replace(mounted=there is not None and _is_of(there, known)))
        return tuple(sorted(found, key=lambda each: (each.created, each.id)))

    def find(self, target: str) -> Published | None:
        """The volume of that target, if the node knows of one."""
        known = state.read(volume_id(target))
        if known is None:
            return None
        there = mount.find(target)
        return known.replace(mounted=there is not None and _is_of(there, known))

    def collect(self, *, apply: bool) -> tuple[Leftover, ...]:
        """What kill -9, a reboot or a vanished pod left over; taken away where `apply` says so.

        Keeps every other call away while it looks.
        """
        from nodeplug.volumes import leftovers

        with doing("cannot look for what is left over"), self._locked(None):
            known, found = leftovers.collect(self.published(), self.policy, apply=apply)
            for driver in DRIVERS:
                found += implementation(driver)().leftovers(known, apply=apply)
            return tuple(found)

    def remove_image(self, namespace: str, name: str) -> None:
        """Remove an image of the node, which outlives the pods that have written it. Raises `Refused`, `NotFound`."""
        from nodeplug.volumes import imagefile, images
        from nodeplug.volumes.loop import node_lock

        path = images.node_image(self.policy.loop.directory, namespace, name)
        with doing(f"cannot remove the image {namespace}/{name}"), self._locked((node_lock(namespace, name),)):
            if not (is_label(namespace) and is_label(name)) or images.look(path) is None:
                raise NotFound(f"there is no image {namespace}/{name}")
            users = [each.target for each in state.every() if path in imagefile.images_of(each)]
            if users:
                raise Refused(f"the image {namespace}/{name} is of the volume at {', '.join(users)}")
            imagefile.remove(path)

    def _mounted(self, target: str) -> tuple[Published, Mount]:
        known = state.read(volume_id(target))
        there = mount.find(target)
        if known is None or there is None or not _is_of(there, known):
            raise NotFound(f"no volume is published at {target}")
        return known, there

    def _others(self, id: str) -> tuple[Published, ...]:
        return tuple(each for each in self.published() if each.id != id)

    def _read(self, id: str) -> Published | None:
        """A state that cannot be understood must not keep a pod from ending: what it told of is left to `collect`."""
        try:
            return state.read(id)
        except Malformed as error:
            self.warn(str(error))
            return None

    def _locked(self, keys: Collection[str] | None) -> files.RangeLock:
        return files.range_lock(LOCK, keys, timeout=min(30.0, self.timeout))


def _check_target(target: str) -> None:
    if not target.startswith("/") or os.path.normpath(target) != target or target.startswith("//") or "\0" in target:
        raise ConfigInvalid(f"{target!r} cannot be a volume's target", hint="an absolute path without . and .. is")


def _is_of(there: Mount, known: Published) -> bool:
    return f"{there.device[0]}:{there.device[1]}" == known.device


def _real(target: str) -> str:
    head, tail = os.path.split(target)
    return os.path.join(os.path.realpath(head), tail)


def _earlier(request: Request, before: Published | None, warn: Callable[[str], None]) -> Published | None:
    """What remains of a volume that has a state and is not mounted: its image, after a reboot.

    When its maker was killed before it could be shown, nothing of it is worth anything.
    """
    if before is None:
        return None
    if before.driver != request.driver:
        raise Refused(
            f"what a {before.driver} volume left for {request.target} is still there",
            hint="that volume has to be unpublished first",
        )
    if before.device:
        return before
    failure = Unavailable(f"what an interrupted call left for {request.target} cannot be taken away")
    roll_back(before, None, failure, warn)
    if getattr(failure, "__notes__", ()):
        raise failure
    return None


def _locks_of(known: Published | None) -> tuple[str, ...]:
    if known is None:
        return ()
    try:
        kind = implementation(known.driver)
        return () if kind.locks is Volume.locks else kind().locks(request_of(known))
    except ConfigInvalid:
        return ()  # of a version whose options we do not know
