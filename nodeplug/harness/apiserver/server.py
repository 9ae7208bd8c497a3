"""An API server with a v2 provider: it probes, keeps a seed, writes while its state is valid, caches for ever.

What it does, and when, follows the real one: Status and, for a new key, Encrypt every minute (every ten seconds while
that fails), a health check on the same path cached for 20 or 3 seconds, writes for three minutes after the start of the
last good Status, reads by cached seeds for as long as it runs, one Decrypt for each miss without joining equal ones.
"""

import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from nodeplug.harness.apiserver import rules, stored
from nodeplug.harness.apiserver.client import TIMEOUT, V2, CallFailed
from nodeplug.harness.apiserver.clock import Clock
from nodeplug.harness.apiserver.etcd import Etcd
from nodeplug.harness.apiserver.rules import Memory, RuleBroken
from nodeplug.pb.kms import v2_pb2

POLL_GOOD = 60.0
POLL_BAD = 10.0
HEALTH_GOOD = 20.0
HEALTH_BAD = 3.0
VALID = 180.0


class WriteRefused(Exception):
    """No valid state: the API server fails the user's write."""


@dataclass(frozen=True)
class State:
    """What writes use. `expires` is on the server's clock."""

    seed: bytes
    encrypted: v2_pb2.EncryptResponse
    expires: float


@dataclass(frozen=True)
class Counts:
    """What happened so far."""

    probes: int = 0
    failed_probes: int = 0
    encrypts: int = 0
    decrypts: int = 0


class ApiServer:
    """Between `start()` and `stop()` it probes by itself; reads and writes are called by the test.

    `failures` keeps each failed probe's reason. `restart()` forgets what a process forgets.
    """

    def __init__(
        self,
        socket: str,
        etcd: Etcd,
        *,
        clock: Clock | None = None,
        provider: str = "np",
        timeout: float = TIMEOUT,
    ) -> None:
        self.etcd = etcd
        self.clock = clock or Clock()
        self.provider = provider
        self.failures: list[str] = []
        self.counts = Counts()
        self._socket = socket
        self._timeout = timeout
        self._client = self._connect()
        self._memory = Memory()
        self._state: State | None = None
        self._cache: dict[object, bytes] = {}
        self._health: tuple[float, str] = (0.0, "not checked")
        self._probing = threading.Lock()
        self._counting = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def _connect(self) -> V2:
        return V2(self._socket, timeout=self._timeout, backoff=1.0 / self.clock.speed)

    def start(self) -> None:
        """The first probe, inline, then the loop. A plugin that is down does not stop a start."""
        good = self.probe()
        self._thread = threading.Thread(target=self._poll, args=(self._stopped,), kwargs={"good": good}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self._timeout * 2 + 5)
        self._client.close()

    def restart(self) -> None:
        """A new process on the same etcd: no seed, no cache, no memory of a version."""
        self.stop()
        self._stopped = threading.Event()
        self._client = self._connect()
        self._memory, self._state, self._cache = Memory(), None, {}
        self._health = (0.0, "not checked")
        self.start()

    def _poll(self, stopped: threading.Event, *, good: bool) -> None:
        while not self.clock.wait(stopped, POLL_GOOD if good else POLL_BAD):
            good = self.probe()

    def probe(self) -> bool:
        """Status, and Encrypt where the key is new; whether all of it was good."""
        with self._probing:
            began = self.clock.now()
            try:
                self._probe(began)
            except (CallFailed, RuleBroken) as error:
                self._count(probes=1, failed_probes=1)
                self.failures.append(str(error))
                self._health = (began + HEALTH_BAD, str(error))
                return False
            self._count(probes=1)
            self._health = (began + HEALTH_GOOD, "")
            return True

    def _probe(self, began: float) -> None:
        status = self._client.status()
        rules.check_status(status, self._memory)
        self._memory = Memory(self._memory.version or status.version, status.key_id)
        state = self._state
        if state is not None and state.encrypted.key_id == status.key_id:
            self._state = replace(state, expires=began + VALID)
            return
        seed = os.urandom(rules.SEED_BYTES)
        self._count(encrypts=1)
        encrypted = self._client.encrypt(str(uuid.uuid4()), seed)
        rules.check_encrypt(encrypted, self._memory)
        fresh = State(seed, encrypted, began + VALID)
        self._cache[_identity(encrypted)] = seed
        self._state = fresh

    def healthz(self) -> str:
        """What /readyz says of the provider: "" when it is well. The same probe, cached."""
        until, said = self._health
        if self.clock.now() >= until:
            self.probe()
            _, said = self._health
        return said

    @property
    def key_id(self) -> str:
        """The key of the current state; empty before the first."""
        return self._state.encrypted.key_id if self._state else ""

    def write(self, path: str, plaintext: bytes) -> None:
        """Raises `WriteRefused` without a state, or with one that has expired."""
        state = self._state
        if state is None:
            raise WriteRefused("no state yet")
        if self.clock.now() > state.expires:
            raise WriteRefused("the state has expired")
        data = stored.encrypt_data(state.seed, plaintext, path)
        encrypted = state.encrypted
        item = stored.EncryptedObject(data, encrypted.key_id, encrypted.ciphertext, dict(encrypted.annotations))
        self.etcd.put(path, stored.write_v2(self.provider, item))

    def read(self, path: str) -> bytes:
        """Raises `CallFailed` or `RuleBroken` when the plugin does not give the seed back."""
        return self._read(path)[0]

    def is_stale(self, path: str) -> bool:
        """Whether the next update, even one that changes nothing, would write it anew."""
        return self._read(path)[1] != self.key_id

    def _read(self, path: str) -> tuple[bytes, str]:
        item = stored.read_v2(self.provider, self.etcd.get(path))
        seed = self._cache.get(item.identity())
        if seed is None:
            self._count(decrypts=1)
            encrypted = v2_pb2.EncryptResponse(
                ciphertext=item.seed, key_id=item.key_id, annotations=dict(item.annotations)
            )
            seed = self._client.decrypt(str(uuid.uuid4()), encrypted)
            rules.check_seed(seed)
            self._cache[item.identity()] = seed
        return stored.decrypt_data(seed, item.data, path), item.key_id

    def read_all(self, *, threads: int = 16) -> dict[str, bytes]:
        """Every object, in parallel as informers do after a start."""
        paths = self.etcd.paths()
        with ThreadPoolExecutor(threads) as pool:
            return dict(zip(paths, pool.map(self.read, paths), strict=True))

    def migrate(self) -> int:
        """Storage migration: rewrite what is stale; how many objects that were."""
        count = 0
        for path in self.etcd.paths():
            plaintext, key_id = self._read(path)
            if key_id != self.key_id:
                self.write(path, plaintext)
                count += 1
        return count

    def _count(self, **more: int) -> None:
        with self._counting:
            self.counts = replace(self.counts, **{name: getattr(self.counts, name) + n for name, n in more.items()})


def _identity(encrypted: v2_pb2.EncryptResponse) -> object:
    return encrypted.key_id, encrypted.ciphertext, tuple(sorted(encrypted.annotations.items()))
