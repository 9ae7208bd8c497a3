"""Device ids: from what a thing is (serial, port, address, link name), never from bus numbers or order.

At most 63 characters reach the wire; six are kept for a replica's suffix ("::123").
"""

import re

from nodeplug.core.naming import digest

LONGEST = 63
LONGEST_BASE = LONGEST - 6
REPLICA = "::"
_DIGEST = 13  # base32 characters: 65 bits
_PLAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?\Z")  # what a CDI device name may be, too
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")


def device_id(identity: str) -> str:
    """`identity` itself where it is plain and short, else as much of it as fits and a hash over the whole."""
    if len(identity) <= LONGEST_BASE and REPLICA not in identity and _PLAIN.match(identity):
        return identity
    readable = _OTHER.sub("-", identity)[: LONGEST_BASE - 1 - _DIGEST].strip("-._") or "d"
    return f"{readable}-{digest(identity, _DIGEST)}"


def replica_id(base: str, number: int) -> str:
    """The id of one share of a device, counted from 0."""
    return f"{base}{REPLICA}{number}"


def base_of(id: str) -> str:
    """The device that `id`, a replica's or a device's, belongs to."""
    return id.partition(REPLICA)[0]
