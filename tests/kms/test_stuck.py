"""A backend that hangs for good: Status is answered, health says so, and the process starts and ends all the same."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from nodeplug.core import document
from nodeplug.daemon.health import Health
from nodeplug.harness.apiserver.client import V2
from nodeplug.kms.contract import Surroundings
from nodeplug.kms.prober import Pace, Prober
from nodeplug.pb.kms import v2_pb2
from tests.child import until
from tests.kms.node import Node
from tests.kms.stuck import Stuck
from tests.ledger import Ledger

ENCRYPT = "/v2.KeyManagementService/Encrypt"


@pytest.fixture
def gate(directory: Path) -> Path:
    return directory / "gate"


@pytest.fixture
def stuck(ledger: Ledger, gate: Path) -> Node:
    return Node(ledger, provider=f'gate = "{gate}"\n')


def start(ledger: Ledger, node: Node) -> V2:
    argv = [sys.executable, "-m", "tests.kms.stuck", "--config", str(node.config)]
    node.process = ledger.start(argv, env=dict(os.environ))
    until(node.answers, "the socket answers", timeout=20)
    client = V2(str(node.socket), timeout=3)  # as long as an API server waits
    ledger.adopt("client", client.close)
    return client


def flood(ledger: Ledger, node: Node, count: int) -> None:
    """So many Encrypts that are under way until the test ends."""
    channel = grpc.insecure_channel(f"unix:{node.socket}", options=[("grpc.use_local_subchannel_pool", 1)])
    ledger.adopt("channel", channel.close)
    send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ENCRYPT)
    data = v2_pb2.EncryptRequest(plaintext=bytes(32), uid="u").SerializeToString()
    for _ in range(count):
        send.future(data, timeout=60)
    time.sleep(1.0)  # nothing shows from outside when a call waits inside


def test_a_status_is_answered_while_a_hundred_calls_wait_for_the_backend(
    ledger: Ledger, stuck: Node, gate: Path
) -> None:
    client = start(ledger, stuck)
    assert client.status().healthz == "ok"
    gate.touch()
    flood(ledger, stuck, 100)
    for _ in range(5):
        assert client.status().key_id == "stuck-1"
    gate.unlink()


def test_sigterm_ends_a_process_whose_calls_never_return(ledger: Ledger, stuck: Node, gate: Path) -> None:
    client = start(ledger, stuck)
    client.status()
    gate.touch()
    flood(ledger, stuck, 5)
    assert stuck.stop() == 0


def test_a_daemon_whose_backend_hangs_from_the_start_serves_its_socket_and_pages(
    ledger: Ledger, stuck: Node, gate: Path
) -> None:
    gate.touch()
    client = start(ledger, stuck)
    assert "503" in stuck.page("/readyz")
    gate.unlink()
    until(lambda: "200" in stuck.page("/readyz"), "it becomes well", timeout=20)
    assert client.status().healthz == "ok"


def test_a_provider_that_fails_to_read_its_files_again_serves_on(ledger: Ledger, stuck: Node) -> None:
    client = start(ledger, stuck)
    assert stuck.process is not None
    stuck.process.signal(signal.SIGHUP)
    until(lambda: "cannot read its files again: ValueError" in stuck.process.output(), "it is told")
    assert client.status().healthz == "ok"
    assert "anything" not in stuck.process.output()


def test_a_probe_that_does_not_come_back_makes_the_provider_unwell_and_in_the_end_the_process_dead(
    gate: Path,
) -> None:
    provider = Stuck(document.decode(Stuck.Settings, {"gate": str(gate)}), _surroundings())
    health = Health()
    prober = Prober(
        provider,
        health,
        CollectorRegistry(),
        lambda message, *, level="info": None,
        Pace(well=0.01, unwell=0.01, patience=0.05, stale=2.0),
    )
    prober.start()
    try:
        until(lambda: prober.view.healthz == "ok", "it is well")
        assert prober.alive
        gate.touch()
        until(lambda: "does not return" in prober.view.healthz, "it is unwell", timeout=20)
        assert prober.view.key_id == "stuck-1"
        assert not health.ready
        until(lambda: not prober.alive, "the watchdog is fed no more", timeout=20)
        gate.unlink()
        until(lambda: prober.view.healthz == "ok" and prober.alive and health.ready, "it is well again", timeout=20)
    finally:
        gate.unlink(missing_ok=True)
        prober.close(5.0)


def _surroundings() -> Surroundings:
    return Surroundings({}, Health(), CollectorRegistry(), lambda message, *, level="info": None)
