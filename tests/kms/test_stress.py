"""A million pairs over rotations, all verified, memory flat. Minutes long: `make stress`."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import grpc
import pytest

from nodeplug.harness.apiserver.client import V2
from nodeplug.pb.kms import v2_pb2
from tests.child import until
from tests.kms.node import Node
from tests.ledger import Ledger

PAIRS = int(os.environ.get("NODEPLUG_KMS_PAIRS", "1000000"))
ROTATIONS = 20
ENCRYPT, DECRYPT = "/v2.KeyManagementService/Encrypt", "/v2.KeyManagementService/Decrypt"


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.stress
def test_a_million_pairs_over_rotations_are_all_right_and_memory_stays_flat(ledger: Ledger, node: Node) -> None:
    process = node.start()
    status = V2(str(node.socket))
    ledger.adopt("client", status.close)
    channel = grpc.insecure_channel(f"unix:{node.socket}")
    ledger.adopt("channel", channel.close)
    encrypt: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ENCRYPT)
    decrypt: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(DECRYPT)
    room = threading.Semaphore(64)
    wrong: list[str] = []
    kept: dict[str, bytes] = {}
    verified = 0
    lock = threading.Lock()

    def pair(number: int) -> None:
        seed = number.to_bytes(32, "big")

        def decrypted(future: grpc.Future) -> None:
            nonlocal verified
            room.release()
            if future.exception() is not None:
                wrong.append(repr(future.exception()))
            elif v2_pb2.DecryptResponse.FromString(future.result()).plaintext != seed:
                wrong.append(f"pair {number} came back as something else")
            else:
                with lock:
                    verified += 1

        def encrypted(future: grpc.Future) -> None:
            if future.exception() is not None:
                wrong.append(repr(future.exception()))
                room.release()
                return
            reply = v2_pb2.EncryptResponse.FromString(future.result())
            request = v2_pb2.DecryptRequest(ciphertext=reply.ciphertext, uid="u", key_id=reply.key_id)
            data = request.SerializeToString()
            kept.setdefault(reply.key_id, data)
            decrypt.future(data, timeout=30).add_done_callback(decrypted)

        room.acquire()
        data = v2_pb2.EncryptRequest(plaintext=seed, uid="u").SerializeToString()
        encrypt.future(data, timeout=30).add_done_callback(encrypted)

    sizes = []
    for part in range(ROTATIONS):
        for number in range(part * PAIRS // ROTATIONS, (part + 1) * PAIRS // ROTATIONS):
            pair(number)
            assert not wrong, wrong[:3]
        node.kms("add-key").ok()
        node.kms("activate").ok()
        until(lambda: status.status().key_id == node.active(), "the new key is published")
        sizes.append(resident(process.pid))
    for _ in range(64):
        room.acquire()
    assert not wrong, wrong[:3]
    assert verified == PAIRS
    assert len(kept) >= ROTATIONS
    for data in kept.values():  # one of each key's first, under all the keys since
        decrypt(data, timeout=10)
    print(f"\n{verified:,} pairs, {len(kept)} keys; RSS MiB {[size >> 20 for size in sizes]}")
    # The ring grows by a key for each rotation, and the allocator settles in the first quarter.
    assert sizes[-1] - sizes[ROTATIONS // 4] < 6 << 20
