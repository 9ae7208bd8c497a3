"""What an API server accepts from a v2 plugin, rule by rule (KEP-3299, kmsv2/envelope.go and encryptionconfig).

A broken rule makes the server throw the reply away; the message says which one, as conformance reports do.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodeplug.pb.kms import v2_pb2

LONGEST_KEY_ID = 1024
LONGEST_CIPHERTEXT = 1024
MOST_ANNOTATION_BYTES = 32 * 1024
SEED_BYTES = 32
VERSIONS = ("v2", "v2beta1")

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class RuleBroken(Exception):
    """`rule` is the name of one in the tables below."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass(frozen=True)
class Memory:
    """What a reply is judged against: the first version ever seen, and the key id of the Status just before."""

    version: str = ""
    status_key_id: str = ""


def _version_known(reply: v2_pb2.StatusResponse, _memory: Memory) -> str:
    return "" if reply.version in VERSIONS else f"version is {reply.version!r}, not one of {', '.join(VERSIONS)}"


def _version_constant(reply: v2_pb2.StatusResponse, memory: Memory) -> str:
    if not memory.version or reply.version == memory.version:
        return ""
    return f"version was {memory.version!r} and is now {reply.version!r}"


def _healthy(reply: v2_pb2.StatusResponse, _memory: Memory) -> str:
    return "" if reply.healthz == "ok" else f"healthz is {reply.healthz!r}"


def _key_id_present(reply: v2_pb2.StatusResponse | v2_pb2.EncryptResponse, _memory: Memory) -> str:
    return "" if reply.key_id else "key_id is empty"


def _key_id_short(reply: v2_pb2.StatusResponse | v2_pb2.EncryptResponse, _memory: Memory) -> str:
    length = len(reply.key_id.encode())
    return "" if length <= LONGEST_KEY_ID else f"key_id has {length} bytes"


def _key_id_of_status(reply: v2_pb2.EncryptResponse, memory: Memory) -> str:
    if reply.key_id == memory.status_key_id:
        return ""
    return f"encrypted with {reply.key_id!r}, but Status named {memory.status_key_id!r}"


def _ciphertext_size(reply: v2_pb2.EncryptResponse, _memory: Memory) -> str:
    length = len(reply.ciphertext)
    return "" if 1 <= length <= LONGEST_CIPHERTEXT else f"ciphertext has {length} bytes"


def _annotation_names(reply: v2_pb2.EncryptResponse, _memory: Memory) -> str:
    for name in reply.annotations:
        if not is_domain_name(name):
            return f"annotation {name!r} is not a fully qualified domain name in lower case"
    return ""


def _annotations_size(reply: v2_pb2.EncryptResponse, _memory: Memory) -> str:
    total = annotation_bytes(reply.annotations)
    return "" if total <= MOST_ANNOTATION_BYTES else f"annotations have {total} bytes"


STATUS: Mapping[str, Callable[[v2_pb2.StatusResponse, Memory], str]] = {
    "status-version-known": _version_known,
    "status-version-constant": _version_constant,
    "status-healthy": _healthy,
    "status-key-id-present": _key_id_present,
    "status-key-id-short": _key_id_short,
}
ENCRYPT: Mapping[str, Callable[[v2_pb2.EncryptResponse, Memory], str]] = {
    "encrypt-key-id-present": _key_id_present,
    "encrypt-key-id-short": _key_id_short,
    "encrypt-key-id-of-status": _key_id_of_status,
    "encrypt-ciphertext-size": _ciphertext_size,
    "encrypt-annotation-names": _annotation_names,
    "encrypt-annotations-size": _annotations_size,
}


def check_status(reply: v2_pb2.StatusResponse, memory: Memory) -> None:
    """Raises `RuleBroken` for the first rule that the reply breaks."""
    for rule, judge in STATUS.items():
        if message := judge(reply, memory):
            raise RuleBroken(rule, message)


def check_encrypt(reply: v2_pb2.EncryptResponse, memory: Memory) -> None:
    """Likewise."""
    for rule, judge in ENCRYPT.items():
        if message := judge(reply, memory):
            raise RuleBroken(rule, message)


def check_seed(seed: bytes) -> None:
    """What Decrypt gave back for a seed. Raises `RuleBroken`."""
    if len(seed) < SEED_BYTES:
        raise RuleBroken("decrypt-seed-size", f"the seed has {len(seed)} bytes, fewer than {SEED_BYTES}")


def is_domain_name(name: str) -> bool:
    """Two labels or more, 253 characters at most; a dot at the end is let pass."""
    name = name.removesuffix(".")
    labels = name.split(".")
    return len(name) <= 253 and len(labels) >= 2 and all(_LABEL.fullmatch(label) for label in labels)


def annotation_bytes(annotations: Mapping[str, bytes]) -> int:
    """How much they count."""
    return sum(len(name.encode()) + len(value) for name, value in annotations.items())
