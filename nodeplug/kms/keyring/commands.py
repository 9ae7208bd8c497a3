"""What `nodeplug kms` does to a ring: each command a function from what was asked to what to say. No terminal here.

All changes happen under the ring's lock, on a ring just read, and are on disk when the function returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.kms.keyring import transfer, usage
from nodeplug.kms.keyring.evidence import Evidence
from nodeplug.kms.keyring.ring import SETTLED, Entry, Ring, State
from nodeplug.kms.keyring.store import Opened, Store, new_entry, new_ring


@dataclass(frozen=True)
class KeyLine:
    """One key, for a person. `last_use` is this node's last decryption, 0 for none noted."""

    key_id: str
    state: str
    created: int
    since: int
    last_use: int


def key_lines(store: Store, ring: Ring) -> list[KeyLine]:
    """The keys of a ring, oldest first."""
    used = usage.of_ring(store.path)
    return [
        KeyLine(
            ring.key_id(entry),
            ring.state(entry).value,
            entry.created,
            ring.standings[entry.generation].since,
            used.get(ring.key_id(entry), 0),
        )
        for entry in ring.entries
    ]


def init(store: Store, *, nodes: int, now: int) -> Ring:
    """A new ring with one active key. Raises `Refused` when there is a ring already."""
    with store.lock():
        if store.exists():
            raise Refused(
                f"there is a key ring at {store.path}",
                hint="what it protects cannot be read without it; move it away yourself if you are sure",
            )
        store.seal.prepare()
        return store.save(new_ring(nodes=nodes, now=now)).ring


def set_nodes(store: Store, nodes: int) -> Ring:
    """How many nodes share the ring, from now on."""
    with store.lock():
        opened = store.load()
        return store.save(Opened(replace(opened.ring, nodes=nodes), opened.ring_key)).ring


def add_key(store: Store, *, now: int) -> tuple[Ring, Entry]:
    """One more key, pending."""
    with store.lock():
        opened = store.load()
        opened.ring.refuse_second_pending()
        entry = new_entry(opened.ring.ring_id, opened.ring_key, opened.ring.highest + 1, now)
        saved = store.save(Opened(opened.ring.add(entry, State.PENDING, now), opened.ring_key))
        return saved.ring, entry


def activate(store: Store, key_id: str, *, confirm: str, now: int) -> tuple[Ring, Entry]:
    """Put the pending key (or the one named) to use.

    A ring of several nodes asks for the fingerprint, as read on each of them: a node that lacks the key could not read
    what the others write from this moment on.
    """
    with store.lock():
        opened = store.load()
        ring = opened.ring
        entry = ring.find(key_id) if key_id else ring.pending()
        if entry is None:
            if ring.active is None:
                raise Refused("no key is pending", hint="add one with `nodeplug kms add-key`")
            raise Refused(
                f"no key is pending; {ring.key_id(ring.active)} is active", hint="add one with `nodeplug kms add-key`"
            )
        if (ring.nodes > 1 or confirm) and confirm != ring.fingerprint:
            said = "is another one" if confirm else "is needed"
            raise Refused(
                f"{ring.nodes} nodes share this ring, and the fingerprint that they all show {said}",
                hint="run `nodeplug kms status` on each node; when all show the same fingerprint, give it as --confirm",
            )
        changed = ring.activate(entry, now)
        return (ring if changed is ring else store.save(Opened(changed, opened.ring_key)).ring), entry


