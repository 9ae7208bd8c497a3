"""The nouns of volumes and the base class of a back-end; no I/O.

A door reads its wire into a `Request` and calls `nodeplug.volumes.service`. There a back-end says what it may be asked
(`validate`) and what is to be done (`plan`): a tuple of steps, which is data. The executor does the steps, undoes them
when one fails, and finds them again after kill -9 by what the state file has of them.

How a step is made. Most of what a volume needs is only a descriptor until the very end: a mount made by fsmount(2) or
open_tree(2) belongs to no directory, a loop device with AUTOCLEAR to nothing but its opener, and both are gone with the
process. Such a step has nothing to undo. A step that leaves something on the node (an image, a mount at a path, a link)
says so by `lasts`, and is written down before it is done. After the last step the executor shows the mount that the
steps have made at the target, in one move: so a mount at the target is a finished volume, always.
"""

from __future__ import annotations

from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.naming import digest
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from nodeplug.core.secret import Secret
    from nodeplug.volumes.policy import Policy

    class Work(Protocol):
        """One publish under way: what its steps hand to each other."""

        request: Request
        warn: Callable[[str], None]

        def keep(self, name: str, fd: int) -> None:
            """Hold a descriptor under a name until the end, instead of the one that had it.

            "volume" is the mount that will be shown at the target.
            """

        def fd(self, name: str) -> int:
            """The descriptor of that name."""

        def left(self) -> float:
            """Seconds until the deadline, for a child's timeout. Raises `TimedOut` when there are none."""

    class Node(Protocol):
        """What a plan depends on besides the request. Read from the node when asked for, and by tests from nothing."""

        def memory_available(self) -> int:
            """Bytes that could be used without swapping."""

        def free(self, directory: str) -> int:
            """Bytes that may still be written to the file system of `directory`, or where it will be made."""

        def image(self, path: str) -> Image | None:
            """The image file at `path`; None when there is none."""

        def images(self, directory: str) -> tuple[Image, ...]:
            """All image files below `directory`."""

        def published(self) -> tuple[Published, ...]:
            """The volumes that the node has now, this request's own left out."""


class Pod(Record):
    """For whom a volume is, as far as the caller tells. Flex's word for it is no proof: see docs/flexvolume.md."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    service_account: str = ""


class Request(Record):
    """What one publish is asked for. `options` is an instance of the back-end's `options` class."""

    driver: str
    volume: str
    """What the pod calls it; for people."""
    target: str
    """The absolute path where the volume is to be seen; the key of all state. Made, mode 0750, where it is missing."""
    options: Any
    read_only: bool = False
    fs_group: int | None = None
    fs_type: str = ""
    pod: Pod = Pod()
    secrets: Mapping[str, Secret] | None = None
    """By name. They reach a step by `Work.request`, and nothing that is written down."""

    @property
    def id(self) -> str:
        return volume_id(self.target)


def volume_id(target: str) -> str:
    """26 characters (130 bits) that stand for the target in names of files and locks, and as a mount's source."""
    return digest(target, 26)


class Image(Record):
    """A file that holds a file system. `used` is what it takes of the disk; `fs` is empty for nothing known.

    `fs_size` is what the file system thinks it has, `granule` what it may leave unused of the file at its end.
    """

    path: str
    size: int
    used: int
    fs: str = ""
    fs_size: int = 0
    granule: int = 0


class Grant(Record):
    """What the node's policy gives for one request; made by `Policy.grant`."""

    largest: int
    """Bytes that the volume may have at most."""
    policy: Policy
    roots: tuple[str, ...] = ()
    """For each host path that was asked for, in that order, the directory of the policy that it is at or below."""


