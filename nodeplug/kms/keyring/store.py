"""The ring file on disk: opened with suspicion, written atomically, never older than what was seen before.

Beside `keyring.json` stand `keyring.json.seen` (the last revision and the highest generation, by which a file put back
from a backup is recognised) and `keyring.json.lock`. Used by the local provider (which only reads) and the commands.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from nodeplug.core.errors import ConfigInvalid, Error, Malformed, NotFound, Refused, Unavailable, from_os
from nodeplug.core.files import range_lock, write_atomic
from nodeplug.daemon.listeners import check_directories
from nodeplug.kms.keyring import cipher, document
from nodeplug.kms.keyring.ring import DECRYPTS, Entry, Export, Ring, Standing, State
from nodeplug.kms.keyring.seals import Seal, read_private

_WHAT = "the key ring"
_BUSY = 10.0  # seconds another command may hold the lock


class RolledBack(Refused):
    """The file is older than one this node has had."""


@dataclass(frozen=True)
class Opened:
    """A ring with its own key; `material` gives each key that may decrypt, by key id."""

    ring: Ring
    ring_key: bytes

    def __repr__(self) -> str:
        return f"Opened({self.ring.ring_id}, revision {self.ring.revision})"

    def unwrap(self, entry: Entry) -> bytes:
        """The key of an entry. Raises `Malformed` when it does not open or is not the one its check value names."""
        name = self.ring.key_id(entry)
        try:
            key = cipher.unwrap(self.ring_key, entry.wrapped, cipher.entry_binding(self.ring.ring_id, entry.generation))
        except cipher.Damaged:
            raise Malformed(f"the key {name} in the ring is damaged") from None
        if cipher.check_value(key) != entry.check:
            raise Malformed(f"the key {name} in the ring does not fit its check value")
        return key

    def material(self) -> dict[str, bytes]:
        """The keys in use, by key id."""
        ring = self.ring
        return {ring.key_id(entry): self.unwrap(entry) for entry in ring.entries if ring.state(entry) in DECRYPTS}


def new_entry(ring_id: str, ring_key: bytes, generation: int, now: int) -> Entry:
    """An entry with a fresh key."""
    key = cipher.new_key()
    wrapped = cipher.wrap(ring_key, key, cipher.entry_binding(ring_id, generation))
    return Entry(generation, now, cipher.check_value(key), wrapped)


def new_ring(*, nodes: int, now: int) -> Opened:
    """A ring with one active key."""
    ring_id, ring_key = os.urandom(16).hex(), cipher.new_key()
    entry = new_entry(ring_id, ring_key, 1, now)
    return Opened(Ring(ring_id, nodes, (entry,), {1: Standing(State.ACTIVE, now)}, highest=1), ring_key)


class Store:
    """The ring file at `path`, sealed by `seal`.

    Raises `NotFound` (no ring yet), `Refused` (rights, links, owners: with the command that mends it), `RolledBack`,
    `Malformed` (cut or changed) and what seals raise.
    """

    def __init__(self, path: str, seal: Seal) -> None:
        self.path = path
        self.seal = seal
        self.seen_path = path + ".seen"
        self._loaded: tuple[bytes, bytes] | None = None

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def load(self, *, accept_rollback: bool = False) -> Opened:
        """The ring on disk."""
        what = f"{_WHAT} {self.path}"
        data, note = self._read(), self._read_note()
        found = document.parse(data, what)
        ring_id = document.ring_id_of(found, what)
        kind = found["seal"].get("type")
        if kind != self.seal.kind:
            raise ConfigInvalid(
                f'{what} is sealed by "{kind}", the settings say "{self.seal.kind}"',
                hint="set seal to what the ring has; to change it, export, remove the ring and import",
            )
        try:
            ring_key = self.seal.open(found["seal"], ring_id)
        except cipher.Damaged:
            raise Malformed(f"the seal of {what} is damaged") from None
        opened = Opened(document.read(found, ring_key, what), ring_key)
        if not accept_rollback:
            self._refuse_rollback(opened)
        opened.material()  # every key opens now, or the file is not taken
        self._loaded = data, note
        return opened

    def changed(self) -> bool:
        """Whether the files are others than `load` took last, without opening the seal. Raises what reading raises, so
        rights that were loosened since are noticed."""
        return self._loaded != (self._read(), self._read_note())

    def _read_note(self) -> bytes:
        try:
            return read_private(self.seen_path, "the ring's note")
        except NotFound:
            return b""

    def _read(self) -> bytes:
        try:
            return read_private(self.path, _WHAT, limit=document.LARGEST)
        except NotFound:
            raise NotFound(
                f"there is no key ring at {self.path}",
                hint="`nodeplug kms init` makes one; on a further node import another node's export instead",
            ) from None

    def _refuse_rollback(self, opened: Opened) -> None:
        seen = self.seen(opened.ring_key)
        if seen is None:
            if opened.ring.revision > 1:
                raise RolledBack(
                    f"{self.seen_path} is missing, so {self.path} cannot be told from an old copy",
                    hint="if this node was restored, run `nodeplug kms import --accept-rollback`",
                )
            return
        ring_id, revision, _ = seen
        if ring_id == opened.ring.ring_id and opened.ring.revision < revision:
            raise RolledBack(
                f"{self.path} is revision {opened.ring.revision}, but this node has had revision {revision}",
                hint="put the newer file back; if it is lost, run `nodeplug kms import --accept-rollback`",
            )

    def seen(self, ring_key: bytes) -> tuple[str, int, int] | None:
        """(ring id, revision, highest generation) last written here; None when there is no such note.

        A note that cannot be read counts as one that is missing.
        """
        try:
            found = json.loads(self._read_note())
            if not isinstance(found, dict) or not cipher.is_authentic(ring_key, found):
                return None
            return str(found["ring"]), int(found["revision"]), int(found["highest"])
        except (ValueError, KeyError, TypeError):
            return None

    def save(self, opened: Opened) -> Opened:
        """Write the ring as the next revision and return it; called under `lock`.

        Raises `Unavailable` (disk full), which says whether the ring is changed.
        """
        ring = opened.ring
        seen = self.seen(opened.ring_key)
        if seen is None and ring.revision:
            # The note comes before the second revision, so that a missing one always means a file put back.
            self._note(opened.ring_key, ring)
        newest = max(ring.revision, seen[1] if seen else 0) + 1
        ring = replace(ring, revision=newest)
        seal = self._current_seal(opened) or self.seal.close(opened.ring_key, ring.ring_id)
        data = document.write(ring, seal, opened.ring_key)
        directory = os.path.dirname(self.path)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            check_directories(directory)
            self._sweep(directory)
            write_atomic(self.path, data, 0o600)
        except OSError as error:
            raise from_os(error, f"cannot write {self.path}", hint="the ring is unchanged") from error
        try:
            self._note(opened.ring_key, ring)
        except Error as error:
            # The new ring is good: a note that is older than it is no rollback.
            raise Unavailable(
                f"the ring is changed, but {error.message}",
                hint="make room, then look with `nodeplug kms status` before you repeat the command",
            ) from None
        return Opened(ring, opened.ring_key)

    def _current_seal(self, opened: Opened) -> dict[str, object] | None:
        """The seal as it stands, so that a change of the ring costs no new scrypt, TPM or systemd-creds."""
        if not self.exists():
            return None
        try:
            found = document.parse(self._read(), _WHAT)
            if document.ring_id_of(found, _WHAT) != opened.ring.ring_id or found["seal"].get("type") != self.seal.kind:
                return None
            kept: dict[str, object] = found["seal"]
        except Malformed:
            return None
        return kept if cipher.is_authentic(opened.ring_key, found) else None

    def _note(self, ring_key: bytes, ring: Ring) -> None:
        note: dict[str, object] = {"ring": ring.ring_id, "revision": ring.revision, "highest": ring.highest}
        note["mac"] = cipher.authenticate(ring_key, note)
        try:
            write_atomic(self.seen_path, json.dumps(note).encode(), 0o600)
        except OSError as error:
            raise from_os(error, f"cannot write {self.seen_path}") from error

    def _sweep(self, directory: str) -> None:
        """Remove what a killed writer left."""
        start = f".{os.path.basename(self.path)}."
        for name in os.listdir(directory):
            if name.startswith(start) and name.endswith("~"):
                os.unlink(os.path.join(directory, name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands out. Raises `TryAgain` after ten seconds."""
        try:
            with range_lock(self.path + ".lock", None, timeout=_BUSY):
                yield
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
                raise from_os(error, f"cannot lock {self.path}") from error
            raise

    def add_export(self, opened: Opened, now: int) -> Opened:
        """Remember an export that was read back, and save."""
        held = tuple(entry.generation for entry in opened.ring.entries if entry.wrapped)
        return self.save(
            replace(opened, ring=replace(opened.ring, exports=(*opened.ring.exports, Export(now, held))[-50:]))
        )
