"""The volume `identity`: an X.509-SVID for the pod's service account, in memory, replaced in time.

The trust domain is that of the node's authority and no pod's choice; namespace and service account are the kubelet's
word. The first certificate is made by the mount itself, all others by a chore of nodeplugd.
"""

from __future__ import annotations

import time

from nodeplug.core import files
from nodeplug.core.chore import is_kept
from nodeplug.core.document import Wrong, choice, expects
from nodeplug.core.errors import ConfigInvalid, PermissionRefused, doing
from nodeplug.core.record import Record, key
from nodeplug.kernel import fsmount
from nodeplug.volumes.contract import Health, Leftover, Plan, Step, Volume
from nodeplug.volumes.identity import bundles, layouts, notes, renewal, spiffe
from nodeplug.volumes.identity.authority import LONGEST_TTL, SHORTEST_TTL
from nodeplug.volumes.identity.notes import Wanted
from nodeplug.volumes.identity.renewal import Place
from nodeplug.volumes.inside import writable
from nodeplug.volumes.memory import UnswappedFs
from nodeplug.volumes.options import flag, number_id, span
from nodeplug.volumes.options import mode as rights
from nodeplug.volumes.pods import ensure_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place as At
    from nodeplug.volumes.contract import Grant, Node, Published, Request, Work
    from nodeplug.volumes.policy import Policy

CHORE = "identity"

_KEY_TYPES = ("ECDSAP256", "ECDSAP384", "ED25519", "RSA3072", "RSA4096")
_ROOM = 1 << 20
_HOST_ROOM = (renewal.KEPT + 2) * bundles.LARGEST  # of every generation, and of the one that is being written
_GROUP_READS = 0o040
_TIMEOUT = 30.0


@expects('a duration, 10 minutes to a day ("1h")', shown=span.shown)
def _ttl(value: Any, at: At) -> float:
    found = span(value, at)
    if not SHORTEST_TTL <= found <= LONGEST_TTL:
        raise Wrong(f"expected {_ttl.expects}")
    return found


class IdentityOptions(Record):
    """What a pod may ask for."""

    ttl: float = key(_ttl, default=3600.0, help="how long a certificate is valid; a new one comes after half of that")
    layout: str = key(choice(*layouts.LAYOUTS), default="spiffe", help="names of the files, see below")
    key_type: str = key(
        choice(*_KEY_TYPES), default="ECDSAP256", help="kind of the key, new with each certificate", name="keyType"
    )
    system_bundle: bool = key(
        flag,
        default=False,
        help="also the host's certificates and the roots, as ca-certificates.crt",
        name="systemBundle",
    )
    mode: int = key(rights, default=0o444, help="access rights of certificates and bundles")
    key_mode: int = key(
        rights, default=0o400, help="of files with the key; a pod's fsGroup lets the group read", name="keyMode"
    )
    uid: int = key(number_id, default=0, help="their owner")
    gid: int = key(number_id, default=0, help="their group, where the pod has no fsGroup")


class IdentityFiles(Step):
    """The first certificate, shown and noted; the note goes with the volume."""

    lasts = True

    id: str
    ttl: int
    key_type: str
    layout: str
    system: bool
    mode: int
    key_mode: int
    owner: int
    group: int
    directory: str
    host_certificates: str
    log: str
    python: str

    def do(self, work: Work) -> None:
        made = self.make(work.request, timeout=work.left())
        with doing("cannot write the identity's files"):
            renewal.show(work.fd("volume"), made)
            # Only this mount's, so that files can be replaced through another one.
            fsmount.set_attributes(work.fd("volume"), on=fsmount.RDONLY)
            notes.write(made.note)
        if not is_kept(CHORE):
            ends = time.strftime("%H:%M:%SZ", time.gmtime(made.note.not_after))
            work.warn(f"nodeplugd does not run here, so nobody replaces the certificate that ends at {ends}")

    def make(self, request: Request, *, timeout: float) -> renewal.Made:
        """A certificate for the pod of the request."""
        now = int(time.time())
        return renewal.make(
            request.id, request.target, self._wanted(request), self.place, now=now, why="publish", timeout=timeout
        )

    @property
    def place(self) -> Place:
        return Place(
            directory=self.directory, log=self.log, host_certificates=self.host_certificates, python=self.python
        )

    def _wanted(self, request: Request) -> Wanted:
        pod = request.pod
        return Wanted(
            namespace=pod.namespace,
            service_account=pod.service_account,
            pod=f"{pod.namespace}/{pod.name}",
            uid=pod.uid,
            volume=request.volume,
            ttl=self.ttl,
            key_type=self.key_type,
            layout=self.layout,
            system=self.system,
            mode=self.mode,
            key_mode=self.key_mode,
            owner=self.owner,
            group=self.group,
        )

    def undo(self) -> None:
        notes.remove(self.id)


