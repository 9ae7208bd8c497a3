"""Conditions, the pages made of them, and the small server that shows them."""

import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid
from nodeplug.daemon import metrics
from nodeplug.daemon.health import Condition, Health
from nodeplug.daemon.httpserver import HttpServer, standard_pages
from tests.child import run
from tests.examples import ROOT


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
        return b"".join(parts)


def test_a_backend_that_is_down_fails_readiness_only() -> None:
    health = Health()
    health.set("serving", Condition(ok=True, vital=True))
    assert health.set("backend", Condition(ok=False, message="throttled\nsince noon"))
    assert not health.set("backend", Condition(ok=False, message="throttled"))
    assert health.live
    assert not health.ready
    assert health.trouble() == "backend: throttled"
    assert health.page(vital=True) == (True, "[+]serving ok\nok\n")
    assert health.page(vital=False) == (False, "[-]backend throttled\n[+]serving ok\nfailed\n")
    health.clear("backend")
    assert health.ready


def test_the_pages_are_served_on_a_loopback_port() -> None:
    health, registry = Health(), metrics.open_registry("test")
    with HttpServer("127.0.0.1:0", standard_pages(health, registry)) as server:
        assert get(server.port, "/livez") == (200, "ok\n")
        health.set("backend", Condition(ok=False, message="gone"))
        assert get(server.port, "/readyz?verbose") == (503, "[-]backend gone\nfailed\n")
        status, text = get(server.port, "/metrics")
        assert status == 200
        assert 'nodeplug_build_info{daemon="test"' in text
        assert get(server.port, "/nothing")[0] == 404


def test_the_pages_are_served_on_a_unix_socket_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "health.sock"
    with HttpServer(str(path), standard_pages(Health(), metrics.open_registry("test"))):
        assert path.stat().st_mode & 0o777 == 0o600
        answer = ask(path, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok\n")
        assert ask(path, b"HEAD /livez HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
    assert not path.exists()


@pytest.mark.parametrize(
    "request_, status",
    [(b"POST /livez HTTP/1.1\r\n\r\n", b"405"), (b"\xff\xfe\r\n\r\n", b"400"), (b"x" * 8192, b"400")],
)
def test_nonsense_is_refused(tmp_path: Path, request_: bytes, status: bytes) -> None:
    path = tmp_path / "health.sock"
    with HttpServer(str(path), {}):
        assert ask(path, request_).split(b" ")[1] == status


@pytest.mark.parametrize("address", ["0.0.0.0:80", "192.0.2.1:1", "localhost:1", "127.0.0.1:99999", "x", "127.0.0.1"])
def test_pages_without_access_control_stay_on_the_node(address: str) -> None:
    with pytest.raises(ConfigInvalid):
        HttpServer(address, {})


def test_a_page_that_cannot_be_made_is_a_500_and_the_next_one_is_served() -> None:
    def broken() -> tuple[int, str, bytes]:
        raise RuntimeError("what it says may be anything")

    with HttpServer("127.0.0.1:0", {"/broken": broken, "/well": lambda: (200, "text/plain", b"well")}) as server:
        for _ in range(8):
            assert get(server.port, "/broken") == (500, "the page cannot be made: RuntimeError\n")
        assert get(server.port, "/well") == (200, "well")


def test_a_shortage_of_descriptors_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "health.sock"
    script = (
        "import os, resource, socket, sys, time;"
        "from nodeplug.daemon.httpserver import HttpServer;"
        "server = HttpServer(sys.argv[1], {'/': lambda: (200, 'text/plain', b'well')});"
        "peer = socket.socket(socket.AF_UNIX); peer.settimeout(5);"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (peer.fileno() + 1, hard));"
        "peer.connect(sys.argv[1]); time.sleep(0.5);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard));"
        "peer.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n'); print(peer.recv(4096).decode()); os._exit(0)"
    )
    done = run([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.ok().text.endswith("well")
