"""Processes that the KMS benchmarks measure against: a bare gRPC echo, and a provider that takes its time.

python -m tests.bench.kms_parts echo SOCKET
python -m tests.bench.kms_parts slow --config FILE
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from nodeplug.core import document
from nodeplug.core.record import Record, key
from nodeplug.kms import Call, Encrypted, Provider, run

SERVICE = "v2.KeyManagementService"


class SlowSettings(Record):
    """How slow, and how many at once."""

    pause: float = key(document.duration, default=0.005)
    concurrency: int = key(document.integer(1, 64), default=16)


class Slow(Provider):
    """Stands for a backend at some distance: each call takes `pause`, none needs the processor."""

    Settings = SlowSettings

    @property
    def concurrency(self) -> int:
        assert isinstance(self.settings, SlowSettings)
        return self.settings.concurrency

    def _pause(self) -> None:
        assert isinstance(self.settings, SlowSettings)
        time.sleep(self.settings.pause)

    def key_id(self, call: Call) -> str:
        return "slow-1"

    def encrypt(self, plaintext: bytes, key_id: str, call: Call) -> Encrypted:
        self._pause()
        return Encrypted(plaintext[::-1], key_id)

    def decrypt(self, encrypted: Encrypted, call: Call) -> bytes:
        self._pause()
        return encrypted.ciphertext[::-1]


def echo(path: str) -> None:
    """The floor of this stack: grpcio's thread server giving back what it gets."""
    import grpc

    handler = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    methods = dict.fromkeys(("Status", "Encrypt", "Decrypt"), handler)
    service = grpc.method_handlers_generic_handler(SERVICE, methods)
    server = grpc.server(ThreadPoolExecutor(8), handlers=[service])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    mode = sys.argv.pop(1)
    if mode == "echo":
        echo(sys.argv[1])
    else:
        run(Slow)
