"""When this node last used each key, kept beside the ring for `retire` and `status`. A hint, never a proof.

The daemon notes in memory and writes now and then; losing the last minute makes no difference.
"""

import json
import os
import threading
import time

from nodeplug.core.errors import Error
from nodeplug.core.files import write_atomic
from nodeplug.kms.keyring.seals import read_private

RECENT = 3600
"""Seconds within which a use by this node keeps a key from being retired."""

_MOST = 10_000


class Usage:
    """Last decryption by key id. `touch` is called for every message, so it is one assignment."""

    def __init__(self, ring_path: str) -> None:
        self._path = ring_path + ".usage"
        self._last: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()

    def touch(self, key_id: str) -> None:
        self._last[key_id] = time.time()

    def flush(self) -> None:
        """Write what has changed; a disk that refuses is told of elsewhere, by the ring's own writes."""
        with self._lock:
            now = dict(self._last)
            if now == self._written:
                return
            merged = {**read(self._path), **{key: int(at) for key, at in now.items()}}
            try:
                write_atomic(self._path, json.dumps(merged).encode(), 0o600, durable=False)
            except OSError:
                return
            self._written = now


def read(path: str) -> dict[str, int]:
    """Seconds since 1970 by key id; empty when there is nothing to read."""
    try:
        found = json.loads(read_private(path, "the usage note"))
        if not isinstance(found, dict) or len(found) > _MOST:
            return {}
        return {str(key): int(at) for key, at in found.items() if isinstance(at, (int, float))}
    except (Error, ValueError, OverflowError, RecursionError):
        return {}


def of_ring(ring_path: str) -> dict[str, int]:
    """What the daemon noted for the ring at that path."""
    path = ring_path + ".usage"
    return read(path) if os.path.exists(path) else {}
