"""The provider for the transit engine of HashiCorp Vault and OpenBao.

The version of the key stands in each ciphertext ("vault:v3:..."), and that is where it is taken from: asking for it in
a second call would race with a rotation. The id that API servers see hashes namespace, mount, key name and the
version's time of creation, so that a key that was lost and made again is another key. With keys that allow it, API and
key id are bound as associated data.
"""

import base64
import binascii
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.kms.contract import (
    Call,
    CiphertextInvalid,
    Encrypted,
    KeyRetired,
    KeyUnknown,
    Provider,
    Revoked,
    Surroundings,
    Unreachable,
)
from nodeplug.kms.keyring import cipher
from nodeplug.kms.providers.vault_http import Answer, Http
from nodeplug.kms.providers.vault_login import Login

_AEAD = ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305")
_LONGEST_TRANSIT = 1024


class VaultSettings(Record):
    """`[kms.provider]` with type = "vault"."""

    address: str = key(document.name, help='where it is: "https://vault.example:8200"')
    key_: str = key(document.name, name="key", help="the transit key")
    mount: str = key(document.name, default="transit", help="where the transit engine is mounted")
    namespace: str = key(document.text, default="", help="of Vault Enterprise or OpenBao")
    auth: str = key(
        document.choice("token", "approle", "jwt", "cert"), default="token", help="how this node shows who it is"
    )
    auth_mount: str = key(document.text, default="", help="where that method is mounted; empty: under its own name")
    role: str = key(document.text, default="", help="for jwt and cert: the role")
    token_file: str = key(document.absolute_path, default="", help="for token: read at each login")
    role_id_file: str = key(document.absolute_path, default="", help="for approle; read at each login")
    secret_id_file: str = key(document.absolute_path, default="", help="for approle; read at each login")
    jwt_file: str = key(document.absolute_path, default="", help="for jwt: read at each login (a SPIFFE agent's file)")
    ca_file: str = key(document.absolute_path, default="", help="whose certificates are trusted; empty: the system's")
    cert_file: str = key(document.absolute_path, default="", help="the client certificate, for cert or mutual TLS")
    key_file: str = key(document.absolute_path, default="", help="its private key")
    server_name: str = key(document.text, default="", help="the name in the server's certificate, if not the address'")
    concurrency: int = key(document.integer(1, 256), default=16, help="calls to it at one time")
    timeout: float = key(document.duration, default=1.0, help="for one call; failed ones are tried again in time")


@dataclass(frozen=True)
class _Key:
    """What is known of the transit key: ids by version, the versions that encrypt, whether it takes associated data."""

    ids: Mapping[int, str]
    latest: int
    oldest: int
    aead: bool

    def version_of(self, key_id: str) -> int | None:
        return next((version for version, name in self.ids.items() if name == key_id), None)


class _VersionRefused(Revoked):
    """This version of the key no longer encrypts, others may."""


