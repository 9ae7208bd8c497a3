"""A key ring as a value, and the rules by which its keys live. No I/O, no cryptography but a hash.

    pending --activate--> active --next activated--> decrypt-only --retire--> retired --destroy--> destroyed
       `---------------------- retire ------------------------------------------^  |
                                                     decrypt-only <-- reinstate ---'

Two layers. Entries are the same bytes on every node: a generation, the key wrapped by the ring's own key, a check
value. Standings are this node's: the state of each entry and since when. Generations only grow and a key id, once
given, never means another key: it carries the check value too.
"""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nodeplug.core.errors import NotFound, Refused

MOST_ENTRIES = 1000
DESTROY_AFTER = 90 * 86400
"""Seconds a key stays retired before it may be destroyed."""

SETTLED = 600
"""Seconds after a key's deactivation until no API server writes under it: three minutes that a state stays valid
without a good Status, and room for clocks five minutes apart."""


class State(enum.Enum):
    """What a key may do on this node."""

    PENDING = "pending"  # decrypts; waits until every node has it
    ACTIVE = "active"  # encrypts and decrypts
    DECRYPT_ONLY = "decrypt-only"
    RETIRED = "retired"  # kept, not used
    DESTROYED = "destroyed"  # its number stays taken


DECRYPTS = frozenset({State.PENDING, State.ACTIVE, State.DECRYPT_ONLY})


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. `wrapped` is empty once it is destroyed. `created` is in seconds since 1970."""

    generation: int
    created: int
    check: str
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry's state on this node, and since when (seconds since 1970)."""

    state: State
    since: int


