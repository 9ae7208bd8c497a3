"""All cryptography of the key ring, in one place to be reviewed. No I/O but the system's random numbers.

A message is encrypted with AES-256-GCM under a key of its own, expanded by HKDF-SHA-256 from the ring's key and 32
random bytes: the count of messages that one GCM key may take (SP 800-38D: 2^32 with random nonces) is never a question,
and as no key meets a second message, the nonce is constant. What the ciphertext belongs to is bound as additional data:
format, API, key id, ring.
"""

import hmac
import json
import os
from collections.abc import Mapping
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nodeplug.kms.contract import Api, CiphertextInvalid

KEY_BYTES = 32
_FORMAT = 1
_RANDOM = 32
_TAG = 16
_NONCE = 12
_LABEL = b"nodeplug kms message 1\0"
_OVERHEAD = 1 + _RANDOM + _TAG
_FIRST = bytes([_FORMAT])
_CONSTANT = bytes(_NONCE)
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}
_SCRYPT_MOST_MEMORY = 256 << 20


class Damaged(Exception):
    """An authentication tag does not fit: another key, or changed bytes."""


def new_key() -> bytes:
    """32 bytes from the kernel."""
    return os.urandom(KEY_BYTES)


def _expand(key: bytes, label: bytes) -> bytes:
    """HKDF-Expand of RFC 5869 for its first 32 bytes, which are one HMAC: T(1) = HMAC(key, info | 0x01)."""
    return hmac.digest(key, label + b"\x01", "sha256")


def check_value(key: bytes) -> str:
    """Eight public hex digits that tell two keys of one generation apart; they say nothing useful about the key."""
    return _expand(key, b"nodeplug kms check value")[:4].hex()


def bind(api: Api, key_id: str, ring_id: str) -> bytes:
    """The additional data of a message. Neither uid nor host nor provider name: those change while data stays."""
    parts = (bytes([_FORMAT]), api.value.encode(), key_id.encode(), bytes.fromhex(ring_id))
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


class MessageKey:
    """A ring's key, made ready to encrypt messages. Used by many threads at once.

    The two blocks that an HMAC begins with are kept, and hashed anew with each message: that is quicker than the
    library's HMAC and than copies of its begun hashes.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = bytes(byte ^ 0x36 for byte in block)
        self._outer = bytes(byte ^ 0x5C for byte in block)

    def _expand(self, random: bytes) -> AESGCM:
        """The cipher of one message; the same function as `_expand` above."""
        inner = sha256(self._inner + _LABEL + random + b"\x01").digest()
        return AESGCM(sha256(self._outer + inner).digest())

    def encrypt(self, plaintext: bytes, bound: bytes) -> bytes:
        """One byte of format, 32 random ones, the ciphertext and its tag: 49 bytes longer than the plaintext."""
        random = os.urandom(_RANDOM)
        return _FIRST + random + self._expand(random).encrypt(_CONSTANT, plaintext, bound)

    def decrypt(self, ciphertext: bytes, bound: bytes) -> bytes:
        """What `encrypt` was given. Raises `CiphertextInvalid`, which does not tell one wrong byte from another."""
        if len(ciphertext) < _OVERHEAD or ciphertext[0] != _FORMAT:
            raise CiphertextInvalid("the ciphertext has no form that this ring writes")
        try:
            return self._expand(ciphertext[1 : 1 + _RANDOM]).decrypt(_CONSTANT, ciphertext[1 + _RANDOM :], bound)
        except InvalidTag:
            raise CiphertextInvalid("the ciphertext was not made by this key for this API, or was changed") from None


def wrap(key: bytes, secret: bytes, bound: bytes) -> bytes:
    """`secret` under a key that wraps few things: AES-256-GCM with a random nonce before it."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(_expand(key, b"nodeplug kms wrap")).encrypt(nonce, secret, bound)


def unwrap(key: bytes, wrapped: bytes, bound: bytes) -> bytes:
    """Raises `Damaged`."""
    try:
        return AESGCM(_expand(key, b"nodeplug kms wrap")).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], bound)
    except (InvalidTag, ValueError):
        raise Damaged from None


def entry_binding(ring_id: str, generation: int) -> bytes:
    """What a wrapped entry belongs to."""
    return b"entry" + bytes.fromhex(ring_id) + generation.to_bytes(4, "big")


def seal_binding(ring_id: str) -> bytes:
    """What a wrapped ring key belongs to."""
    return b"seal" + bytes.fromhex(ring_id)


def canonical(document: Mapping[str, object]) -> bytes:
    """One byte string for one document, whatever the order and the spaces it was read with."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def authenticate(ring_key: bytes, document: Mapping[str, object]) -> str:
    """The MAC of a document without its own `mac`, in hex."""
    body = {name: value for name, value in document.items() if name != "mac"}
    return hmac.new(_expand(ring_key, b"nodeplug kms mac"), canonical(body), sha256).hexdigest()


def is_authentic(ring_key: bytes, document: Mapping[str, object]) -> bool:
    """Whether the document's `mac` is its MAC."""
    return hmac.compare_digest(str(document.get("mac", "")), authenticate(ring_key, document))


def passphrase_parameters() -> dict[str, object]:
    """Fresh scrypt parameters: 32 MiB and about 0.1 s for each guess."""
    return {"kdf": "scrypt", "salt": os.urandom(16).hex(), **_SCRYPT}


def passphrase_key(passphrase: bytes, parameters: Mapping[str, object]) -> bytes:
    """The key a passphrase stands for. Raises `Damaged` for parameters that are none, or would exhaust the node."""
    try:
        n, r, p = (int(str(parameters[name])) for name in "nrp")
        salt = bytes.fromhex(str(parameters["salt"]))
        if parameters["kdf"] != "scrypt" or 128 * n * r * p > _SCRYPT_MOST_MEMORY or len(salt) < 16 or n < 1 << 14:
            raise Damaged
        return Scrypt(salt=salt, length=KEY_BYTES, n=n, r=r, p=p).derive(passphrase)
    except (KeyError, ValueError, TypeError):
        raise Damaged from None