class Step(Record):
    """One thing done to the node, as data. Subclasses list their fields; those of a lasting one are written down.

    Fields of a lasting step are strings, numbers, booleans, None or tuples of strings, and no secret; its class stands
    in `nodeplug.volumes.state.STEPS`.
    `do` raises an error of core.errors or OSError; it may find its own earlier work there, after a reboot. `undo` and
    `end` find on the node itself what there is to take back: they succeed when there is nothing, also after a `do` that
    was killed half-way, and in another process.
    """

    # No annotations: these are facts of the class, not fields.
    lasts = False
    """Leaves something that a killed process leaves behind."""
    kept = False
    """Leaves something that a reboot leaves behind, so that the volume's state must survive it as well."""

    def do(self, work: Work) -> None:
        raise ConfigInvalid(f"step {type(self).__name__} does nothing")

    def undo(self) -> None:
        """Take back what `do` did, after a later step failed."""

    def end(self) -> None:
        """Take away what is left of it when the volume is unpublished."""
        self.undo()


class Plan(Record):
    """What to do, in order; at its end the mount named "volume" is ready to be shown at the target."""

    steps: tuple[Step, ...]


class Published(Record):
    """A volume the node has, or began to make: the content of its state file."""

    id: str
    driver: str
    volume: str
    target: str
    options: Mapping[str, Any]
    """By their names on the wire; `document.decode(Volume.options, ...)` reads them again."""
    read_only: bool
    fs_group: int | None
    fs_type: str
    pod: Pod
    created: float
    """Seconds since 1970."""
    device: str
    """major:minor of the file system shown at the target; empty until just before it is shown there."""
    steps: tuple[Step, ...]
    """The lasting ones."""
    mounted: bool = False
    """Whether it is at its target now: not after a reboot, nor when its maker was killed."""


class Stats(Record):
    """What a volume holds, in bytes and files."""

    total: int
    available: int
    used: int
    files: int
    files_free: int


class Health(Record):
    """Whether a volume is what it should be; `reason` says why not."""

    ok: bool
    reason: str = ""


class Resized(Record):
    """`pending`: the volume has that size from its next publish on."""

    size: int
    pending: bool = False


class Leftover(Record):
    """Something that belongs to no volume of the node. `removed` tells whether `collect` took it away."""

    kind: str
    """"state", "mount", "image", "loop device", "directory", or a back-end's own word."""
    name: str
    reason: str
    removed: bool = False


class Volume:
    """A back-end: subclass it and add its name to `nodeplug.volumes.service.DRIVERS`.

    One instance serves one operation. No two operations for one target, or for one of `locks`, run at once.
    """

    name = ""
    options: type[Record] = Record
    """Fields declared with `record.key`, whose parsers take strings (Flex has nothing else): `volumes.options`."""
    open = False
    """Whether pods may have it without a rule of policy that allows it."""
    ownership = False
    """Whether it sets owner, group and label itself, so that the caller must not touch them (fsGroup, SELinux)."""
    resizes = False

    def validate(self, request: Request, policy: Policy) -> Grant:
        """What the policy gives. Raises `ConfigInvalid` (options that make no sense) or `PermissionRefused`.

        Looks at nothing but its arguments.
        """
        return policy.grant(request)

    def locks(self, request: Request) -> tuple[str, ...]:
        """Further keys that must be held: what this volume shares with others."""
        return ()

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        """The steps. Raises `Refused` or `Unavailable` when the node has no room for it or holds another thing there.

        Changes nothing; asks only `node`.
        """
        raise ConfigInvalid(f"volume {self.name} cannot be published")

    def refresh(self, request: Request, published: Published) -> None:
        """The same request again while the volume is there: bring its content up to date, where it has any."""

    def part(self, published: Published) -> None:
        """It is about to be taken away, and still mounted: the last that can be done about its content.

        What it raises is told and holds nothing up.
        """

    def stats(self, published: Published) -> Stats | None:
        """What it holds; None leaves that to statfs(2) at the target."""
        return None

    def health(self, published: Published) -> Health:
        """Whether it is well, given that it is mounted at its target."""
        return Health(ok=True)

    def resize(self, published: Published, size: int, grant: Grant) -> Resized:
        """Make it `size` bytes large. Raises `Refused` when it cannot be."""
        raise ConfigInvalid(f"a {self.name} volume has no size that could be changed")

    def leftovers(self, known: tuple[Published, ...], *, apply: bool) -> tuple[Leftover, ...]:
        """What of its own things belongs to no volume in `known`, removed where `apply` says so."""
        return ()
