"""A few GET pages on a unix socket or a loopback port: /livez, /readyz, /metrics. Off unless the settings ask for it.

Not a web server: one small request for each connection, four at once, two seconds for each, no body read.
"""

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from nodeplug.core.errors import ConfigInvalid, from_os
from nodeplug.daemon import metrics
from nodeplug.daemon.health import Health
from nodeplug.daemon.listeners import Place, Published

Page = Callable[[], tuple[int, str, bytes]]
"""What answers a path: status, content type, body."""

_THREADS = 4
_WAITING = 16
_SECONDS = 2.0
_PAUSE = 0.1
_LARGEST_HEAD = 8192
_TEXT = "text/plain; charset=utf-8"


def standard_pages(health: Health, registry: CollectorRegistry) -> Mapping[str, Page]:
    """/livez, /readyz and /metrics."""

    def checked(vital: bool) -> tuple[int, str, bytes]:
        ok, text = health.page(vital=vital)
        return (200 if ok else 503), _TEXT, text.encode()

    return {
        "/livez": lambda: checked(True),
        "/readyz": lambda: checked(False),
        "/metrics": lambda: (200, metrics.CONTENT_TYPE, metrics.page(registry)),
    }


class HttpServer:
    """Serves `pages` at `address`: an absolute path (unix socket, 0600) or "127.0.0.1:PORT" / "[::1]:PORT".

    Raises `ConfigInvalid` for any other address: these pages have no access control, so they stay on the node.
    """

    def __init__(self, address: str, pages: Mapping[str, Page], *, mode: int = 0o600) -> None:
        self._pages = pages
        self._over = False
        self._published: Published | None = None
        self._waiting: queue.Queue[socket.socket | None] = queue.Queue(_WAITING)
        if address.startswith("/"):
            self._published = Published(Place(address, mode=mode))
            self._listener = self._published.listen()
        else:
            self._listener = _listen_loopback(address)
        self._threads = [threading.Thread(target=self._accept, name="http-accept", daemon=True)]
        self._threads += [
            threading.Thread(target=self._serve, name=f"http-{number}", daemon=True) for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for; 0 for a unix socket."""
        name = self._listener.getsockname()
        return name[1] if isinstance(name, tuple) else 0

    def close(self) -> None:
        self._over = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
        except OSError:
            pass  # a socket of this family that was never connected; the close below is what counts
        self._listener.close()
        if self._published is not None:
            self._published.close()
        for _ in range(_THREADS):
            try:
                self._waiting.put(None, timeout=_SECONDS)
            except queue.Full:
                return  # they are at work on slow peers, and end with the process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                if self._over:
                    return
                time.sleep(_PAUSE)  # no descriptors are left; there will be
                continue
            try:
                self._waiting.put_nowait(peer)
            except queue.Full:
                peer.close()

    def _serve(self) -> None:
        while (peer := self._waiting.get()) is not None:
            with peer:
                try:
                    peer.sendall(self._answered(_read_head(peer)))
                except OSError:
                    continue  # the peer went away or was too slow

    def _answered(self, head: bytes) -> bytes:
        try:
            return _answer(head, self._pages)
        except (
            Exception
        ) as error:  # a gauge may ask anybody anything, and the next request must be answered all the same
            return _response(500, _TEXT, f"the page cannot be made: {type(error).__name__}\n".encode())


def _read_head(peer: socket.socket) -> bytes:
    """The request up to its empty line. Raises TimeoutError when all of it is not there in time."""
    end = time.monotonic() + _SECONDS
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD:
        peer.settimeout(max(0.001, end - time.monotonic()))
        part = peer.recv(_LARGEST_HEAD - len(head))
        if not part:
            break
        head += part
    peer.settimeout(_SECONDS)
    return head


def _answer(head: bytes, pages: Mapping[str, Page]) -> bytes:
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return _response(400, _TEXT, b"not an HTTP/1 request\n")
    method, target, _ = words
    if method not in ("GET", "HEAD"):
        return _response(405, _TEXT, b"only GET\n")
    page = pages.get(target.partition("?")[0])
    if page is None:
        return _response(404, _TEXT, ("\n".join(sorted(pages)) + "\n").encode())
    answer = _response(*page())
    return answer if method == "GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: int, kind: str, body: bytes) -> bytes:
    reason = HTTPStatus(status).phrase
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def _listen_loopback(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        ip, number = None, -1
    if ip is None or not colon or not ip.is_loopback or not 0 <= number <= 65535:
        raise ConfigInvalid(
            f"{address!r} is no address for health pages",
            hint="give the absolute path of a unix socket, or 127.0.0.1:PORT",
        )
    listener = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(ip), number))
        listener.listen(_WAITING)
    except OSError as error:
        listener.close()
        raise from_os(error, f"cannot serve health pages on {address}") from error
    return listener