class Identity(Volume):
    """See `contract.Volume`."""

    name = "identity"
    options = IdentityOptions
    ownership = True

    def validate(self, request: Request, policy: Policy) -> Grant:
        options: IdentityOptions = request.options
        _check_pod(request)
        if options.ttl > policy.identity.longest:
            raise PermissionRefused(
                f"a certificate of volume {request.volume} may be valid for {policy.identity.longest:g} s at most here",
                hint="ask for a shorter ttl, or raise longest in [volumes.identity]",
            )
        return policy.grant(request)

    def plan(self, request: Request, grant: Grant, node: Node) -> Plan:
        options: IdentityOptions = request.options
        limits = grant.policy.identity
        made = UnswappedFs(
            size=_ROOM + (_HOST_ROOM if options.system_bundle else 0),
            mode=0o755,
            attributes=fsmount.NOSUID | fsmount.NODEV | fsmount.NOEXEC,
            source=renewal.SOURCE,
        )
        group = request.fs_group
        content = IdentityFiles(
            id=request.id,
            ttl=int(options.ttl),
            key_type=options.key_type,
            layout=options.layout,
            system=options.system_bundle,
            mode=options.mode,
            key_mode=options.key_mode if group is None else options.key_mode | _GROUP_READS,
            owner=options.uid,
            group=options.gid if group is None else group,
            directory=limits.directory,
            host_certificates=limits.host_certificates,
            log=limits.log,
            python=limits.python,
        )
        return Plan(steps=(made, content))

    def refresh(self, request: Request, published: Published) -> None:
        """Replace a certificate that is overdue, whether or not nodeplugd runs."""
        now = int(time.time())
        note = notes.read(published.id)
        content = next((step for step in published.steps if isinstance(step, IdentityFiles)), None)
        if content is None or (note is not None and renewal.due(note, roots="", system="", now=now) > now):
            return
        made = content.make(request, timeout=_TIMEOUT)
        with doing(f"cannot replace the files of {published.target}"):
            with writable(published.target, renewal.SOURCE) as volume:
                renewal.show(volume, made)
            notes.write(made.note)

    def part(self, published: Published) -> None:
        """Overwrite the keys: the memory they are in goes to others."""
        with writable(published.target, renewal.SOURCE) as volume:
            renewal.wipe(volume)

    def health(self, published: Published) -> Health:
        note = notes.read(published.id)
        now = int(time.time())
        if note is None:
            return Health(ok=False, reason="nothing is noted of its certificate, so nobody replaces it")
        if note.not_after <= now:
            return Health(ok=False, reason=f"its certificate has expired{_why(note)}")
        if not is_kept(CHORE):
            left = note.not_after - now
            return Health(ok=False, reason=f"nodeplugd does not run, and its certificate ends in {left} s")
        if note.failures:
            return Health(ok=False, reason=f"its certificate could not be replaced{_why(note)}")
        return Health(ok=True)

    def leftovers(self, known: tuple[Published, ...], *, apply: bool) -> tuple[Leftover, ...]:
        """Notes of volumes that are none any more, and what killed writers of notes left."""
        wanted = {each.id for each in known}
        found = [(f"{notes.DIRECTORY}/{id}.json", "it is of no volume") for id in notes.ids() if id not in wanted]
        found += [(path, "its writer was killed") for path in notes.abandoned()]
        if apply:
            for path, _reason in found:
                files.remove(path)
        return tuple(Leftover(kind="note", name=path, reason=reason, removed=apply) for path, reason in found)


def _why(note: notes.Note) -> str:
    return f": {note.error}" if note.error else ""


def _check_pod(request: Request) -> None:
    pod = request.pod
    try:
        spiffe.of_service_account("example.org", pod.namespace, pod.service_account)
    except ValueError as error:
        raise ConfigInvalid(f"volume {request.volume} cannot be an identity: {error}") from None
    ensure_own(request)
