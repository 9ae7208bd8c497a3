"""The volume `log`: a directory of logs with a bound, rotated by nodeplugd, read by collectors of the node.

Its file system is its own, in an image file or in memory, so that a writer who is too quick fills that and nothing
else. The same content is shown read-only below /var/log/nodeplug/pods, and stays there for a while after the pod.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files
from nodeplug.core.chore import is_kept
from nodeplug.core.document import Wrong, choice, expects
from nodeplug.core.errors import ConfigInvalid, Error, Malformed, PermissionRefused, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount, mount
from nodeplug.volumes import images
from nodeplug.volumes.contract import Health, Leftover, Plan, Step, Volume
from nodeplug.volumes.filesystems import KNOWN, ensure_size
from nodeplug.volumes.imagefile import ImageFile, ImageMount, XfsGrown, image_step, missing_image, remove
from nodeplug.volumes.log import index, records
from nodeplug.volumes.log.records import Known
from nodeplug.volumes.log.rules import Rules
from nodeplug.volumes.memory import MemoryFs, ensure_room, files_for
from nodeplug.volumes.options import count, number_id, some_size, span, words
from nodeplug.volumes.options import mode as rights
from nodeplug.volumes.pods import ensure_own, is_name
from nodeplug.volumes.show import take_away
from nodeplug.volumes.sizes import shown
from nodeplug.volumes.steps import GROUP_OWNED, TopDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place
    from nodeplug.volumes.contract import Grant, Node, Published, Request, Work
    from nodeplug.volumes.policy import Policy

CHORE = "logs"
SOURCE = "nodeplug/log"
"""Of one in memory, in mountinfo. It stays after its volume, so it does not begin as those of volumes do."""

_SMALLEST = 64 << 10
_ATTRIBUTES = fsmount.NOSUID | fsmount.NODEV | fsmount.NOEXEC


def _between_commas(patterns: tuple[str, ...]) -> str:
    return f'"{",".join(patterns)}"'


@expects("names of files between commas, with * and ? for any characters, and no slash", shown=_between_commas)
def _patterns(value: Any, at: Place) -> tuple[str, ...]:
    found = words(value, at)
    if not found or any("/" in each or len(each) > 255 for each in found):
        raise Wrong(f"expected {_patterns.expects}")
    return found


class LogOptions(Record):
    """What a pod may ask for."""

    size: int = key(some_size, help="bytes of the volume: all that the logs, rotated ones too, can ever have")
    medium: str = key(choice("disk", "memory"), default="disk", help="an image file that survives a reboot, or memory")
    fs: str = key(
        choice("", *KNOWN), default="", help="on disk: its file system; the volume's fsType, else ext4, if empty"
    )
    files: tuple[str, ...] = key(
        _patterns, default=("*.log",), help="names of the files that are logs, in any directory"
    )
    rotate: str = key(
        choice("rename", "punch", "copytruncate"),
        default="rename",
        help="`rename` for a writer that reopens its file; `punch` or `copytruncate` for one that keeps it open",
    )
    max_size: int | None = key(
        some_size,
        default=None,
        help="bytes at which a file is rotated; a tenth of size where it is not given",
        name="maxSize",
    )
    max_files: int = key(count(1, 10_000), default=5, help="rotated files that are kept of each", name="maxFiles")
    max_age: float = key(span, default=0.0, help="how old a rotated file's last line may get; 0 for any", name="maxAge")
    every: float = key(span, default=0.0, help="rotate at least so often; 0 for by size only")
    high_water: int = key(
        count(10, 95), default=80, help="percent of size in use from which the oldest is dropped", name="highWater"
    )
    linger: float = key(span, default=300.0, help="how long collectors may still read when the pod is gone")
    mode: int = key(rights, default=0o777, help="access rights of the volume's top directory")
    uid: int = key(number_id, default=0, help="its owner")
    gid: int = key(number_id, default=0, help="its group, where the pod has no fsGroup")


class LogImage(ImageFile):
    """An image that stays when its volume is unpublished: it goes with the record, once nobody may read it any more."""

    def end(self) -> None:
        if os.path.basename(self.path).removesuffix(images.SUFFIX) not in records.ids():
            remove(self.path)  # its publish was killed before there was one


class LogKept(Step):
    """The volume is known as one of logs and shown to collectors; unpublished, it is noted as ended and stays."""

    lasts = True
    kept = True

    id: str
    target: str
    place: str
    image: str
    rotate: str
    files: tuple[str, ...]
    max_size: int
    max_files: int
    max_age: float
    every: float
    high_water: int
    linger: float
    made: bool
    """Whether it has no earlier life, before a reboot, that an undo must leave."""

    def do(self, work: Work) -> None:
        volume = work.fd("volume")
        device = os.fstat(volume).st_dev
        with doing(f"cannot show the logs at {self.place}"):
            take_away(self.place, work.warn)
            files.ensure_directory(self.place, 0o750)
            self._account(work.request)
            known = self._known().replace(device=f"{os.major(device)}:{os.minor(device)}")
            records.write(known)
            self._show(volume)
        if not is_kept(CHORE):
            work.warn("nodeplugd does not run here, so nobody rotates these logs: once full, writers get an error")

    def _account(self, request: Request) -> None:
        path = records.account_of(self.place)
        try:
            before = index.read(path)
        except Malformed:
            before = index.Index()
        pod = request.pod
        after = before.replace(
            volume=request.volume,
            namespace=pod.namespace,
            pod=pod.name,
            uid=pod.uid,
            created=before.created or time.time(),
            ended=0.0,
            rotate=self.rotate,
        )
        index.write(path, after)

    def _show(self, volume: int) -> None:
        copy = fsmount.clone(volume)
        try:
            fsmount.set_attributes(copy, on=fsmount.RDONLY)
            directory = os.open(self.place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fsmount.show(copy, directory)
            finally:
                os.close(directory)
        finally:
            os.close(copy)

    def _known(self) -> Known:
        rules = Rules(**{name: getattr(self, name) for name in Rules._fields})
        return Known(
            id=self.id, target=self.target, place=self.place, image=self.image, rules=rules, linger=self.linger
        )

    def undo(self) -> None:
        take_away(self.place, lambda _: None)
        if self.made or self.id not in records.ids():
            records.hide(self.place)
            records.forget(self.id)

    def end(self) -> None:
        """From now on only collectors have it. Twice is once: the first time counts."""
        known = records.read(self.id)
        if known is None:
            self.undo()  # its publish was killed
        elif not known.ended:
            records.write(known.replace(ended=time.time()))


class Log(Volume):
    """See `contract.Volume`."""

    name = "log"
    options = LogOptions
    open = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        options: LogOptions = request.options
        ensure_own(request)
        pod = request.pod
        if not all(is_name(each) for each in (pod.namespace, pod.name, request.volume)):
            raise ConfigInvalid(f"volume {request.volume!r} is of a pod without a name, whose logs nobody could find")
        if request.read_only:
            raise ConfigInvalid(f"volume {request.volume} is read-only, and logs are there to be written")
        _check_sizes(request)
        if options.linger > policy.log.linger:
            raise PermissionRefused(
                f"logs of volume {request.volume} may stay for {policy.log.linger:g} s after their pod at most",
                hint="ask for less, or raise linger in [volumes.log]",
            )
        return policy.grant(request, size=options.size)

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: LogOptions = request.options
        policy = grant.policy
        pod = request.pod
        place = f"{policy.log.directory}/{pod.namespace}_{pod.name}_{pod.uid}/{request.volume}"
        steps, image, made = self._file_system(request, grant, node)
        kept = LogKept(
            id=request.id,
            target=request.target,
            place=place,
            image=image,
            rotate=options.rotate,
            files=options.files,
            max_size=_max_size(options),
            max_files=options.max_files,
            max_age=options.max_age,
            every=options.every,
            high_water=options.high_water,
            linger=options.linger,
            made=made,
        )
        return Plan(steps=(*steps, kept))

    def _file_system(self, request: Request, grant: Grant, node: Node) -> tuple[tuple[Step, ...], str, bool]:
        """The steps that make it, its image's path, and whether it is new."""
        options: LogOptions = request.options
        group = -1 if request.fs_group is None else request.fs_group
        gid = options.gid if group < 0 else group
        add = GROUP_OWNED if group >= 0 else 0
        if options.medium == "memory":
            ensure_room(options.size, node)
            made = MemoryFs(
                size=options.size,
                files=files_for(options.size),
                mode=options.mode | add,
                uid=options.uid,
                gid=gid,
                attributes=_ATTRIBUTES,
                swap=True,
                source=SOURCE,
            )
            return (made,), "", True
        limits = grant.policy.loop
        path = f"{limits.directory}/log/{request.id}.img"
        found = node.image(path)
        file = image_step(path, found, node, limits, size=options.size, fs=_fs(request), full=False)
        steps: list[Step] = [LogImage(**file.__dict__), ImageMount(path=path, fs=_fs(request), attributes=_ATTRIBUTES)]
        if file.make:
            steps.append(TopDirectory(mode=options.mode, add=add, uid=options.uid, gid=gid))
        else:
            steps += [XfsGrown()] if _fs(request) == "xfs" else []
            steps += [TopDirectory(gid=group, add=add)] if group >= 0 else []
        return tuple(steps), path, file.make

    def health(self, published: Published) -> Health:
        if missing := missing_image(published):
            return Health(ok=False, reason=missing)
        known = records.read(published.id)
        if known is None or not mount.is_mounted(known.place):
            return Health(ok=False, reason="it is not shown to collectors, and nobody rotates it")
        held = os.statvfs(published.target)
        used = 100 - held.f_bavail * 100 // max(1, held.f_blocks)
        if not is_kept(CHORE):
            return Health(ok=False, reason=f"nodeplugd does not run, so nobody rotates it; {used} % are in use")
        if held.f_bavail * held.f_frsize < _SMALLEST // 8:
            return Health(ok=False, reason="it is full: its writers are quicker than the oldest can be dropped")
        return Health(ok=True)

    def leftovers(self, known: tuple[Published, ...], *, apply: bool) -> tuple[Leftover, ...]:
        """Logs whose time after their pod is over, or whose volume nobody knows any more."""
        wanted = {each.id for each in known}
        found = []
        for id in records.ids():
            if id not in wanted:
                found += _leftover(id, apply=apply)
        for path in records.abandoned():
            if apply:
                files.remove(path)
            found.append(Leftover(kind="log record", name=path, reason="its writer was killed", removed=apply))
        return tuple(found)


