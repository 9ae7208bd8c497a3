"""The local provider: AES-256-GCM with keys of a sealed ring on this node. No network, no token, no second process.

Answers come from one immutable snapshot of the ring, swapped whole when the file changes. A file that has become bad
leaves the snapshot serving and breaks the condition `keyring`, so that somebody mends it before the next start.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from prometheus_client import Gauge

from nodeplug.core import document, paths
from nodeplug.core.errors import Error, Unavailable
from nodeplug.core.record import Record, key
from nodeplug.daemon.health import Condition
from nodeplug.kms.contract import (
    Api,
    Call,
    CiphertextInvalid,
    Encrypted,
    KeyRetired,
    KeyUnknown,
    Provider,
    Surroundings,
)
from nodeplug.kms.keyring import cipher, seals
from nodeplug.kms.keyring.ring import State
from nodeplug.kms.keyring.store import Opened, RolledBack, Store
from nodeplug.kms.keyring.usage import Usage

KEYRING = paths.VAR + "/kms/keyring.json"


class LocalSettings(Record):
    """`[kms.provider]` with type = "local"."""

    keyring: str = key(document.absolute_path, default=KEYRING, help="the key ring's file")
    seal: str = key(
        document.choice(*seals.KINDS), default="systemd-credential", help="what keeps the ring's own key on this node"
    )
    passphrase_file: str = key(
        document.absolute_path, default="", help='the passphrase, for seal = "passphrase-file"; 0600'
    )
    credential: str = key(
        document.absolute_path,
        default=paths.ETC + "/kms.cred",
        help='the encrypted credential, for seal = "systemd-credential"; `init` makes it',
    )
    credential_key: str = key(
        document.choice("auto", "host", "tpm2", "host+tpm2"),
        default="auto",
        help="what systemd encrypts the credential to (systemd-creds --with-key)",
    )


def open_store(settings: LocalSettings, environ: Mapping[str, str]) -> Store:
    """The ring file that the settings name; for the daemon and the commands alike."""
    seal = seals.make(
        settings.seal,
        passphrase_file=settings.passphrase_file,
        credential=settings.credential,
        with_key=settings.credential_key,
        directory=environ.get("CREDENTIALS_DIRECTORY", ""),
    )
    return Store(settings.keyring, seal)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a call needs of a ring, ready to use."""

    ring_id: str
    revision: int
    active: str
    keys: Mapping[str, cipher.MessageKey]
    bound: Mapping[tuple[Api, str], bytes]
    unusable: Mapping[str, State]


def _snapshot(opened: Opened) -> _Snapshot:
    ring = opened.ring
    keys = {name: cipher.MessageKey(key) for name, key in opened.material().items()}
    return _Snapshot(
        ring_id=ring.ring_id,
        revision=ring.revision,
        active=ring.key_id(ring.active) if ring.active else "",
        keys=keys,
        bound={(api, key_id): cipher.bind(api, key_id, ring.ring_id) for api in Api for key_id in keys},
        unusable={ring.key_id(entry): ring.state(entry) for entry in ring.entries if ring.key_id(entry) not in keys},
    )


class Local(Provider):
    """See the module."""

    Settings: ClassVar[type[Record]] = LocalSettings
    in_process: ClassVar[bool] = True

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        assert isinstance(settings, LocalSettings)  # what Settings decodes to
        self._store = open_store(settings, surroundings.environ)
        self._reloading = threading.Lock()
        self._snapshot = _snapshot(self._store.load())
        self._usage = Usage(settings.keyring)
        self._stop = threading.Event()
        self._revision = Gauge(
            "nodeplug_kms_keyring_revision", "Revision of the ring in use.", registry=surroundings.registry
        )
        self._revision.set(self._snapshot.revision)
        surroundings.health.set("keyring", Condition(ok=True))
        self._keeper = threading.Thread(target=self._keep_usage, name="kms-usage", daemon=True)
        self._keeper.start()

    @property
    def watched(self) -> str:
        """The directory in which a change may mean a new ring."""
        return os.path.dirname(self._store.path)

    def key_id(self, call: Call) -> str:
        if not self._snapshot.active:
            raise Unavailable(
                "no key of this ring is active",
                hint="carry the pending key to every node, then run `nodeplug kms activate --confirm FINGERPRINT`",
            )
        return self._snapshot.active

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        snapshot = self._snapshot
        # The published key may have been retired since by a hasty operator; then the active one is the honest answer.
        name = key_id if key_id in snapshot.keys else self.key_id(call)
        return Encrypted(snapshot.keys[name].encrypt(plaintext, snapshot.bound[call.api, name]), name)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        snapshot = self._snapshot
        material = snapshot.keys.get(encrypted.key_id)
        if material is None:
            raise self._missing(snapshot, encrypted.key_id)
        if encrypted.annotations:
            raise CiphertextInvalid("this provider writes no annotations, and the request has some")
        plaintext = material.decrypt(encrypted.ciphertext, snapshot.bound[call.api, encrypted.key_id])
        self._usage.touch(encrypted.key_id)
        return plaintext

    def _missing(self, snapshot: _Snapshot, key_id: str) -> Error:
        state = snapshot.unusable.get(key_id)
        if state is State.RETIRED:
            return KeyRetired(f"the key {key_id} is retired", hint=f"run `nodeplug kms reinstate --key {key_id}`")
        if state is State.DESTROYED:
            return KeyUnknown(f"the key {key_id} was destroyed on this node", hint="import an export that holds it")
        return KeyUnknown(
            "no key with the id of the request is in this ring",
            hint="if another node has it, carry it here with `nodeplug kms export` and `nodeplug kms import --merge`",
        )

    def reload(self) -> None:
        with self._reloading:
            try:
                # Looked at every half minute too, and a seal may take a second of a TPM to open.
                if self.surroundings.health.conditions["keyring"].ok and not self._store.changed():
                    return
                opened = self._store.load()
                before = self._snapshot
                if opened.ring.ring_id == before.ring_id and opened.ring.revision < before.revision:
                    raise RolledBack(
                        f"{self._store.path} went back from revision {before.revision} to {opened.ring.revision}"
                    )
                fresh = _snapshot(opened)
            except Error as error:
                if self.surroundings.health.set("keyring", Condition(ok=False, message=str(error))):
                    self.surroundings.note(
                        f"the key ring on disk is not taken, the one in memory serves on: {error}", level="error"
                    )
                return
            self._snapshot = fresh
            self._revision.set(fresh.revision)
            if fresh.revision != before.revision:
                self.surroundings.note(f"key ring at revision {fresh.revision}; active is {fresh.active or 'no key'}")
            self.surroundings.health.set("keyring", Condition(ok=True))

    def _keep_usage(self) -> None:
        while not self._stop.wait(60.0):
            self._usage.flush()

    def close(self) -> None:
        self._stop.set()
        self._usage.flush()