@dataclass(frozen=True, slots=True)
class Export:
    """A copy that was read back and opened: when, and which generations it holds."""

    at: int
    generations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ring:
    """All of it. `revision` counts this node's changes, `highest` is the highest generation ever given."""

    ring_id: str
    nodes: int
    entries: tuple[Entry, ...]
    standings: Mapping[int, Standing]
    highest: int
    revision: int = 0
    exports: tuple[Export, ...] = ()

    def key_id(self, entry: Entry) -> str:
        """The public name of an entry's key: from the ring, not from the node, so that it is equal everywhere."""
        return f"np1-{hashlib.sha256(bytes.fromhex(self.ring_id)).hexdigest()[:12]}-{entry.generation}-{entry.check}"

    def state(self, entry: Entry) -> State:
        return self.standings[entry.generation].state

    @property
    def active(self) -> Entry | None:
        """The entry that encrypts; None in a ring that waits for an activation."""
        return next((entry for entry in self.entries if self.state(entry) is State.ACTIVE), None)

    @property
    def fingerprint(self) -> str:
        """Short and readable: two nodes show the same one exactly when they hold the same keys."""
        held = [f"{entry.generation}:{entry.check}" for entry in self.entries if entry.wrapped]
        digest = hashlib.sha256("\n".join([self.ring_id, *held]).encode()).hexdigest()
        return "-".join(digest[n : n + 4] for n in range(0, 16, 4))

    def find(self, key_id: str) -> Entry:
        """The entry of that id; its generation alone will do for a person. Raises `NotFound` naming those there are."""
        for entry in self.entries:
            if key_id in (self.key_id(entry), str(entry.generation)):
                return entry
        known = ", ".join(self.key_id(entry) for entry in self.entries)
        raise NotFound(f"there is no key {key_id} in this ring", hint=f"it has {known}")

    def add(self, entry: Entry, state: State, now: int) -> "Ring":
        """With one more entry. Raises `Refused` when the ring is full."""
        if len(self.entries) >= MOST_ENTRIES:
            raise Refused(f"the ring holds {MOST_ENTRIES} keys", hint="start a new ring and migrate to it")
        entries = tuple(sorted((*self.entries, entry), key=lambda item: item.generation))
        standings = {**self.standings, entry.generation: Standing(state, now)}
        return replace(self, entries=entries, standings=standings, highest=max(self.highest, entry.generation))

    def _stand(self, entry: Entry, state: State, now: int) -> "Ring":
        return replace(self, standings={**self.standings, entry.generation: Standing(state, now)})

    def pending(self) -> Entry | None:
        """The newest entry that waits for its activation."""
        found = [entry for entry in self.entries if self.state(entry) is State.PENDING]
        return found[-1] if found else None

    def refuse_second_pending(self) -> None:
        """Raise `Refused` when a key waits already: two at once confuse the nodes about which is next."""
        waiting = self.pending()
        if waiting is not None:
            raise Refused(
                f"{self.key_id(waiting)} is pending already",
                hint="activate it (`nodeplug kms activate`) before adding another",
            )

    def activate(self, entry: Entry, now: int) -> "Ring":
        """`entry` encrypts from now on, what was active only decrypts. Repeating it changes nothing.

        Raises `Refused` for a key that was active before: an API server takes its return for the old key's data being
        current again.
        """
        state = self.state(entry)
        if state is State.ACTIVE:
            return self
        if state is not State.PENDING:
            raise Refused(
                f"{self.key_id(entry)} is {state.value}; a key id is never put to use twice",
                hint="add a new key with `nodeplug kms add-key`",
            )
        before = self.active
        if before is not None and before.generation > entry.generation:
            raise Refused(
                f"{self.key_id(entry)} is older than the active {self.key_id(before)}",
                hint="add a new key with `nodeplug kms add-key`",
            )
        ring = self if before is None else self._stand(before, State.DECRYPT_ONLY, now)
        return ring._stand(entry, State.ACTIVE, now)

    def deactivate(self, now: int) -> "Ring":
        """Without an active key: after a restore nobody knows which was the last."""
        return self if self.active is None else self._stand(self.active, State.DECRYPT_ONLY, now)

    def retire(self, entry: Entry, now: int) -> "Ring":
        """Out of use, kept. Whoever calls has proof that nothing needs it. Raises `Refused` for the active key."""
        state = self.state(entry)
        if state is State.RETIRED:
            return self
        if state is State.ACTIVE:
            raise Refused(f"{self.key_id(entry)} is active", hint="activate another key first")
        if state is State.DESTROYED:
            raise Refused(f"{self.key_id(entry)} is destroyed")
        return self._stand(entry, State.RETIRED, now)

    def reinstate(self, entry: Entry, now: int) -> "Ring":
        """A retired key decrypts again; it never encrypts again. Raises `Refused` for one that is not retired."""
        if self.state(entry) is not State.RETIRED:
            raise Refused(f"{self.key_id(entry)} is {self.state(entry).value}; only a retired key is reinstated")
        return self._stand(entry, State.DECRYPT_ONLY, now)

    def destroy(self, entry: Entry, now: int) -> "Ring":
        """Without the key itself; its number stays taken.

        Raises `Refused` unless it has been retired for 90 days and an export made meanwhile or before, read back and
        opened, holds it.
        """
        standing = self.standings[entry.generation]
        name = self.key_id(entry)
        if standing.state is State.DESTROYED:
            return self
        if standing.state is not State.RETIRED:
            raise Refused(f"{name} is {standing.state.value}", hint="retire it first; that takes proof from etcd")
        days = (now - standing.since) // 86400
        if now - standing.since < DESTROY_AFTER:
            raise Refused(
                f"{name} has been retired for {max(0, days)} days; 90 are needed",
                hint="a backup of etcd that old may still need it",
            )
        if not any(entry.generation in export.generations for export in self.exports):
            raise Refused(
                f"no export of this ring holds {name}",
                hint="run `nodeplug kms export` and keep the file somewhere else",
            )
        entries = tuple(replace(item, wrapped=b"") if item is entry else item for item in self.entries)
        return replace(self._stand(entry, State.DESTROYED, now), entries=entries)

    def merge(self, other: "Ring", now: int) -> "Ring":
        """With the other node's entries that are missing here, as pending; nothing here changes its state, but that a
        destroyed key which the other still holds comes back as a retired one.

        Raises `Refused` for another ring, or when both have made different keys of one generation.
        """
        if other.ring_id != self.ring_id:
            raise Refused(
                "the export is of another ring",
                hint="nodes of one cluster share one ring: start this node by importing, not by `init`",
            )
        ring = self
        mine = {entry.generation: entry for entry in self.entries}
        for entry in other.entries:
            own = mine.get(entry.generation)
            if own is None:
                gone = State.DESTROYED if not entry.wrapped else State.PENDING
                state = State.RETIRED if other.state(entry) is State.RETIRED else gone
                ring = ring.add(entry, state, now)
            elif own.check == entry.check and entry.wrapped and not own.wrapped:
                entries = tuple(entry if item is own else item for item in ring.entries)
                ring = replace(ring._stand(entry, State.RETIRED, now), entries=entries)
            elif own.check != entry.check:
                raise Refused(
                    f"this node and the export made different keys of generation {entry.generation}",
                    hint="add keys on one node only; retire the one that was never activated and add another there",
                )
        return replace(ring, nodes=max(self.nodes, other.nodes), highest=max(ring.highest, other.highest))
