"""The ring file's text: JSON, two layers, a MAC over the whole. No I/O.

    {"format": 1, "shared": {ring, entries}, "local": {revision, highest, states, exports}, "seal": {...}, "mac": "..."}

`shared` is the same bytes on every node but for keys destroyed on one of them.
"""

import json
from collections.abc import Mapping
from typing import Any

from nodeplug.core.errors import Malformed
from nodeplug.kms.keyring import cipher
from nodeplug.kms.keyring.ring import MOST_ENTRIES, Entry, Export, Ring, Standing, State

FORMAT = 1
LARGEST = 4 << 20
"""Bytes; a ring of as many entries as there may be, and an export of it, have a quarter of that."""


def write(ring: Ring, seal: Mapping[str, object], ring_key: bytes) -> bytes:
    """The file for a ring; `seal` is the document that a seal made of `ring_key`."""
    document: dict[str, object] = {
        "format": FORMAT,
        "shared": {
            "ring": ring.ring_id,
            "entries": [
                {
                    "generation": entry.generation,
                    "created": entry.created,
                    "check": entry.check,
                    "wrapped": entry.wrapped.hex(),
                }
                for entry in ring.entries
            ],
        },
        "local": {
            "nodes": ring.nodes,
            "revision": ring.revision,
            "highest": ring.highest,
            "states": {
                str(generation): {"state": standing.state.value, "since": standing.since}
                for generation, standing in sorted(ring.standings.items())
            },
            "exports": [{"at": item.at, "generations": list(item.generations)} for item in ring.exports],
        },
        "seal": dict(seal),
    }
    document["mac"] = cipher.authenticate(ring_key, document)
    return (json.dumps(document, indent=1) + "\n").encode()


def parse(data: bytes, what: str) -> dict[str, Any]:
    """The outer form, before the seal is opened and the MAC checked. Raises `Malformed`, naming `what`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise Malformed(f"{what} is not whole: no JSON can be read from it") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Malformed(f"{what} is no key ring of format {FORMAT}")
    if not isinstance(document.get("shared"), dict) or not isinstance(document.get("seal"), dict):
        raise Malformed(f"{what} lacks a part")
    return document


def ring_id_of(document: Mapping[str, Any], what: str) -> str:
    """The ring's id, needed to open the seal. Raises `Malformed`."""
    ring_id = document["shared"].get("ring")
    if not isinstance(ring_id, str) or len(ring_id) != 32 or not _is_hex(ring_id):
        raise Malformed(f"{what} names no ring")
    return ring_id


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def read(document: Mapping[str, Any], ring_key: bytes, what: str) -> Ring:
    """The ring in a document. Raises `Malformed` when its MAC does not fit or a part is not what it should be."""
    if not cipher.is_authentic(ring_key, document):
        raise Malformed(f"{what} was changed by something that is not nodeplug: its MAC does not fit")
    try:
        shared, local = document["shared"], document["local"]
        entries = tuple(
            Entry(int(item["generation"]), int(item["created"]), str(item["check"]), bytes.fromhex(item["wrapped"]))
            for item in shared["entries"]
        )
        standings = {
            int(generation): Standing(State(item["state"]), int(item["since"]))
            for generation, item in local["states"].items()
        }
        exports = tuple(Export(int(item["at"]), tuple(map(int, item["generations"]))) for item in local["exports"])
        ring = Ring(
            ring_id=ring_id_of(document, what),
            nodes=int(local["nodes"]),
            entries=entries,
            standings=standings,
            highest=int(local["highest"]),
            revision=int(local["revision"]),
            exports=exports,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed(f"{what} has parts that this version of nodeplug cannot read") from None
    generations = [entry.generation for entry in entries]
    if (
        len(generations) > MOST_ENTRIES
        or generations != sorted(set(generations))
        or set(generations) != set(standings)
        or sum(standing.state is State.ACTIVE for standing in standings.values()) > 1
    ):
        raise Malformed(f"{what} contradicts itself")
    return ring
