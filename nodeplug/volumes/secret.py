"""The volume `secret`: the pod's secret as files, in memory and nowhere else.

Laid out as the kubelet's own secret volumes are (`atomic`), read-only for the pod. What is secret goes from the request
into the files and is in no step, state, message or child.
"""

from __future__ import annotations

import os

from nodeplug.core.errors import ConfigInvalid, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount
from nodeplug.volumes import atomic
from nodeplug.volumes.contract import Plan, Step, Volume
from nodeplug.volumes.inside import writable
from nodeplug.volumes.memory import UnswappedFs
from nodeplug.volumes.options import mode, number_id, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.core.secret import Secret
    from nodeplug.volumes.contract import Grant, Node, Published, Request, Work
    from nodeplug.volumes.policy import Policy

SOURCE = "nodeplug.dev/secret"
_PAGE = 4096
_ROOM = 1 << 20  # for a secret that grows; memory is taken only by what is there
_KEPT = 1  # generations before the one that is shown, for readers who have just opened it
_GROUP_READS = 0o440


class SecretOptions(Record):
    """What a pod may ask for."""

    keys: tuple[str, ...] = key(words, default=(), help="which keys of the secret become files; all when empty")
    mode: int = key(mode, default=0o444, help="access rights of the files; a pod's fsGroup lets the group read")
    uid: int = key(number_id, default=0, help="their owner")
    gid: int = key(number_id, default=0, help="their group, where the pod has no fsGroup")


class SecretContent(Step):
    """The files. Only their names are here."""

    names: tuple[str, ...]
    mode: int
    uid: int
    gid: int

    def do(self, work: Work) -> None:
        with doing("cannot write the secret's files"):
            self.write(work.fd("volume"), work.request)
            # Only this mount's, so that content can be replaced through another one.
            fsmount.set_attributes(work.fd("volume"), on=fsmount.RDONLY)

    def write(self, volume: int, request: Request) -> None:
        """Show what `request` has in the mount's root."""
        secrets = request.secrets or {}
        files = {
            name: atomic.File(content=secrets[name], mode=self.mode, uid=self.uid, gid=self.gid) for name in self.names
        }
        top = _top(volume)
        try:
            atomic.write(top, files, keep=_KEPT)
        finally:
            os.close(top)


class SecretFiles(Volume):
    """See `contract.Volume`."""

    name = "secret"
    options = SecretOptions
    open = True
    ownership = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        _names(request)
        return policy.grant(request)

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        content = _content(request)
        secrets = request.secrets or {}
        made = UnswappedFs(
            size=(_KEPT + 2) * _taken([secrets[name] for name in content.names]) + _ROOM,
            mode=0o755,
            attributes=fsmount.NOSUID | fsmount.NODEV | fsmount.NOEXEC,
            source=SOURCE,
        )
        return Plan(steps=(made, content))

    def refresh(self, request: Request, published: Published) -> None:
        """Replace the content, for readers at once, where the secret has changed."""
        content = _content(request)
        with writable(published.target, SOURCE) as volume, doing(f"cannot replace the files of {published.target}"):
            content.write(volume, request)

    def part(self, published: Published) -> None:
        """Overwrite it: the memory it is in goes to others."""
        with writable(published.target, SOURCE) as volume:
            top = _top(volume)
            try:
                atomic.wipe(top)
            finally:
                os.close(top)


def _top(volume: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=volume)


def _content(request: Request) -> SecretContent:
    options: SecretOptions = request.options
    group = request.fs_group
    return SecretContent(
        names=_names(request),
        mode=options.mode if group is None else options.mode | _GROUP_READS,
        uid=options.uid,
        gid=options.gid if group is None else group,
    )


def _names(request: Request) -> tuple[str, ...]:
    """Those of the files."""
    there = request.secrets or {}
    if not there:
        raise ConfigInvalid(
            f"volume {request.volume} names no secret, or one that is empty", hint="set secretRef, in the pod's volume"
        )
    wanted: tuple[str, ...] = request.options.keys
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ConfigInvalid(
            f"the secret of volume {request.volume} has no {', '.join(missing)}", hint=f"it has {', '.join(there)}"
        )
    return wanted or tuple(there)


def _taken(contents: Sequence[Secret]) -> int:
    """Bytes of memory for the files: whole pages, and one for each name."""
    return sum(-(-len(content.reveal()) // _PAGE) * _PAGE + _PAGE for content in contents)
