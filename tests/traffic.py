"""Traffic by bytes exchanged: an echo server in a namespace, and the question whether it can be reached from another.

The server answers each message with the address it saw as sender, a space, and the message. So whoever asks learns
that the bytes went both ways and whether its address was translated. TCP, UDP and, where the kernel has it, SCTP.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time

from tests.space import HERE, Space

PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_RESEND = 0.2


class Echo:
    """A server in `space`, answering from a thread of ours until `close()`. `port` is the one it got."""

    def __init__(self, space: Space = HERE, *, proto: str = "tcp", address: str = "0.0.0.0", port: int = 0) -> None:
        kind, number = PROTOCOLS[proto]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = space.call(lambda: socket.socket(family, kind, number))
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self.port: int = self._socket.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            self._socket.listen(64)
        self._stream = kind == socket.SOCK_STREAM
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve, name=f"echo {proto} {self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._woken, b"!")
        self._thread.join()
        for descriptor in (self._wake, self._woken):
            os.close(descriptor)
        self._socket.close()

    def _serve(self) -> None:
        peers: dict[int, tuple[socket.socket, str]] = {}
        try:
            while True:
                ready = select.select([self._wake, self._socket.fileno(), *peers], [], [])[0]
                if self._wake in ready:
                    return
                for fd in ready:
                    try:
                        self._answer(fd, peers)
                    except OSError:
                        self._forget(fd, peers)
        finally:
            for connection, _address in peers.values():
                connection.close()

    def _answer(self, fd: int, peers: dict[int, tuple[socket.socket, str]]) -> None:
        if fd in peers:
            connection, address = peers[fd]
            data = connection.recv(65536)
            if data:
                connection.sendall(address.encode() + b" " + data)
            else:
                self._forget(fd, peers)
        elif self._stream:
            connection, sender = self._socket.accept()
            peers[connection.fileno()] = (connection, sender[0])
        else:
            data, sender = self._socket.recvfrom(65536)
            self._socket.sendto(sender[0].encode() + b" " + data, sender)

    def _forget(self, fd: int, peers: dict[int, tuple[socket.socket, str]]) -> None:
        if fd in peers:
            peers.pop(fd)[0].close()


def exchange(
    address: str,
    port: int,
    *,
    proto: str = "tcp",
    space: Space = HERE,
    source: tuple[str, int] | None = None,
    timeout: float = 3.0,
) -> str:
    """Send a message from `space` to an `Echo` and get it back; returns the address the server saw as sender.

    Raises OSError when it cannot be reached: TimeoutError after `timeout` seconds, ConnectionRefusedError, ...
    UDP messages are sent again every 0.2 s until then.
    """
    kind, number = PROTOCOLS[proto]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    token = os.urandom(8).hex().encode()
    deadline = time.monotonic() + timeout
    with space.call(lambda: socket.socket(family, kind, number)) as client:
        client.settimeout(timeout)
        if source is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(source)
        client.connect((address, port))
        answer = b""
        while not answer.endswith(b" " + token):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"{proto} {address}:{port}: no answer within {timeout} s")
            if kind == socket.SOCK_DGRAM:
                answer = b""
                client.settimeout(min(_RESEND, remaining))
            else:
                client.settimeout(remaining)
            try:
                if kind == socket.SOCK_DGRAM or not answer:
                    client.sendall(token)
                received = client.recv(65536)
            except TimeoutError:
                continue
            if not received:
                raise ConnectionResetError(f"{proto} {address}:{port}: closed without an answer")
            answer += received
    return answer.split(b" ")[0].decode()


def reaches(address: str, port: int, *, proto: str = "tcp", space: Space = HERE, timeout: float = 3.0) -> bool:
    """Whether `exchange` succeeds. To show that nothing answers, a `timeout` of half a second is enough."""
    try:
        exchange(address, port, proto=proto, space=space, timeout=timeout)
    except OSError:
        return False
    return True
