"""A server of Vault's API as far as the transit engine and four logins go, shaped by its public API documentation.

State is plain attributes that a test changes: `sealed`, `throttle`, `hang`, `refuse_tokens()`, `rotate()`, `ttl`. Every
request is kept in `requests` as (method, path).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Refusal(Exception):
    """An HTTP status with `errors`."""

    def __init__(self, status: int, *errors: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.errors = errors
        self.headers = headers or {}


@dataclass
class Token:
    """`expires` is monotonic; `ends` is its maximum life's end."""

    expires: float
    ends: float
    renewable: bool = True


@dataclass
class TransitKey:
    """Versions count from 1."""

    versions: list[tuple[bytes, int]] = field(default_factory=list)
    min_decryption: int = 1
    min_encryption: int = 0
    kind: str = "aes256-gcm96"

    def rotate(self) -> None:
        self.versions.append((os.urandom(32), int(time.time()) + len(self.versions)))


class VaultServer:
    """On a loopback port from construction to `close()`. `tls` makes it https."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.keys: dict[str, TransitKey] = {"k8s": TransitKey()}
        self.keys["k8s"].rotate()
        self.tokens: dict[str, Token] = {}
        self.requests: list[tuple[str, str]] = []
        self.sealed = False
        self.throttle = 0
        self.broken = 0
        self.delay = 0.0
        self.drip = 0.0  # seconds between two bytes of an answer's body
        self.denied = ""  # what the policy does not allow: "encrypt", "decrypt"
        self.ttl = 3600.0
        self.max_ttl = 36000.0
        self.credentials: dict[str, Any] = {"role_id": "the role", "secret_id": "the secret", "jwt": "the.j.wt"}
        self.under_way = 0
        self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                headers: dict[str, str] = {}
                try:
                    status, reply = outer.answer(self.command, self.path.removeprefix("/v1/"), self.headers, body)
                except Refusal as refusal:
                    status, reply, headers = refusal.status, {"errors": list(refusal.errors)}, refusal.headers
                data = json.dumps(reply).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if not outer.drip:
                    self.wfile.write(data)
                    return
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(outer.drip)

            do_GET = do_POST = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def __init__(self, *args: Any) -> None:
                self.open: set[socket.socket] = set()
                super().__init__(*args)

            def process_request(self, request: Any, client_address: Any) -> None:
                self.open.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                self.open.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hung up

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.drop_connections()
        self._thread.join(5)

    def drop_connections(self) -> None:
        """As a load balancer does with idle ones."""
        for connection in list(self._server.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def new_token(self, *, renewable: bool = True) -> str:
        name = "hvs." + os.urandom(8).hex()
        now = time.monotonic()
        self.tokens[name] = Token(now + self.ttl, now + self.max_ttl, renewable)
        return name

    def refuse_tokens(self) -> None:
        self.tokens.clear()

    def answer(self, method: str, path: str, headers: Any, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append((method, path))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.delay:
                time.sleep(self.delay)
            return self._answer(method, path, headers.get("X-Vault-Token", ""), body)
        finally:
            with self._lock:
                self.under_way -= 1

    def _answer(self, method: str, path: str, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.sealed:
            raise Refusal(503, "Vault is sealed")
        if self.broken:
            self.broken -= 1
            raise Refusal(500, "internal error")
        if self.throttle:
            self.throttle -= 1
            raise Refusal(429, "rate limit quota exceeded", headers={"Retry-After": "0"})
        if path.startswith("auth/") and path.endswith("/login"):
            return 200, {"auth": self._login(path.split("/")[1], body)}
        known = self.tokens.get(token)
        if known is None or known.expires < time.monotonic():
            raise Refusal(403, "permission denied")
        if path == "auth/token/lookup-self":
            return 200, {"data": {"ttl": int(known.expires - time.monotonic()), "renewable": known.renewable}}
        if path == "auth/token/renew-self":
            known.expires = min(time.monotonic() + self.ttl, known.ends)
            return 200, {"auth": {"client_token": token, "lease_duration": max(0, known.expires - time.monotonic())}}
        verbs: dict[str, Callable[[TransitKey, dict[str, Any]], dict[str, Any]]] = {
            "encrypt": _encrypt,
            "decrypt": _decrypt,
        }
        _mount, verb, name = path.split("/")
        if verb == self.denied:
            raise Refusal(403, "1 error occurred:\n\t* permission denied\n\n")
        found = self.keys.get(name)
        if found is None:
            if verb == "keys":
                raise Refusal(404)
            raise Refusal(400, "encryption key not found")
        if verb == "keys":
            return 200, {
                "data": {
                    "type": found.kind,
                    "latest_version": len(found.versions),
                    "min_decryption_version": found.min_decryption,
                    "min_encryption_version": found.min_encryption,
                    "keys": {
                        str(n + 1): made for n, (_, made) in enumerate(found.versions) if n + 1 >= found.min_decryption
                    },
                }
            }
        return 200, {"data": verbs[verb](found, body)}

    def _login(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        wanted = {"approle": ("role_id", "secret_id"), "jwt": ("jwt",), "cert": ()}.get(method)
        if wanted is None:
            raise Refusal(404)
        if any(body.get(name) != self.credentials[name] for name in wanted):
            raise Refusal(400, "invalid role or secret ID")
        return {"client_token": self.new_token(), "lease_duration": self.ttl, "renewable": True}


def _encrypt(found: TransitKey, body: dict[str, Any]) -> dict[str, Any]:
    version = int(body.get("key_version") or len(found.versions))
    if version > len(found.versions):
        raise Refusal(400, "requested version for encryption is higher than the latest key version")
    if version < found.min_encryption:
        raise Refusal(400, "requested version for encryption is less than the minimum encryption key version")
    nonce = os.urandom(12)
    bound = base64.b64decode(body.get("associated_data") or "")
    data = nonce + AESGCM(found.versions[version - 1][0]).encrypt(nonce, base64.b64decode(body["plaintext"]), bound)
    return {"ciphertext": f"vault:v{version}:{base64.b64encode(data).decode()}", "key_version": version}


def _decrypt(found: TransitKey, body: dict[str, Any]) -> dict[str, Any]:
    parts = str(body["ciphertext"]).split(":", 2)
    if len(parts) != 3:
        raise Refusal(400, "invalid ciphertext: no prefix")
    version = int(parts[1][1:])
    if version < found.min_decryption:
        raise Refusal(400, "ciphertext or signature version is disallowed by policy (too old)")
    if not 1 <= version <= len(found.versions):
        raise Refusal(400, "invalid ciphertext: version is too new")
    try:
        data = base64.b64decode(parts[2], validate=True)
        bound = base64.b64decode(body.get("associated_data") or "")
        plaintext = AESGCM(found.versions[version - 1][0]).decrypt(data[:12], data[12:], bound)
    except (ValueError, InvalidTag):
        raise Refusal(400, "invalid ciphertext: cipher: message authentication failed") from None
    return {"plaintext": base64.b64encode(plaintext).decode()}
