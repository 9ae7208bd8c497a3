"""The v1beta1 cipher: four bytes of magic, then key id, ciphertext and annotations as a v2 answer has them.

v1beta1 has no place for a key id, so its cipher carries one. Used by the wire and by what reads etcd dumps.
"""

from google.protobuf.message import DecodeError

from nodeplug.core.errors import Internal
from nodeplug.kms.contract import CiphertextInvalid, Encrypted
from nodeplug.pb.kms import v2_pb2

LONGEST = 65535
"""An API server stores the length as uint16."""

_MAGIC = b"np1\0"


def make(encrypted: Encrypted) -> bytes:
    """The cipher for a value; `read` is its reverse. Raises `Internal` when annotations make it too long to store."""
    message = v2_pb2.EncryptResponse(
        ciphertext=encrypted.ciphertext, key_id=encrypted.key_id, annotations=encrypted.annotations
    )
    cipher = _MAGIC + message.SerializeToString()
    if len(cipher) > LONGEST:
        raise Internal(f"the provider's answer takes {len(cipher)} bytes, and a v1beta1 cipher at most {LONGEST}")
    return cipher


def read(cipher: bytes) -> Encrypted:
    """The value in a cipher. Raises `CiphertextInvalid` for one that is not nodeplug's or is damaged."""
    if len(cipher) > LONGEST or not cipher.startswith(_MAGIC):
        raise CiphertextInvalid("the cipher is not nodeplug's", hint="another provider's data needs that provider")
    message = v2_pb2.EncryptResponse()
    try:
        message.ParseFromString(cipher[len(_MAGIC) :])
    except DecodeError:
        raise CiphertextInvalid("the cipher is damaged: its parts cannot be told apart") from None
    return Encrypted(message.ciphertext, message.key_id, dict(message.annotations))
