"""What an API server writes into etcd: a prefix that names the provider, then the encrypted object.

v2: the message EncryptedObject {1 data, 2 key id, 3 encrypted seed, 4 annotations, 5 type}, the data under a key of its
own expanded from the seed. v1: a length, the encrypted data key, the data under that key. Both bind the object's path.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_V1 = "k8s:enc:kms:v1:"
_V2 = "k8s:enc:kms:v2:"
_INFO = 32
_NONCE = 12
_SEED_TYPE = 1  # HKDF_SHA256_XNONCE_AES_GCM_SEED


@dataclass(frozen=True)
class EncryptedObject:
    """A stored v2 object, taken apart."""

    data: bytes
    key_id: str
    seed: bytes
    annotations: Mapping[str, bytes]

    def identity(self) -> tuple[str, bytes, tuple[tuple[str, bytes], ...]]:
        """What a seed is cached by."""
        return self.key_id, self.seed, tuple(sorted(self.annotations.items()))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def write_v2(provider: str, item: EncryptedObject) -> bytes:
    """The value for etcd."""
    parts = [_field(1, item.data), _field(2, item.key_id.encode()), _field(3, item.seed)]
    parts += [
        _field(4, _field(1, name.encode()) + _field(2, value)) for name, value in sorted(item.annotations.items())
    ]
    parts.append(_varint(5 << 3) + _varint(_SEED_TYPE))
    return f"{_V2}{provider}:".encode() + b"".join(parts)


def read_v2(provider: str, value: bytes) -> EncryptedObject:
    """Raises ValueError for what this provider did not write."""
    prefix = f"{_V2}{provider}:".encode()
    if not value.startswith(prefix):
        raise ValueError("not a v2 object of this provider")
    data, key_id, seed = b"", "", b""
    annotations: dict[str, bytes] = {}
    for number, field in _fields(value[len(prefix) :]):
        if number == 1:
            data = field
        elif number == 2:
            key_id = field.decode()
        elif number == 3:
            seed = field
        elif number == 4:
            pair = dict(_fields(field))
            annotations[pair.get(1, b"").decode()] = pair.get(2, b"")
    return EncryptedObject(data, key_id, seed, annotations)


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 2:
            if at + value > len(data):
                raise ValueError("a field runs over the end")
            found.append((tag >> 3, data[at : at + value]))
            at += value
        elif tag & 7:
            raise ValueError("a field of another kind")
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def encrypt_data(seed: bytes, plaintext: bytes, path: str) -> bytes:
    """32 random bytes, a nonce, and the data under the key they give with the seed."""
    info, nonce = os.urandom(_INFO), os.urandom(_NONCE)
    key = HKDFExpand(SHA256(), 32, info).derive(seed)
    return info + nonce + AESGCM(key).encrypt(nonce, plaintext, path.encode())


def decrypt_data(seed: bytes, data: bytes, path: str) -> bytes:
    """Raises cryptography's InvalidTag when seed and data do not belong together."""
    key = HKDFExpand(SHA256(), 32, data[:_INFO]).derive(seed)
    return AESGCM(key).decrypt(data[_INFO : _INFO + _NONCE], data[_INFO + _NONCE :], path.encode())


def write_v1(provider: str, cipher: bytes, key: bytes, plaintext: bytes, path: str) -> bytes:
    """The value for etcd. Raises ValueError for a cipher whose length does not fit into 16 bits."""
    if len(cipher) > 0xFFFF:
        raise ValueError(f"the encrypted data key has {len(cipher)} bytes")
    nonce = os.urandom(_NONCE)
    data = nonce + AESGCM(key).encrypt(nonce, plaintext, path.encode())
    return f"{_V1}{provider}:".encode() + len(cipher).to_bytes(2, "big") + cipher + data


def read_v1(provider: str, value: bytes) -> tuple[bytes, bytes]:
    """(encrypted data key, data). Raises ValueError for what this provider did not write."""
    prefix = f"{_V1}{provider}:".encode()
    if not value.startswith(prefix):
        raise ValueError("not a v1 object of this provider")
    body = value[len(prefix) :]
    length = int.from_bytes(body[:2], "big")
    return body[2 : 2 + length], body[2 + length :]


def decrypt_v1(key: bytes, data: bytes, path: str) -> bytes:
    """Raises cryptography's InvalidTag."""
    return AESGCM(key).decrypt(data[:_NONCE], data[_NONCE:], path.encode())
