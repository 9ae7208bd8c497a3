"""The certificate of one published volume: made, shown, noted, and replaced in time.

Key and chain are swapped together with all other files (`atomic`). Whatever fails, the old pair stays until a new one
is there.
"""

from __future__ import annotations

import os

from nodeplug.core.errors import Error, doing
from nodeplug.core.naming import digest
from nodeplug.core.record import Record
from nodeplug.volumes import atomic
from nodeplug.volumes.identity import bundles, layouts, notes, spiffe
from nodeplug.volumes.identity.issuing import Ask, issue
from nodeplug.volumes.identity.notes import Note, Wanted
from nodeplug.volumes.identity.store import Store
from nodeplug.volumes.inside import writable

SOURCE = "nodeplug.dev/identity"
"""What mountinfo shows of these volumes."""

KEPT = 3
"""Generations besides the one that is shown: whoever has just opened `..data` finds his files, however slow he is."""

_FIRST_RETRY, _LAST_RETRY = 5, 300
_SET_BACK = 60  # seconds that a clock may go back before what it made counts as of the future
_FROM, _TO = 0.45, 0.55  # of a certificate's life: when it is replaced


class Place(Record):
    """Where the node's authority and what belongs to it are; see `policy.IdentityLimits`."""

    directory: str
    log: str
    host_certificates: str
    python: str


class Made:
    """A new certificate's files, and what is to be noted of it."""

    __slots__ = ("files", "note")

    def __init__(self, files: dict[str, atomic.File], note: Note) -> None:
        self.files = files
        self.note = note


def make(id: str, target: str, wanted: Wanted, place: Place, *, now: int, why: str, timeout: float) -> Made:
    """A certificate for the volume, and its files. Raises what `issuing.issue` does, `Unavailable`."""
    store = Store(place.directory)
    domain = store.load().trust_domain
    name = str(spiffe.of_service_account(domain, wanted.namespace, wanted.service_account))
    ask = Ask(
        name=name,
        ttl=wanted.ttl,
        key_type=wanted.key_type,
        volume=wanted.volume,
        pod=wanted.pod,
        uid=wanted.uid,
        why=why,
    )
    credential = issue(store, ask, now=now, log=place.log, python=place.python, timeout=timeout)
    host = bundles.host_certificates(place.host_certificates) if wanted.system else b""
    system = bundles.merged(host, credential.roots.encode()) if host else b""
    content = layouts.files_of(credential, wanted.layout, system=system)
    shown = {
        each: atomic.File(
            content=file.data,
            mode=wanted.key_mode if file.private else wanted.mode,
            uid=wanted.owner,
            gid=wanted.group,
        )
        for each, file in content.items()
    }
    note = Note(
        id=id,
        target=target,
        wanted=wanted,
        name=name,
        serial=credential.serial,
        made=now,
        not_after=credential.not_after,
        renew=now + int((credential.not_after - now) * _between(_FROM, _TO)),
        roots=mark(credential.roots),
        system=mark(host.decode("latin-1")) if host else "",
    )
    return Made(shown, note)


def show(volume: int, made: Made) -> None:
    """Swap the files of the mount that `volume` is a descriptor of. Raises OSError."""
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=volume)
    try:
        atomic.write(top, made.files, keep=KEPT)
    finally:
        os.close(top)


def wipe(volume: int) -> None:
    """Overwrite and remove all files. Raises OSError."""
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=volume)
    try:
        atomic.wipe(top)
    finally:
        os.close(top)


def replace(note: Note, place: Place, *, now: int, timeout: float) -> Note:
    """Make a new certificate and show it at the volume's target; for who holds the volume's lock.

    Raises what `make` does, `NotFound` where the volume is not there.
    """
    made = make(note.id, note.target, note.wanted, place, now=now, why="renew", timeout=timeout)
    with doing(f"cannot replace the files of {note.target}"):
        with writable(note.target, SOURCE) as volume:
            show(volume, made)
        notes.write(made.note)
    return made.note


def put_off(note: Note, error: Exception, now: int) -> Note:
    """What to note after an attempt that failed: the next one later and later, but not past five minutes."""
    pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(note.failures, 10)) * _between(0.75, 1.0)
    said = error.message if isinstance(error, Error) else str(error)
    hint = error.hint if isinstance(error, Error) else ""
    return note.replace(failures=note.failures + 1, retry=now + int(pause) + 1, error=f"{said}; {hint}".strip("; "))


def due(note: Note, *, roots: str, system: str, now: int) -> int:
    """When it is to be replaced: in time, or at once where roots have changed or the clock was set back before it.

    `roots` and `system` are the marks of what is to be shown now; empty for not known.
    """
    stale = bool(roots) and note.roots != roots
    stale = stale or (note.wanted.system and bool(system) and note.system != system)
    wished = now if stale or now < note.made - _SET_BACK else note.renew
    return max(wished, note.retry) if note.failures else wished


def mark(text: str) -> str:
    """A digest that tells one text from another."""
    return digest(text, 26)


def _between(low: float, high: float) -> float:
    return low + (high - low) * int.from_bytes(os.urandom(4), "big") / (1 << 32)
