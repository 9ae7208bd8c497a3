"""The roots of a trust domain, where the operator keeps them: made, used to sign the nodes' authorities, replaced.

    roots.json       the roots, their states, and until when what they signed is valid
    ROOT-ID.key      each root's private key, sealed by a passphrase where one is given, 0600
    issued.jsonl     every node authority that was signed

Best on a machine, or a medium, that is no node and has no network. A node that is alone in its trust domain keeps this
directory beside its authority, and replaces root and node authority by itself (`rollover`).
"""

from __future__ import annotations

import os

from nodeplug.core import document, files, jsontext
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, TryAgain, doing
from nodeplug.core.record import Record, key
from nodeplug.volumes.identity import certificates, signing
from nodeplug.volumes.identity.store import (
    check_private,
    destroy_others,
    ensure_private,
    read_document,
    read_key,
    write_key,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.secret import Secret
    from nodeplug.volumes.identity.certificates import Certificate

DAY = 86400
_LARGEST = 4 << 20
_LARGEST_REQUEST = 64 << 10
_DOCUMENT = "roots.json"


class Root(Record):
    """One root. `since` is when it was made, `used` until when the last node authority under it is valid."""

    id: str = key(document.name)
    pem: str = key(document.name)
    not_before: int = key(document.integer(0))
    not_after: int = key(document.integer(0))
    since: int = key(document.integer(0))
    used: int = key(document.integer(0), default=0)


class Roots(Record):
    """`active` signs; `coming` will, and is in the bundles already; any other waits until what it signed is over."""

    trust_domain: str = key(document.name)
    constrained: bool = key(document.boolean)
    sealed: bool = key(document.boolean)
    key_type: str = key(document.choice(*signing.KEY_TYPES))
    days: int = key(document.integer(1))
    roots: tuple[Root, ...] = key(document.array(document.nested(Root)))
    active: str = key(document.name)
    coming: str = key(document.text, default="")
    sequence: int = key(document.integer(0), default=1)

    def find(self, root: str) -> Root:
        return next(each for each in self.roots if each.id == root)

    @property
    def bundle(self) -> tuple[str, ...]:
        """Every root's certificate: what verifiers need."""
        return tuple(each.pem for each in self.roots)


class Signed(Record):
    """What a node takes home: its authority, and all roots. `key` only where it was made here."""

    certificate: Certificate
    roots: tuple[str, ...]
    key: Secret | None = None

    @property
    def pem(self) -> str:
        """One file for `nodeplug identity accept`; secret where it has the key."""
        own = self.key.reveal().decode("ascii") if self.key is not None else ""
        return own + self.certificate.pem + "".join(self.roots)


class Operator:
    """The directory of a trust domain's roots. `passphrase` opens their keys, where they are sealed."""

    def __init__(self, directory: str, *, passphrase: Secret | None = None) -> None:
        self.directory = directory
        self._passphrase = passphrase

    def exists(self) -> bool:
        return os.path.exists(self._path(_DOCUMENT))

    def load(self) -> Roots:
        """Raises `NotFound` when there are none, `Malformed`, `PermissionRefused`."""
        check_private(self.directory)
        try:
            data = files.read_bounded(self._path(_DOCUMENT), _LARGEST)
        except FileNotFoundError:
            raise NotFound(
                f"there is no root in {self.directory}", hint="make one: nodeplug identity init-root"
            ) from None
        return read_document(Roots, data, self._path(_DOCUMENT))

    def init(self, trust_domain: str, *, now: int, days: int, key_type: str, constrained: bool) -> Roots:
        """The first root. Raises `Refused` when there is one."""
        if self.exists():
            raise Refused(
                f"there is a root in {self.directory} already",
                hint="to replace it without a break, run `nodeplug identity roll-root`",
            )
        empty = Roots(
            trust_domain=trust_domain,
            constrained=constrained,
            sealed=self._passphrase is not None,
            key_type=key_type,
            days=days,
            roots=(),
            active="none",
        )
        made = self._make(empty, now)
        return self._save(empty.replace(roots=(made,), active=made.id))

    def prepare(self, *, now: int) -> Roots:
        """Have a second root, which is in the bundles and signs nothing yet. Raises `Refused` when there is one."""
        found = self.load()
        if found.coming:
            raise Refused(f"the next root {found.coming} is made already")
        made = self._make(found, now)
        return self._save(found.replace(roots=(*found.roots, made), coming=made.id, sequence=found.sequence + 1))

    def activate(self, *, now: int, overlap: int) -> Roots:
        """Let the coming root sign. Raises `TryAgain` while it has not been in the bundles for `overlap` seconds."""
        found = self.load()
        left = found.find(found.coming).since + overlap - now
        if left > 0:
            raise TryAgain(
                f"the root {found.coming} is in the bundles for less than {overlap // 3600} hours",
                hint=f"some pods may not have read it yet; run this again in {left // 60 + 1} minutes",
                after=left,
            )
        return self._save(found.replace(active=found.coming, coming=""))

    def drop(self, *, now: int, used: int | None = None) -> Roots:
        """Remove the roots under which nothing is valid any more, with their keys.

        `used` says until when that may be where it is better known than by the end of the last node authority. Raises
        `TryAgain` while there is none to be removed.
        """
        found = self.load()
        old = [each for each in found.roots if each.id not in (found.active, found.coming)]
        ends = {each.id: each.used if used is None else min(used, each.used) for each in old}
        gone = {root for root, end in ends.items() if end <= now}
        if not gone:
            soonest = min(ends.values(), default=now)
            raise TryAgain(
                "what was signed under the old root is still valid",
                hint=f"run this again in {(soonest - now) // 3600 + 1} hours, or after every node has another "
                "authority and a day has passed, with --all-nodes-changed",
                after=max(1, soonest - now),
            )
        kept = tuple(each for each in found.roots if each.id not in gone)
        return self._save(found.replace(roots=kept, sequence=found.sequence + 1))

    def sign(self, request: str, *, now: int, days: int) -> Signed:
        """A node's authority under the active root. Raises `ConfigInvalid` for what is no request, `Refused`."""
        if len(request) > _LARGEST_REQUEST:
            raise ConfigInvalid(f"a request has at most {_LARGEST_REQUEST} bytes")
        found = self.load()
        root = found.find(found.active)
        if root.not_after - now < DAY:
            raise Refused(
                f"the root {root.id} has expired, or does in a day", hint="run `nodeplug identity roll-root` first"
            )
        (issuer,) = certificates.read(root.pem)
        try:
            made = signing.node_authority(
                issuer,
                self._key(found, root),
                request,
                now=now,
                seconds=days * DAY,
                constrained=found.constrained,
            )
        except ValueError as error:
            raise ConfigInvalid(str(error), hint="`nodeplug identity request` on the node writes one") from None
        used = root.replace(used=max(root.used, made.not_after))
        # Noted before anybody has it: a root is dropped only when all that it signed is over.
        self._save(found.replace(roots=tuple(used if each.id == root.id else each for each in found.roots)))
        self._note(made, root, now)
        return Signed(certificate=made, roots=found.bundle)

    def sign_new(self, node: str, *, now: int, days: int, key_type: str) -> Signed:
        """Likewise, with a key made here, for nodes that are set up from outside."""
        own = signing.new_key(key_type)
        return self.sign(signing.request(own, node), now=now, days=days).replace(key=own)

    def _make(self, roots: Roots, now: int) -> Root:
        own = signing.new_key(roots.key_type)
        made = signing.self_signed(
            own,
            trust_domain=roots.trust_domain,
            now=now,
            seconds=roots.days * DAY,
            constrained=roots.constrained,
        )
        with doing(f"cannot write to {self.directory}"):
            write_key(self._path(f"{made.id}.key"), signing.sealed(own, self._passphrase))
        return Root(id=made.id, pem=made.pem, not_before=made.not_before, not_after=made.not_after, since=now)

    def _key(self, roots: Roots, root: Root) -> Secret:
        if roots.sealed and self._passphrase is None:
            raise ConfigInvalid("the root's key is sealed", hint="give the file of its passphrase")
        try:
            return signing.unsealed(read_key(self._path(f"{root.id}.key")), self._passphrase)
        except ValueError as error:
            raise ConfigInvalid(f"the key of root {root.id}: {error}") from None

    def _save(self, roots: Roots) -> Roots:
        data = jsontext.dumps(document.encode(roots), indent=1).encode() + b"\n"
        with doing(f"cannot write to {self.directory}"):
            ensure_private(self.directory)
            files.write_atomic(self._path(_DOCUMENT), data, 0o600)
        self.tidy(roots)
        return roots

    def tidy(self, roots: Roots) -> None:
        """Destroy the keys of roots that are gone, and what killed writers left."""
        with doing(f"cannot remove what is not needed in {self.directory}"):
            destroy_others(self.directory, {f"{each.id}.key" for each in roots.roots})

    def _note(self, made: Certificate, root: Root, now: int) -> None:
        line = {"ts": now, "subject": made.subject, "id": made.id, "root": root.id, "not_after": made.not_after}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with doing(f"cannot write to {self.directory}"):
            fd = os.open(self._path("issued.jsonl"), flags, 0o600)
            try:
                files.write_all(fd, jsontext.dumps(line).encode() + b"\n")
            finally:
                os.close(fd)

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"