def _leftover(id: str, *, apply: bool) -> list[Leftover]:
    now = time.time()
    try:
        logs = records.read(id)
    except Malformed as error:
        if apply:
            records.forget(id)
        return [Leftover(kind="log record", name=id, reason=error.message, removed=apply)]
    if logs is None or (logs.ended and now < logs.until):
        return []
    reason = "its time after its pod is over" if logs.ended else "no volume tells of it"
    removed = False
    if apply:
        try:
            records.remove(logs, lambda _: None)
            removed = True
        except (Error, OSError) as error:
            reason = f"{reason}; it cannot be removed: {error}"
    return [Leftover(kind="logs", name=logs.place, reason=reason, removed=removed)]


def _fs(request: Request) -> str:
    fs = str(request.options.fs or request.fs_type or "ext4")
    if fs not in KNOWN:
        raise ConfigInvalid(
            f"volume {request.volume} cannot have the file system {fs!r}", hint=f"{', '.join(KNOWN)} can"
        )
    return fs


def _max_size(options: LogOptions) -> int:
    return options.max_size or max(_SMALLEST, options.size // 10)


def _check_sizes(request: Request) -> None:
    options: LogOptions = request.options
    if options.medium == "disk":
        ensure_size(options.size, _fs(request))
    largest = _max_size(options)
    room = options.size * options.high_water // 100
    if largest < _SMALLEST or largest > room // 2:
        raise ConfigInvalid(
            f"volume {request.volume} cannot rotate files of {shown(largest)}: it has {shown(options.size)}, of which "
            f"{options.high_water} % are {shown(room)}",
            hint=f"maxSize may be {shown(_SMALLEST)} to {shown(room // 2)} here, so that two fit in",
        )
