"""Every RPC under random, mutated and oversized bytes: a named status, never a crash, never a secret in the log."""

from __future__ import annotations

import os
import random
import socket

import grpc
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from nodeplug.harness.apiserver import rules
from nodeplug.harness.apiserver.client import V1, V2, CallFailed, Channel
from nodeplug.pb.kms import v1beta1_pb2, v2_pb2
from tests.kms.node import Node
from tests.ledger import Ledger

METHODS = [
    "/v2.KeyManagementService/Status",
    "/v2.KeyManagementService/Encrypt",
    "/v2.KeyManagementService/Decrypt",
    "/v1beta1.KeyManagementService/Version",
    "/v1beta1.KeyManagementService/Encrypt",
    "/v1beta1.KeyManagementService/Decrypt",
]
ALLOWED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


@pytest.fixture(scope="module")
def running(module_ledger: Ledger) -> Node:
    node = Node(module_ledger, more='log.level = "debug"')
    node.kms("init").ok()
    node.kms("add-key").ok()
    node.kms("activate").ok()
    node.start()
    return node


@pytest.fixture
def raw(running: Node, ledger: Ledger) -> Channel:
    channel = Channel(str(running.socket), authority="localhost", timeout=10, backoff=0.1)
    ledger.adopt("channel", channel.close)
    return channel


@pytest.fixture
def v2(running: Node, ledger: Ledger) -> V2:
    client = V2(str(running.socket), timeout=10)
    ledger.adopt("client", client.close)
    return client


@pytest.fixture
def v1(running: Node, ledger: Ledger) -> V1:
    client = V1(str(running.socket), timeout=10)
    ledger.adopt("client", client.close)
    return client


def code_of(channel: Channel, method: str, data: bytes) -> str:
    try:
        channel.send(method, data)
    except CallFailed as error:
        return error.code
    return "OK"


def test_each_reply_follows_the_rules(v2: V2) -> None:
    status = v2.status()
    rules.check_status(status, rules.Memory())
    reply = v2.encrypt("uid", bytes(range(32)))
    rules.check_encrypt(reply, rules.Memory(status.version, status.key_id))
    assert v2.decrypt("other uid", reply) == bytes(range(32))
    size = len(reply.ciphertext) + len(reply.key_id) + rules.annotation_bytes(reply.annotations)
    assert size <= 150


def test_v1beta1_is_served_on_the_same_socket(v1: V1) -> None:
    assert v1.decrypt(v1.encrypt(b"ping")) == b"ping"
    seed = os.urandom(32)
    cipher = v1.encrypt(seed)
    assert v1.decrypt(cipher) == seed
    assert len(cipher) <= 150


def test_random_bytes_never_crash_a_method(running: Node, raw: Channel) -> None:
    @given(method=st.sampled_from(METHODS), data=st.binary(max_size=300))
    @limits(max_examples=600, deadline=None)
    def check(method: str, data: bytes) -> None:
        code = code_of(raw, method, data)
        # Unknown fields are skipped, so that some noise is a valid empty Status and some an Encrypt.
        assert code in ALLOWED or code == "OK", (method, data, code)

    check()
    assert code_of(raw, METHODS[0], b"") == "OK"


def test_mutated_requests_are_refused_or_answered_never_more(running: Node, raw: Channel, v2: V2, v1: V1) -> None:
    good = v2.encrypt("u", b"k" * 32)
    second = v2_pb2.DecryptRequest(ciphertext=good.ciphertext, uid="u", key_id=good.key_id).SerializeToString()
    first = v1beta1_pb2.DecryptRequest(version="v1beta1", cipher=v1.encrypt(b"k" * 32)).SerializeToString()
    dice = random.Random(7)
    for method, whole in ((METHODS[2], second), (METHODS[5], first)):
        assert code_of(raw, method, whole) == "OK"
        for _ in range(600):
            data = bytearray(whole)
            for _ in range(dice.randint(1, 3)):
                kind = dice.random()
                at = dice.randrange(len(data))
                if kind < 0.5:
                    data[at] ^= 1 << dice.randrange(8)
                elif kind < 0.75:
                    del data[at : at + dice.randint(1, 8)]
                else:
                    data[at:at] = os.urandom(dice.randint(1, 8))
                if not data:
                    data = bytearray(b"\0")
            code = code_of(raw, method, bytes(data))
            # A uid may change without harm, and so may a field that a newer client might send.
            assert code in ALLOWED or code == "OK", (method, code)