class Vault(Provider):
    """See the module."""

    Settings: ClassVar[type[Record]] = VaultSettings

    def __init__(self, settings: Record, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        assert isinstance(settings, VaultSettings)  # what Settings decodes to
        self._own = settings
        self.concurrency = settings.concurrency
        self._http = Http(
            settings.address,
            namespace=settings.namespace,
            ca_file=settings.ca_file,
            cert_file=settings.cert_file,
            key_file=settings.key_file,
            server_name=settings.server_name,
            timeout=settings.timeout,
            connections=settings.concurrency,
        )
        self._login = Login(settings, self._http, surroundings)
        self._lock = threading.Lock()
        self._key = _Key({}, 0, 0, aead=False)

    def key_id(self, call: Call) -> str:
        found = self._look(call)
        return found.ids[found.latest]

    def _look(self, call: Call) -> _Key:
        """Read the key's description; a cheap call without cryptography."""
        answer = self._ask(call, "GET", f"{self._own.mount}/keys/{self._own.key_}")
        try:
            data = answer.data
            versions = {int(version): _created(made) for version, made in data["keys"].items()}
            latest = int(data["latest_version"])
            kind = str(data.get("type", ""))
            ids = {version: self._id_of(version, made) for version, made in versions.items()}
            oldest = int(data.get("min_encryption_version") or 0)
            found = _Key(ids, latest, oldest, aead=kind in _AEAD)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Unreachable("the transit engine describes its key in a way that is not understood") from None
        if latest not in found.ids:
            raise Unreachable("the transit engine does not describe its newest key version")
        with self._lock:
            # A version that was trimmed keeps its id here, so that what it says is "too old", not "unknown".
            self._key = _Key({**self._key.ids, **ids}, latest, oldest, aead=found.aead)
            return self._key

    def _id_of(self, version: int, made: str) -> str:
        parts = (self._own.namespace, self._own.mount, self._own.key_, str(version), made)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return f"np1-vt-{digest[:16]}-{version}"

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        found = self._key if self._key.ids else self._look(call)
        version = found.version_of(key_id)
        if version is None or version < found.oldest:
            found = self._look(call)
            version = found.version_of(key_id) or found.latest
        if version < found.oldest:
            version = found.latest
        try:
            return self._encrypted(plaintext, found, version, call)
        except _VersionRefused:
            # min_encryption_version was raised since the key was last looked at.
            found = self._look(call)
            return self._encrypted(plaintext, found, found.latest, call)

    def _encrypted(self, plaintext: bytes, found: _Key, version: int, call: Call) -> Encrypted:
        body: dict[str, object] = {"plaintext": base64.b64encode(plaintext).decode(), "key_version": version}
        if found.aead:
            body["associated_data"] = _bound(call, found.ids[version])
        answer = self._ask(call, "POST", f"{self._own.mount}/encrypt/{self._own.key_}", body)
        text = str(answer.data.get("ciphertext", ""))
        made_by = _version_in(text)
        if made_by is None or made_by not in found.ids or (found.aead and made_by != version):
            raise Unreachable("the transit engine's ciphertext names another version than was asked for")
        return Encrypted(text.encode(), found.ids[made_by])

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        if encrypted.annotations:
            raise CiphertextInvalid("this provider writes no annotations, and the request has some")
        try:
            text = encrypted.ciphertext.decode("ascii")
        except UnicodeDecodeError:
            text = ""
        version = _version_in(text)
        if version is None:
            raise CiphertextInvalid("the ciphertext is not the transit engine's")
        found = self._key if encrypted.key_id in self._key.ids.values() else self._look(call)
        named = found.version_of(encrypted.key_id)
        if named is None:
            raise KeyUnknown(
                "the transit key has no version with the id of the request",
                hint="was the key lost and made again, or the mount or name changed in the settings?",
            )
        if named != version:
            raise CiphertextInvalid("the ciphertext is of another version than the key id")
        body: dict[str, object] = {"ciphertext": text}
        if found.aead:
            body["associated_data"] = _bound(call, encrypted.key_id)
        answer = self._ask(call, "POST", f"{self._own.mount}/decrypt/{self._own.key_}", body)
        try:
            return base64.b64decode(str(answer.data["plaintext"]), validate=True)
        except (KeyError, binascii.Error):
            raise Unreachable("the transit engine's answer has no plaintext") from None

    def _ask(self, call: Call, method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """One call with our token; one more after a new login when the token is refused."""
        for attempt in (1, 2):
            token = self._login.token(call)
            answer = self._http.ask(method, path, body, token=token, call=call)
            if answer.status != 403:
                self._login.accepted(token)
                break
            if attempt == 2 or not self._login.refused(token):
                break
        if answer.status == 400:
            raise _bad_request(answer)
        if answer.status == 403:
            raise Revoked(
                "permission denied, also for a new token",
                hint=f"the policy has to allow {method} on {path}; docs/kms.md has one",
            )
        if answer.status == 404:
            raise Revoked(f"there is nothing at {path}", hint="does the transit key exist, under this mount?")
        answer.raise_for_trouble()
        return answer

    def reload(self) -> None:
        self._login.forget()

    def close(self) -> None:
        self._login.close()
        self._http.close()


def _bound(call: Call, key_id: str) -> str:
    return base64.b64encode(cipher.bind(call.api, key_id, "")).decode()


def _version_in(text: str) -> int | None:
    """3 for "vault:v3:..."; None for anything else."""
    parts = text.split(":", 2)
    if len(parts) != 3 or parts[0] != "vault" or not parts[1].startswith("v") or len(text) > _LONGEST_TRANSIT:
        return None
    digits = parts[1][1:]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def _created(value: Any) -> str:
    """A symmetric key's version is described by a number, an asymmetric one's by an object."""
    return str(value.get("creation_time", "")) if isinstance(value, dict) else str(int(value))


def _bad_request(answer: Answer) -> Exception:
    said = answer.errors.lower()
    if "disallowed by policy" in said or "too old" in said:
        return KeyRetired(
            "the transit engine no longer decrypts with this version", hint="lower min_decryption_version again"
        )
    if "less than the minimum encryption key version" in said:
        return _VersionRefused("the transit engine no longer encrypts with this version")
    if "not found" in said:
        return Revoked("the transit engine has no such key, or no such version", hint="was it trimmed or deleted?")
    if any(word in said for word in ("authentication failed", "invalid ciphertext", "could not decode", "decrypt")):
        return CiphertextInvalid("the transit engine did not make this ciphertext for this key and API")
    return Revoked("the transit engine refuses the request", hint="its own log says more")
