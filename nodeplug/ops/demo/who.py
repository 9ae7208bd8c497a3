"""A server that says who it is and whom it sees, and a client for it: traffic shown by bytes that went both ways."""

from __future__ import annotations

import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, TypeVar

from nodeplug.core.errors import Error
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netns import Netns

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATH = "/cgi-bin/who"
_TIMEOUT = 5.0
_LIMIT = 4096


class Who:
    """A server on `port` of the namespace at `path`, here without one; answers from a thread until `close()`."""

    def __init__(self, name: str, port: int, path: str = "") -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = f"{name} answers {self.client_address[0]}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads an access log here."""

        def listen() -> ThreadingHTTPServer:
            return ThreadingHTTPServer(("0.0.0.0", port), Answer)

        self._server = _inside(path, listen) if path else listen()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _inside(path: str, make: Callable[[], T]) -> T:
    """What `make()` returns when called in the namespace at `path`: a socket stays in the one it was made in."""
    with Netns.open(path) as there:
        return namespaces.inside(there, make)


def fetch(address: str, port: int, path: str = "") -> str:
    """What the server there answers, asked from the namespace at `path`. Raises `Error`."""

    def connect() -> socket.socket:
        return socket.create_connection((address, port), timeout=_TIMEOUT)

    connection = http.client.HTTPConnection(address, port, timeout=_TIMEOUT)
    try:
        connection.sock = _inside(path, connect) if path else connect()
        connection.request("GET", PATH)
        return connection.getresponse().read(_LIMIT).decode().strip()
    except (OSError, http.client.HTTPException) as error:
        raise Error(f"no answer from {address}:{port}: {error}") from error
    finally:
        connection.close()
