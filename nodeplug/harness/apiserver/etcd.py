"""A store that several API servers share, and that dumps itself as etcdctl does."""

import base64
import json
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A stored value and the revision of its last change."""

    value: bytes
    revision: int


class Etcd:
    """Paths to values, with one revision counter."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._revision = 0
        self._lock = threading.Lock()

    def put(self, path: str, value: bytes) -> None:
        with self._lock:
            self._revision += 1
            self._items[path] = Item(value, self._revision)

    def get(self, path: str) -> bytes:
        """Raises KeyError."""
        return self._items[path].value

    def delete(self, path: str) -> None:
        with self._lock:
            self._revision += 1
            del self._items[path]

    def paths(self) -> list[str]:
        with self._lock:
            return sorted(self._items)

    def dump(self, prefix: str = "/registry") -> bytes:
        """What `etcdctl get PREFIX --prefix -w json` prints."""
        with self._lock:
            kvs = [
                {
                    "key": base64.b64encode(path.encode()).decode(),
                    "create_revision": item.revision,
                    "mod_revision": item.revision,
                    "version": 1,
                    "value": base64.b64encode(item.value).decode(),
                }
                for path, item in sorted(self._items.items())
                if path.startswith(prefix)
            ]
            header = {"cluster_id": 1, "member_id": 2, "revision": self._revision, "raft_term": 3}
        found: dict[str, object] = {"header": header}
        if kvs:
            found |= {"kvs": kvs, "count": len(kvs)}
        return json.dumps(found, separators=(",", ":")).encode() + b"\n"
