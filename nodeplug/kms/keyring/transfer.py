"""Export and import: how keys travel between nodes, and the backup. A file sealed by a passphrase of its own.

    {"format": 1, "kind": "nodeplug-kms-export", "at": ..., "fingerprint": "...", "ring": <a ring file's text>}

The ring inside is one whose seal is the passphrase.
"""

import json
import os
from dataclasses import replace
from hmac import compare_digest

from nodeplug.core.errors import Malformed, NotFound, Refused, from_os
from nodeplug.core.files import create_whole, read_bounded
from nodeplug.kms.keyring import cipher, document
from nodeplug.kms.keyring.ring import Standing, State
from nodeplug.kms.keyring.seals import PassphraseFile
from nodeplug.kms.keyring.store import Opened, Store, new_entry

_KIND = "nodeplug-kms-export"


def export(store: Store, opened: Opened, target: str, *, passphrase_file: str, now: int) -> Opened:
    """Write an export to `target` (a new file, 0600), read it back, and note in the ring that it is good.

    Raises `Refused` when `target` exists: an older export may be the only copy of something.
    """
    seal = PassphraseFile(passphrase_file)
    inside = document.write(opened.ring, seal.close(opened.ring_key, opened.ring.ring_id), opened.ring_key)
    outside = {
        "format": document.FORMAT,
        "kind": _KIND,
        "at": now,
        "fingerprint": opened.ring.fingerprint,
        "ring": json.loads(inside),
    }
    try:
        if not create_whole(target, (json.dumps(outside, indent=1) + "\n").encode(), 0o600):
            raise Refused(f"{target} exists", hint="choose another name; exports are never overwritten")
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise from_os(error, f"cannot write {target}") from error
    again = read_export(target, passphrase_file=passphrase_file)
    if again.ring != opened.ring or again.material() != opened.material():
        raise Malformed(f"{target} does not hold what was written to it", hint="is the disk sound? try another")
    return store.add_export(opened, now)


def read_export(path: str, *, passphrase_file: str) -> Opened:
    """The ring in an export. Raises `NotFound`, `Malformed`, `Refused` (another passphrase)."""
    what = f"the export {path}"
    try:
        data = read_bounded(path, document.LARGEST)
    except FileNotFoundError:
        raise NotFound(f"{what} is not there") from None
    except OSError as error:
        raise from_os(error, f"cannot read {what}") from error
    try:
        outside = json.loads(data)
    except (ValueError, RecursionError):
        raise Malformed(f"{what} is not whole") from None
    if not isinstance(outside, dict) or outside.get("kind") != _KIND or not isinstance(outside.get("ring"), dict):
        raise Malformed(f"{path} is no export of a key ring")
    found = document.parse(json.dumps(outside["ring"]).encode(), what)
    ring_id = document.ring_id_of(found, what)
    try:
        ring_key = PassphraseFile(passphrase_file).open(found["seal"], ring_id)
    except cipher.Damaged:
        raise Malformed(f"the seal of {what} is damaged") from None
    opened = Opened(document.read(found, ring_key, what), ring_key)
    opened.material()
    return opened


def adopt(store: Store, found: Opened, *, now: int) -> Opened:
    """Start this node's ring from an export: the same keys in the same states, this node's seal.

    Raises `Refused` when a ring is here already.
    """
    if store.exists():
        raise Refused(f"there is a key ring at {store.path}", hint="add --merge to bring in what it lacks")
    store.seal.prepare()
    ring = replace(found.ring, revision=0, exports=(), nodes=max(2, found.ring.nodes))
    return store.save(Opened(ring, found.ring_key))


def merge(store: Store, opened: Opened, found: Opened, *, now: int) -> Opened:
    """Bring in the keys of an export that this ring lacks, as pending. Raises what `Ring.merge` raises."""
    merged = opened.ring.merge(found.ring, now)
    if not compare_digest(opened.ring_key, found.ring_key):
        raise Refused("the export is of another ring", hint="it has the same id, but another key")
    return opened if merged == opened.ring else store.save(Opened(merged, opened.ring_key))


def accept_rollback(store: Store, opened: Opened, *, now: int) -> Opened:
    """After a restore: this ring, at a revision and a generation above all that this node remembers.

    Which key was active before the restore is unknown, and a key id must not come back into use; so a new one takes
    over. Where several nodes share the ring it waits for its activation, and until then nothing is active here.
    """
    seen = store.seen(opened.ring_key)
    highest = max(opened.ring.highest, seen[2] if seen else 0)
    ring = replace(opened.ring, highest=highest)
    pending = ring.pending()
    if pending is not None:
        # It may have been the active one before the restore.
        ring = replace(ring, standings={**ring.standings, pending.generation: Standing(State.DECRYPT_ONLY, now)})
    entry = new_entry(ring.ring_id, opened.ring_key, highest + 1, now)
    ring = ring.deactivate(now).add(entry, State.PENDING, now)
    if ring.nodes == 1:
        ring = ring.activate(ring.entries[-1], now)
    return store.save(Opened(ring, opened.ring_key))
