"""What arrives at the worker's socket and is no decent call: others are served all the while, and nothing is lost."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeplug.core.call import Answer
from nodeplug.worker import wire
from nodeplug.worker.frames import HEADER, LIMITS, MAGIC, REQUEST, VERSION, encode_request
from tests.child import until
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker.node import LOOPBACK, Node, call_of

pytestmark = needs("sandbox", "program:cc")
CALL = call_of("VERSION", LOOPBACK, "", "x")


@pytest.fixture(scope="module")
def worker(module_ledger: Ledger) -> Iterator[Node]:
    found = Node(module_ledger, more="connections = 64\nqueue = 16")
    found.start()
    yield found
    found.stop()


def connect(node: Node, ledger: Ledger | None = None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(node.socket))  # with a time-out it would not wait for room in the queue
    connection.settimeout(20)
    if ledger is not None:
        ledger.adopt("connection", connection.close)
    return connection


def serves(node: Node) -> bool:
    return isinstance(wire.ask(str(node.socket), CALL, deadline=time.monotonic() + 20, greeting=20), Answer)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def read_on(connection: socket.socket) -> None:
    """Say no more, and read to the end."""
    connection.shutdown(socket.SHUT_WR)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass  # it was closed with something unread


def files_of(node: Node) -> int:
    assert node.process is not None
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def send(connection: socket.socket, data: bytes, *paths: str) -> None:
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        connection.sendmsg([data], rights)
    finally:
        for fd in fds:
            os.close(fd)


OWN = ("/proc/self/ns/net", "/proc/self/ns/mnt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), headed=st.booleans(), count=st.integers(0, 9))
def test_whatever_is_sent_others_are_served(worker: Node, data: bytes, headed: bool, count: int) -> None:
    with connect(worker) as connection:
        send(
            connection,
            (MAGIC + struct.pack("<HB", VERSION, REQUEST) if headed else b"x") + data,
            *["/dev/null"] * count,
        )
        read_on(connection)
    assert serves(worker)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_requests_are_answered_or_closed(worker: Node, data: st.DataObject) -> None:
    frame = bytearray(encode_request(CALL, patience=5))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with connect(worker) as connection:
        send(connection, bytes(frame), *OWN)
        read_on(connection)
    assert serves(worker)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_frame_that_claims_too_much_is_closed_at_once(worker: Node, ledger: Ledger, part: int) -> None:
    lengths = [1, 0, 0]
    lengths[part] = LIMITS[REQUEST][part] + 1
    connection = connect(worker, ledger)
    send(connection, HEADER.pack(MAGIC, VERSION, REQUEST, 0, 1000, *lengths), *OWN)
    assert is_closed(connection)


def test_slow_senders_are_closed_and_hold_nobody_up(worker: Node, ledger: Ledger) -> None:
    slow = [connect(worker, ledger) for _ in range(40)]
    frame = encode_request(CALL, patience=5)
    for connection in slow:
        send(connection, frame[:10], *OWN)
    assert serves(worker)
    assert all(is_closed(connection) for connection in slow)
    assert serves(worker)


def test_requests_that_come_in_two_pieces_are_served(worker: Node, ledger: Ledger) -> None:
    frame = encode_request(CALL, patience=5)
    for cut in (1, HEADER.size - 1, HEADER.size, HEADER.size + 1, len(frame) - 1):
        connection = connect(worker, ledger)
        send(connection, frame[:cut], *OWN)
        connection.sendall(frame[cut:])
        assert connection.recv(4) == MAGIC


def test_ten_thousand_connections_that_say_nothing_hold_nobody_up(worker: Node, ledger: Ledger) -> None:
    before = files_of(worker)
    opened: list[socket.socket] = []
    try:
        for number in range(10_000):
            if len(opened) >= 400:
                opened.pop(0).close()
            opened.append(connect(worker))
            if number % 1000 == 999:
                until(lambda: serves(worker), "there is room in the listener's queue")
        assert files_of(worker) < before + 64 + 20
    finally:
        for connection in opened:
            connection.close()
    until(lambda: files_of(worker) <= before + 2, "nothing of them is left")
    assert serves(worker)


def test_a_client_that_never_reads_holds_nobody_up(worker: Node, ledger: Ledger) -> None:
    frame = encode_request(CALL, patience=5)
    for _ in range(100):
        connection = connect(worker, ledger)
        send(connection, frame, *OWN)
    assert serves(worker)


def test_a_client_that_leaves_at_once_leaves_nothing(worker: Node) -> None:
    before = files_of(worker)
    frame = encode_request(CALL, patience=5)
    for _ in range(50):
        with connect(worker) as connection:
            send(connection, frame, *OWN)
    assert serves(worker)
    until(lambda: files_of(worker) <= before + 2, "descriptors are closed")


def test_without_descriptors_left_it_turns_callers_away_and_recovers(module_ledger: Ledger, ledger: Ledger) -> None:
    import resource

    node = Node(ledger, more="connections = 1000\nthreads = 1\n[worker.log]\nlevel = 'warning'")
    process = node.start()
    limit = files_of(node) + 40  # it listens before it has opened all of its own
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    opened = [connect(node, ledger) for _ in range(100)]
    assert any(is_closed(connection) for connection in opened[-30:])
    for connection in opened:
        connection.close()
    until(lambda: serves(node), "it serves again")
    assert node.stop() == 0
