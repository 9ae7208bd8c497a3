"""The relay carries bytes both ways whole, keeps strangers out and never holds more than it should."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.daemon.relay import Relay, peer_uid


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[str]:
    """A server that sends back what it gets, and ends when its peer does."""
    path = str(tmp_path / "inner")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)

    def echo(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def outer(tmp_path: Path) -> tuple[str, socket.socket]:
    path = str(tmp_path / "outer")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    return path, listener


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(path)
    return client


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_megabytes_pass_both_ways_unchanged(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    data = os.urandom(3_000_000)
    with Relay(listener, inner, allowed_uids=None, note=pytest.fail), connect(path) as client:
        sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read_all(client) == data
        sender.join(10)


def test_a_peer_that_does_not_read_stops_being_read(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    with Relay(listener, inner, allowed_uids=None, note=pytest.fail) as relay, connect(path) as client:
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 50_000_000:
                sent += client.send(bytes(65536))
        assert sent < 10_000_000
        assert max(len(side.pending) for side in relay._open) <= 65536
        client.settimeout(10)
        client.shutdown(socket.SHUT_WR)
        assert len(read_all(client)) == sent


def test_a_uid_that_is_not_allowed_gets_nothing(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    notes: list[str] = []
    with Relay(listener, inner, allowed_uids=[os.geteuid() + 1], note=notes.append), connect(path) as client:
        assert client.recv(1) == b""
    assert notes == [f"refused a connection from uid {os.geteuid()}, which allowed_uids does not list"]


def test_a_peer_that_is_refused_again_and_again_does_not_fill_the_log(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    notes: list[str] = []
    with Relay(listener, inner, allowed_uids=[os.geteuid() + 1], note=notes.append):
        for _ in range(500):
            with connect(path) as client:
                assert client.recv(1) == b""
    assert 1 <= len(notes) < 100


def test_a_relay_whose_thread_has_ended_says_so(tmp_path: Path, inner: str) -> None:
    _, listener = outer(tmp_path)
    relay = Relay(listener, inner, allowed_uids=None, note=pytest.fail)
    with relay:
        assert relay.alive
    assert not relay.alive


def test_an_allowed_uid_is_served(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    with Relay(listener, inner, allowed_uids=[os.geteuid()], note=pytest.fail), connect(path) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        assert peer_uid(client) == os.geteuid()


def test_what_connects_while_nobody_accepts_is_served_by_the_next(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    first = Relay(listener.dup(), inner, allowed_uids=None, note=pytest.fail)
    first.start()
    with connect(path) as before:
        before.sendall(b"1")
        assert before.recv(1) == b"1"
        first.stop_accepting()
        before.sendall(b"2")
        assert before.recv(1) == b"2"  # and by now the listener is no longer watched
        with connect(path) as between:
            between.sendall(b"hello")
            first.close()
            assert before.recv(1) == b""
            with Relay(listener, inner, allowed_uids=None, note=pytest.fail):
                assert between.recv(5) == b"hello"


def test_connections_beyond_the_limit_wait_in_the_backlog(tmp_path: Path, inner: str) -> None:
    path, listener = outer(tmp_path)
    with Relay(listener, inner, allowed_uids=None, note=pytest.fail, connections=2):
        clients = [connect(path) for _ in range(3)]
        for client in clients[:2]:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        clients[2].sendall(b"y")
        clients[2].settimeout(0.3)
        with pytest.raises(TimeoutError):
            clients[2].recv(1)
        clients[0].close()
        clients[2].settimeout(10)
        assert clients[2].recv(1) == b"y"
        for client in clients:
            client.close()


def test_no_descriptor_is_left_behind(tmp_path: Path, inner: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    path, listener = outer(tmp_path)
    with Relay(listener, inner, allowed_uids=None, note=pytest.fail) as relay:
        for _ in range(50):
            with connect(path) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        assert relay.wait_idle(10)
    for _ in range(200):  # the echo threads close their ends in their own time
        if descriptors() <= before:
            break
        threading.Event().wait(0.01)
    assert descriptors() <= before


def test_an_inner_server_that_is_gone_closes_the_peer_and_is_noted(tmp_path: Path) -> None:
    path, listener = outer(tmp_path)
    notes: list[str] = []
    with Relay(listener, str(tmp_path / "nobody"), allowed_uids=None, note=notes.append), connect(path) as client:
        assert client.recv(1) == b""
    assert "cannot hand a connection to the server" in notes[0]