def encrypted_with(good: v2_pb2.EncryptResponse, **changes: object) -> v2_pb2.EncryptResponse:
    reply = v2_pb2.EncryptResponse()
    reply.CopyFrom(good)
    for name, value in changes.items():
        if name == "annotations":
            reply.annotations.clear()
            reply.annotations.update(value)  # type: ignore[arg-type]
        else:
            setattr(reply, name, value)
    return reply


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"key_id": "np1-374708fff771-1-00000000"}, "NOT_FOUND"),
        ({"key_id": ""}, "INVALID_ARGUMENT"),
        ({"key_id": "x" * 2000}, "INVALID_ARGUMENT"),
        ({"ciphertext": b""}, "INVALID_ARGUMENT"),
        ({"ciphertext": bytes(1025)}, "INVALID_ARGUMENT"),
        ({"ciphertext": bytes(81)}, "INVALID_ARGUMENT"),
        ({"annotations": {"a.example": b"x"}}, "INVALID_ARGUMENT"),
        ({"annotations": {"NotAName": b"x"}}, "INVALID_ARGUMENT"),
        ({"annotations": {"a.example": bytes(40_000)}}, "INVALID_ARGUMENT"),
    ],
)
def test_a_changed_part_has_its_own_answer(v2: V2, changes: dict[str, object], code: str) -> None:
    good = v2.encrypt("u", b"k" * 32)
    with pytest.raises(CallFailed) as failed:
        v2.decrypt("u", encrypted_with(good, **changes))
    assert failed.value.code == code


def test_the_key_id_of_another_key_of_the_ring_does_not_open(running: Node, v2: V2) -> None:
    ring = running.ring()
    good = v2.encrypt("u", b"k" * 32)
    other = ring.key_id(ring.entries[0])
    assert good.key_id != other
    with pytest.raises(CallFailed) as failed:
        v2.decrypt("u", encrypted_with(good, key_id=other))
    assert failed.value.code == "INVALID_ARGUMENT"


def test_a_v2_ciphertext_does_not_open_through_v1beta1(running: Node, v2: V2, v1: V1) -> None:
    good = v2.encrypt("u", b"k" * 32)
    with pytest.raises(CallFailed) as failed:
        v1.decrypt(b"np1\0" + good.SerializeToString())
    assert failed.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("size, code", [(0, "INVALID_ARGUMENT"), (1, "OK"), (512, "OK"), (513, "INVALID_ARGUMENT")])
def test_plaintexts_are_bounded(raw: Channel, size: int, code: str) -> None:
    second = v2_pb2.EncryptRequest(plaintext=bytes(size), uid="u").SerializeToString()
    first = v1beta1_pb2.EncryptRequest(version="v1beta1", plain=bytes(size)).SerializeToString()
    assert code_of(raw, METHODS[1], second) == code_of(raw, METHODS[4], first) == code


def test_another_version_than_v1beta1_is_refused(raw: Channel) -> None:
    for method, message in (
        (METHODS[3], v1beta1_pb2.VersionRequest(version="v2")),
        (METHODS[4], v1beta1_pb2.EncryptRequest(version="", plain=b"x")),
    ):
        assert code_of(raw, method, message.SerializeToString()) == "INVALID_ARGUMENT"


def test_an_oversized_message_never_reaches_the_door(raw: Channel) -> None:
    assert code_of(raw, METHODS[1], bytes(5_000_000)) == "RESOURCE_EXHAUSTED"
    assert code_of(raw, METHODS[0], b"") == "OK"


def test_an_unknown_method_is_unimplemented(raw: Channel) -> None:
    assert code_of(raw, "/v2.KeyManagementService/Destroy", b"") == "UNIMPLEMENTED"
    assert code_of(raw, "/v3.KeyManagementService/Status", b"") == "UNIMPLEMENTED"


@pytest.mark.parametrize("authority", ["localhost", "", "/run/nodeplug/kms.sock", "%2Frun%2Fkms.sock", "@abstract"])
def test_every_authority_that_go_sends_is_answered(running: Node, authority: str) -> None:
    channel = Channel(str(running.socket), authority=authority, timeout=10, backoff=0.1)
    try:
        assert code_of(channel, METHODS[0], b"") == "OK"
    finally:
        channel.close()


def test_cut_streams_leave_the_server_well(running: Node, raw: Channel) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    dice = random.Random(3)
    for number in range(60):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(running.socket))
            client.sendall(preface[: dice.randint(1, len(preface))] if number % 2 else preface + os.urandom(200))
    assert code_of(raw, METHODS[0], b"") == "OK"


def test_calls_given_up_by_the_caller_leave_nothing_behind(running: Node, raw: Channel) -> None:
    with grpc.insecure_channel(f"unix:{running.socket}") as channel:
        for _ in range(50):
            pending = channel.unary_unary(METHODS[1]).future(
                v2_pb2.EncryptRequest(plaintext=b"k" * 32).SerializeToString(), timeout=5
            )
            pending.cancel()
    assert code_of(raw, METHODS[0], b"") == "OK"


def test_no_plaintext_and_no_ciphertext_was_ever_logged(running: Node, v2: V2) -> None:
    needle = b"THE-SECRET-SEED-OF-32-BYTES-LONG"
    reply = v2.encrypt("the uid", needle)
    v2.decrypt("u", reply)
    for broken in (reply.ciphertext[:-1] + b"x", b"THE-SECRET-CIPHERTEXT"):
        with pytest.raises(CallFailed):
            v2.decrypt("u", encrypted_with(reply, ciphertext=broken))
    assert running.process is not None
    log = running.process.output()
    assert "v2/Decrypt" in log
    for secret in (needle, reply.ciphertext, b"THE-SECRET-CIPHERTEXT"):
        for form in (secret.decode("latin-1"), secret.hex(), repr(secret)[2:-1]):
            assert form not in log
    assert "Traceback" not in log
