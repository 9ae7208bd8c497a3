"""Which keys etcd still needs, read from `etcdctl get PREFIX --prefix -w json`, or from the list `verify` makes of one.

The dump may be larger than memory, so it is read as a stream, object by object. Values tell their key by themselves:
v2 in the API server's EncryptedObject, v1beta1 in nodeplug's own cipher. Nothing is decrypted but the seeds, and only
where the ring is at hand.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from nodeplug.core.errors import Error, Malformed
from nodeplug.kms import v1cipher
from nodeplug.kms.contract import Api, CiphertextInvalid, Encrypted

_CHUNK = 1 << 20
_LARGEST_OBJECT = 16 << 20
_LARGEST_LIST = 1 << 20
_V1 = b"k8s:enc:kms:v1:"
_V2 = b"k8s:enc:kms:v2:"
_BETWEEN = (b",", b" ", b"\n", b"\t", b"\r")

Check = Callable[[Encrypted, Api], None]
"""Raises an `Error` when a seed cannot be decrypted; asked once for each different seed."""


@dataclass
class Evidence:
    """What a dump says. `objects` counts by key id; `taken` is in seconds since 1970, by this node's clock."""

    taken: float
    objects: dict[str, int] = field(default_factory=dict)
    foreign: int = 0  # encrypted by something else, or not at all
    seeds: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # objects whose seed does not decrypt, by reason

    def as_list(self) -> str:
        """The same without the data, to be carried to another machine."""
        return json.dumps({"kind": "nodeplug-kms-keys", "taken": int(self.taken), "objects": self.objects}) + "\n"


def read(stream: IO[bytes], *, taken: float, check: Check | None = None) -> Evidence:
    """Evidence from a dump or a list. Raises `Malformed` when it is neither, is cut off, or is only a part."""
    head = stream.read(_CHUNK)
    start = head.lstrip()[:64].replace(b" ", b"")
    if start.startswith(b'{"kind":"nodeplug-kms-keys"'):
        return _read_list(head + stream.read(_LARGEST_LIST))
    evidence = Evidence(taken)
    judged: dict[tuple[str, bytes], str] = {}
    for value in _values(head, stream):
        _count(evidence, value, check, judged)
    evidence.seeds = len(judged)
    return evidence


def _read_list(data: bytes) -> Evidence:
    try:
        found = json.loads(data)
        objects = {str(key): int(count) for key, count in found["objects"].items()}
        return Evidence(float(found["taken"]), objects)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Malformed("the list of keys is not whole; make it again with `nodeplug kms verify --list`") from None


def _values(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """The values of a dump. Its objects are flat and their texts base64, so a closing brace ends one."""
    begin = head.find(b'"kvs":[')
    if not head.lstrip().startswith(b"{"):
        raise Malformed("this is no etcdctl dump; pipe `etcdctl get /registry --prefix -w json` in")
    if begin < 0:
        # An answer without objects has no kvs at all; etcdctl names the count only where there is one.
        _check_end(head + stream.read(_CHUNK), 0)
        return
    buffer, at, seen = head, begin + len(b'"kvs":['), 0
    while True:
        while buffer[at : at + 1] in _BETWEEN and at < len(buffer):
            at += 1
        end = buffer.find(b"}", at)
        if buffer[at : at + 1] == b"]":
            _check_end(b"{" + buffer[at + 1 :].lstrip(b", \n\t\r") + stream.read(_CHUNK), seen)
            return
        if end < 0:
            more = stream.read(_CHUNK)
            if not more:
                raise Malformed("the dump is cut off; take it again")
            if len(buffer) - at > _LARGEST_OBJECT:
                raise Malformed("the dump has an object larger than etcd allows; is it etcdctl's?")
            buffer, at = buffer[at:] + more, 0
            continue
        try:
            item = json.loads(buffer[at : end + 1])
            value = base64.b64decode(item.get("value", ""), validate=True)
        except (ValueError, AttributeError, TypeError, binascii.Error):
            raise Malformed(f"object {seen + 1} of the dump cannot be read; was it taken with -w json?") from None
        at = end + 1
        seen += 1
        yield value


def _check_end(data: bytes, seen: int) -> None:
    try:
        tail = json.loads(data)
        count, more = int(tail.get("count", 0)), bool(tail.get("more", False))
    except (ValueError, AttributeError, TypeError):
        raise Malformed("the dump is cut off at its end; take it again") from None
    if more or count != seen:
        raise Malformed(f"the dump has {seen} of {count} objects; take it without --limit")


def _count(evidence: Evidence, value: bytes, check: Check | None, judged: dict[tuple[str, bytes], str]) -> None:
    found = seed_of(value)
    if found is None:
        evidence.foreign += 1
        return
    encrypted, api = found
    evidence.objects[encrypted.key_id] = evidence.objects.get(encrypted.key_id, 0) + 1
    if check is None:
        return
    identity = (encrypted.key_id, encrypted.ciphertext)
    reason = judged.get(identity)
    if reason is None:
        try:
            check(encrypted, api)
            reason = ""
        except Error as error:
            reason = str(error)
        judged[identity] = reason
    if reason:
        evidence.failures[reason] = evidence.failures.get(reason, 0) + 1


def seed_of(value: bytes) -> tuple[Encrypted, Api] | None:
    """The encrypted seed (v2) or data key (v1beta1) in a stored value; None for one that is not nodeplug's.

    v2 after `k8s:enc:kms:v2:NAME:` is a message EncryptedObject: 2 key id, 3 encrypted seed, 4 annotations.
    """
    if value.startswith(_V2):
        body = value[len(_V2) :].partition(b":")[2]
        fields = _fields(body)
        if fields is None:
            return None
        key_id, seed, annotations = "", b"", {}
        for number, data in fields:
            if number == 2:
                key_id = data.decode("utf-8", "replace")
            elif number == 3:
                seed = data
            elif number == 4:
                pair = dict(_fields(data) or ())
                annotations[pair.get(1, b"").decode("utf-8", "replace")] = pair.get(2, b"")
        return (Encrypted(seed, key_id, annotations), Api.V2) if key_id and seed else None
    if value.startswith(_V1):
        body = value[len(_V1) :].partition(b":")[2]
        length = int.from_bytes(body[:2], "big")
        try:
            return v1cipher.read(body[2 : 2 + length]), Api.V1BETA1
        except CiphertextInvalid:
            return None
    return None


def _fields(data: bytes) -> list[tuple[int, bytes]] | None:
    """The length-delimited fields of a protobuf message, varints skipped; None when it is none."""
    found = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag >> 3 == 0:
            return None
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                return None
            found.append((tag >> 3, data[at : at + length]))
            at += length
        else:
            return None
        if at < 0:
            return None
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, next position); a position of -1 when it runs over the end."""
    value = shift = 0
    while 0 <= at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, -1
