"""What is known of each published identity: one small file, without a secret, that tells when it has to be replaced.

    /run/nodeplug/identity/ID.json

Written by whoever shows a certificate, read by the chore of nodeplugd, which is called by the change; gone with the
volume, and with the boot, as the memory is that holds the files.
"""

from __future__ import annotations

import os

from nodeplug.core import document, files, jsontext, paths
from nodeplug.core.errors import Malformed
from nodeplug.core.record import Record, key
from nodeplug.volumes.identity.store import read_document

DIRECTORY = paths.RUN + "/identity"

_LARGEST = 64 << 10
_SUFFIX = ".json"


class Wanted(Record):
    """What the pod's volume is to have, from its options and the pod."""

    namespace: str = key(document.name)
    service_account: str = key(document.text)
    pod: str = key(document.text)
    uid: str = key(document.text)
    volume: str = key(document.text)
    ttl: int = key(document.integer(1))
    key_type: str = key(document.name)
    layout: str = key(document.name)
    system: bool = key(document.boolean)
    mode: int = key(document.integer(0))
    key_mode: int = key(document.integer(0))
    owner: int = key(document.integer(-1))
    group: int = key(document.integer(-1))


class Note(Record):
    """A published identity. Times are seconds since the epoch."""

    id: str = key(document.name)
    target: str = key(document.absolute_path)
    wanted: Wanted = key(document.nested(Wanted))
    name: str = key(document.name)
    """The SPIFFE ID."""
    serial: str = key(document.name)
    made: int = key(document.integer(0))
    not_after: int = key(document.integer(0))
    renew: int = key(document.integer(0))
    """When it is to be replaced: about half of its life later, each volume at a time of its own."""
    roots: str = key(document.name)
    """A digest of the roots that it shows."""
    system: str = key(document.text, default="")
    """A digest of the host's certificates that it shows."""
    failures: int = key(document.integer(0), default=0)
    """Attempts to replace it that failed in a row; the next is at `retry`."""
    retry: int = key(document.integer(0), default=0)
    error: str = key(document.text, default="")


def write(note: Note, directory: str = DIRECTORY) -> None:
    """Raises OSError."""
    data = jsontext.dumps(document.encode(note)).encode("utf-8", "surrogateescape")
    path = f"{directory}/{note.id}{_SUFFIX}"
    try:
        files.write_atomic(path, data, 0o600, durable=False)
    except FileNotFoundError:
        files.ensure_directory(directory, 0o700)
        files.write_atomic(path, data, 0o600, durable=False)


def read(id: str, directory: str = DIRECTORY) -> Note | None:
    """The note of that volume; None when there is none. Raises `Malformed`."""
    path = f"{directory}/{id}{_SUFFIX}"
    try:
        return read_document(Note, files.read_bounded(path, _LARGEST), path)
    except FileNotFoundError:
        return None


def remove(id: str, directory: str = DIRECTORY) -> None:
    """Nothing to remove is success."""
    files.remove(f"{directory}/{id}{_SUFFIX}")


def every(directory: str = DIRECTORY) -> tuple[list[Note], list[str]]:
    """All notes, and the ids of those that cannot be understood."""
    found, unreadable = [], []
    for id in ids(directory):
        try:
            note = read(id, directory)
        except Malformed:
            unreadable.append(id)
            continue
        if note is not None:
            found.append(note)
    return found, unreadable


def ids(directory: str = DIRECTORY) -> list[str]:
    """Every volume that has a note, readable or not."""
    return sorted(
        name.removesuffix(_SUFFIX) for name in _names(directory) if name.endswith(_SUFFIX) and not name.startswith(".")
    )


def abandoned(directory: str = DIRECTORY) -> list[str]:
    """The files of writers that were killed."""
    return [f"{directory}/{name}" for name in _names(directory) if files.is_abandoned(name)]


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
