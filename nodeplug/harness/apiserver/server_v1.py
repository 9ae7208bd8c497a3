"""An API server with a v1beta1 provider: one Encrypt for each write, a bounded cache of data keys."""

import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from nodeplug.harness.apiserver import stored
from nodeplug.harness.apiserver.client import TIMEOUT, V1
from nodeplug.harness.apiserver.etcd import Etcd

CACHE = 1000
"""Data keys; the default of `cachesize`."""


class ApiServerV1:
    """Reads and writes are called by the test. `decrypts` counts the cache's misses."""

    def __init__(
        self, socket: str, etcd: Etcd, *, provider: str = "np", cache: int = CACHE, timeout: float = TIMEOUT
    ) -> None:
        self.etcd = etcd
        self.provider = provider
        self.decrypts = 0
        self._client = V1(socket, timeout=timeout, backoff=0.01)
        self._limit = cache
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def stop(self) -> None:
        self._client.close()

    def healthz(self) -> None:
        """Encrypt four bytes and decrypt what came; the content is not compared. Raises `CallFailed`."""
        self._client.decrypt(self._client.encrypt(b"ping"))

    def write(self, path: str, plaintext: bytes) -> None:
        """Raises `CallFailed`."""
        key = os.urandom(32)
        cipher = self._client.encrypt(key)
        self.etcd.put(path, stored.write_v1(self.provider, cipher, key, plaintext, path))
        self._remember(cipher, key)

    def read(self, path: str) -> bytes:
        """Raises `CallFailed`, and ValueError for a key of no AES length."""
        cipher, data = stored.read_v1(self.provider, self.etcd.get(path))
        with self._lock:
            key = self._cache.get(cipher)
        if key is None:
            with self._lock:
                self.decrypts += 1
            key = self._client.decrypt(cipher)
            if len(key) not in (16, 24, 32):
                raise ValueError(f"Decrypt gave {len(key)} bytes, no AES key")
            self._remember(cipher, key)
        return stored.decrypt_v1(key, data, path)

    def forget(self) -> None:
        """As after a restart."""
        with self._lock:
            self._cache.clear()

    def read_all(self, *, threads: int = 16) -> dict[str, bytes]:
        """Every object, in parallel."""
        paths = self.etcd.paths()
        with ThreadPoolExecutor(threads) as pool:
            return dict(zip(paths, pool.map(self.read, paths), strict=True))

    def _remember(self, cipher: bytes, key: bytes) -> None:
        with self._lock:
            self._cache[cipher] = key
            while len(self._cache) > self._limit:
                self._cache.popitem(last=False)