def retire(store: Store, key_id: str, evidence: Evidence, *, everywhere: str, now: int) -> tuple[Ring, Entry]:
    """Put a key out of use, with proof that etcd holds nothing under it.

    "Not used lately" proves nothing: an API server keeps seeds for as long as it runs and asks again after its next
    start. So the dump decides, and it has to be younger than the last write that could have used the key.
    """
    with store.lock():
        opened = store.load()
        ring = opened.ring
        entry = ring.find(key_id)
        name = ring.key_id(entry)
        if ring.state(entry) is State.RETIRED:
            return ring, entry
        changed = ring.retire(entry, now)
        _refuse_without_proof(ring, entry, evidence)
        if ring.nodes > 1 and (ring.active is None or everywhere != ring.key_id(ring.active)):
            raise Refused(
                f"{ring.nodes} nodes share this ring; say with --everywhere which key is active on all of them",
                hint="run `nodeplug kms status` on each node: one that still encrypts with the old key keeps it alive",
            )
        last = usage.of_ring(store.path).get(name, 0)
        if last > now:
            raise Refused(
                f"this node noted a use of {name} at a time that is still to come, so its clock was moved",
                hint=f"set the clock right; else try again in {last - now + usage.RECENT} s",
            )
        if now - last < usage.RECENT:
            raise Refused(
                f"this node decrypted with {name} {now - last} seconds ago, so something still needs it",
                hint="find what reads it, rewrite it, and try again an hour later",
            )
        return store.save(Opened(changed, opened.ring_key)).ring, entry


def _refuse_without_proof(ring: Ring, entry: Entry, evidence: Evidence) -> None:
    name = ring.key_id(entry)
    under = evidence.objects.get(name, 0)
    if under:
        raise Refused(
            f"{under} objects in etcd are encrypted under {name}",
            hint="rewrite them (docs/kms.md, storage migration) and take a new dump",
        )
    settled = ring.standings[entry.generation].since + SETTLED
    if ring.state(entry) is not State.PENDING and evidence.taken < settled:
        raise Refused(
            f"the dump is from before {name} was surely out of use",
            hint=f"API servers may write under it for minutes after; take a dump in {settled - int(evidence.taken)} s",
        )
    newer = [other for other in ring.entries if other.generation > entry.generation]
    if ring.state(entry) is not State.PENDING and not any(evidence.objects.get(ring.key_id(item)) for item in newer):
        raise Refused(
            "the dump has no object under a newer key, so it does not show this cluster after the rotation",
            hint="dump the prefix that the API server writes to, /registry by default, after one Secret was rewritten",
        )


def reinstate(store: Store, key_id: str, *, now: int) -> tuple[Ring, Entry]:
    """Let a retired key decrypt again."""
    with store.lock():
        opened = store.load()
        entry = opened.ring.find(key_id)
        return store.save(Opened(opened.ring.reinstate(entry, now), opened.ring_key)).ring, entry


def destroy(store: Store, key_id: str, *, now: int) -> tuple[Ring, Entry]:
    """Remove a key for good from this node."""
    with store.lock():
        opened = store.load()
        entry = opened.ring.find(key_id)
        changed = opened.ring.destroy(entry, now)
        return (opened.ring if changed is opened.ring else store.save(Opened(changed, opened.ring_key)).ring), entry


def export(store: Store, target: str, *, passphrase_file: str, now: int) -> Ring:
    """A sealed copy of all keys at `target`."""
    with store.lock():
        return transfer.export(store, store.load(), target, passphrase_file=passphrase_file, now=now).ring


def import_(
    store: Store, source: str, *, passphrase_file: str, merge: bool, accept_rollback: bool, now: int
) -> tuple[Ring | None, Ring]:
    """Bring in an export (or accept this node's restored ring); the ring before and after."""
    with store.lock():
        before = store.load(accept_rollback=accept_rollback) if store.exists() else None
        after = before
        if source:
            found = transfer.read_export(source, passphrase_file=passphrase_file)
            if before is None:
                after = transfer.adopt(store, found, now=now)
            elif merge or accept_rollback:
                after = transfer.merge(store, before, found, now=now)
            else:
                raise Refused(f"there is a key ring at {store.path}", hint="add --merge to bring in what it lacks")
        elif not accept_rollback:
            raise ConfigInvalid("nothing to import", hint="name the export's file")
        if after is None:
            raise Refused(f"there is no key ring at {store.path}", hint="restore it, or name an export's file")
        if accept_rollback:
            after = transfer.accept_rollback(store, after, now=now)
        return (before.ring if before else None), after.ring


def checker(opened: Opened) -> Mapping[str, bytes]:
    """The keys by which a dump's seeds are tried; retired ones too, for they could be reinstated."""
    ring = opened.ring
    return {ring.key_id(entry): opened.unwrap(entry) for entry in ring.entries if entry.wrapped}
