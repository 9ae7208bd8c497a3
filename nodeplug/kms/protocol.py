"""The KMS wire, both ways and both versions; the only module of the door that knows it.

Requests come as bytes and become values; values become bytes; errors become status codes by the table at the end.
"""

import re
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message

from nodeplug.core import errors
from nodeplug.kms import v1cipher
from nodeplug.kms.contract import (
    LONGEST_CIPHERTEXT,
    LONGEST_KEY_ID,
    LONGEST_PLAINTEXT,
    MOST_ANNOTATION_BYTES,
    Encrypted,
)
from nodeplug.pb.kms import v1beta1_pb2, v2_pb2

V2_SERVICE = "v2.KeyManagementService"
V1BETA1_SERVICE = "v1beta1.KeyManagementService"
V1BETA1 = "v1beta1"

_LONGEST_UID = 256
_ANNOTATION = re.compile(r"(?=.{1,253}$)([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class EncryptRequest:
    """`uid` names the call; v1beta1 has none."""

    plaintext: bytes
    uid: str = ""


@dataclass(frozen=True, slots=True)
class DecryptRequest:
    """Likewise."""

    encrypted: Encrypted
    uid: str = ""


def _parse(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise errors.Malformed(f"the request is not a {message.DESCRIPTOR.full_name}") from None


def _printable(uid: str) -> str:
    """A uid fit for a log; it comes from the caller."""
    return uid if len(uid) <= _LONGEST_UID and uid.isprintable() else "unprintable"


def _plaintext(data: bytes) -> bytes:
    if not 1 <= len(data) <= LONGEST_PLAINTEXT:
        raise errors.Malformed(f"plaintext has {len(data)} bytes; 1 to {LONGEST_PLAINTEXT} are encrypted")
    return data


def read_v2_status(data: bytes) -> None:
    """Raises `Malformed`, as all readers here do."""
    _parse(v2_pb2.StatusRequest(), data)


def read_v2_encrypt(data: bytes) -> EncryptRequest:
    message = v2_pb2.EncryptRequest()
    _parse(message, data)
    return EncryptRequest(_plaintext(message.plaintext), message.uid)


def read_v2_decrypt(data: bytes) -> DecryptRequest:
    message = v2_pb2.DecryptRequest()
    _parse(message, data)
    ciphertext, key_id, uid = message.ciphertext, message.key_id, message.uid
    if _size(len(ciphertext)) + _size(len(key_id)) + _size(len(uid)) == len(data):
        # Nothing else is in it, and an empty map costs more to make and to copy than all of the rest.
        encrypted = Encrypted(ciphertext, key_id)
    else:
        encrypted = Encrypted(ciphertext, key_id, dict(message.annotations))
    check_shape(encrypted)
    return DecryptRequest(encrypted, uid)


def _size(length: int) -> int:
    """What a field of so many bytes takes on the wire; of a text that is not ASCII this is too little."""
    return length and length + (2 if length < 0x80 else 3 if length < 0x4000 else 4)


def read_v2_uid(data: bytes) -> str:
    """The uid of an Encrypt or a Decrypt, fit for a log; "" for bytes that are neither."""
    message = v2_pb2.DecryptRequest()  # in both it is field 2, between fields of one type
    try:
        message.ParseFromString(data)
    except DecodeError:
        return ""
    return _printable(message.uid)


def read_v1_version(data: bytes) -> None:
    message = v1beta1_pb2.VersionRequest()
    _parse(message, data)
    _check_v1(message.version)


def read_v1_encrypt(data: bytes) -> EncryptRequest:
    message = v1beta1_pb2.EncryptRequest()
    _parse(message, data)
    _check_v1(message.version)
    return EncryptRequest(_plaintext(message.plain))


def read_v1_decrypt(data: bytes) -> DecryptRequest:
    """Raises `CiphertextInvalid` for a cipher that no nodeplug made."""
    message = v1beta1_pb2.DecryptRequest()
    _parse(message, data)
    _check_v1(message.version)
    encrypted = v1cipher.read(message.cipher)
    check_shape(encrypted)
    return DecryptRequest(encrypted)


def _check_v1(version: str) -> None:
    if version != V1BETA1:
        raise errors.Malformed(f'the request is for version "{version[:32]}", this is {V1BETA1}')


def check_shape(encrypted: Encrypted) -> None:
    """Hold one value to the bounds of the contract. Raises `Malformed`, never quoting the value."""
    length = len(encrypted.ciphertext)
    if not 1 <= length <= LONGEST_CIPHERTEXT:
        raise errors.Malformed(f"ciphertext has {length} bytes; 1 to {LONGEST_CIPHERTEXT} are allowed")
    if not 1 <= len(encrypted.key_id.encode()) <= LONGEST_KEY_ID:
        raise errors.Malformed(f"key_id has {len(encrypted.key_id)} characters; 1 to {LONGEST_KEY_ID} are allowed")
    total = 0
    for name, value in encrypted.annotations.items():
        total += len(name) + len(value)
        if not _ANNOTATION.fullmatch(name.removesuffix(".")):
            raise errors.Malformed("an annotation's name is not a domain name of two labels or more")
    if total > MOST_ANNOTATION_BYTES:
        raise errors.Malformed(f"annotations have {total} bytes; at most {MOST_ANNOTATION_BYTES} are allowed")


def write_v2_status(*, version: str, healthz: str, key_id: str) -> bytes:
    """`version` is "v2" or "v2beta1"; an API server insists on the first it saw."""
    return v2_pb2.StatusResponse(version=version, healthz=healthz, key_id=key_id).SerializeToString()


def write_v2_encrypt(encrypted: Encrypted) -> bytes:
    """By hand where there are no annotations: making and filling a message costs more than the encryption did."""
    if encrypted.annotations:
        return v2_pb2.EncryptResponse(
            ciphertext=encrypted.ciphertext, key_id=encrypted.key_id, annotations=encrypted.annotations
        ).SerializeToString()
    return _field(1, encrypted.ciphertext) + _field(2, encrypted.key_id.encode())


def write_v2_decrypt(plaintext: bytes) -> bytes:
    return _field(1, plaintext)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes; of any length below 16 KiB, which `check_shape` and the request's limit keep it to."""
    length = len(data)
    if length < 0x80:
        return bytes((number << 3 | 2, length)) + data
    return bytes((number << 3 | 2, length & 0x7F | 0x80, length >> 7)) + data


def write_v1_version(runtime_version: str) -> bytes:
    return v1beta1_pb2.VersionResponse(
        version=V1BETA1, runtime_name="nodeplug", runtime_version=runtime_version
    ).SerializeToString()


def write_v1_encrypt(encrypted: Encrypted) -> bytes:
    return v1beta1_pb2.EncryptResponse(cipher=v1cipher.make(encrypted)).SerializeToString()


def write_v1_decrypt(plaintext: bytes) -> bytes:
    return _field(1, plaintext)


CODES: dict[type[BaseException], int] = {
    BaseException: grpc.StatusCode.INTERNAL.value[0],
    errors.ConfigInvalid: grpc.StatusCode.INVALID_ARGUMENT.value[0],
    errors.NotFound: grpc.StatusCode.NOT_FOUND.value[0],
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION.value[0],
    errors.TryAgain: grpc.StatusCode.UNAVAILABLE.value[0],
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE.value[0],
    errors.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED.value[0],
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
    errors.Internal: grpc.StatusCode.INTERNAL.value[0],
}
"""Status codes by error. API servers only show and count them, so each says what its reader should do."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and the text for the caller; an error that is not ours says nothing of itself."""
    code = _STATUS[errors.code_of(error, CODES)]
    if isinstance(error, errors.Error):
        return code, " ".join(str(error).split())[:1024]
    return code, "a fault of nodeplug; its log names the place"
