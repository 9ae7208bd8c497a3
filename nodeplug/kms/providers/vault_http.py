"""HTTP to Vault or OpenBao: JSON over kept connections, every wait bounded, nothing of a body in an error."""

import http.client
import ipaddress
import json
import queue
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nodeplug.core.errors import ConfigInvalid, TimedOut
from nodeplug.core.secret import Secret
from nodeplug.kms.contract import Call, Throttled, Unreachable

_LARGEST = 1 << 20
_PIECE = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """Status, the object under `data` (or `auth`), and what stands in `errors`."""

    status: int
    data: Mapping[str, Any]
    auth: Mapping[str, Any]
    errors: str
    retry_after: float

    def raise_for_trouble(self) -> None:
        """Nothing for a 2xx; `Throttled` or `Unreachable` for what is not the request's own fault."""
        if 200 <= self.status < 300:
            return
        if self.status == 429:
            raise Throttled("it asks for fewer calls", after=self.retry_after)
        if self.status == 503:
            raise Unreachable("it is sealed, or in maintenance", hint="unseal it")
        raise Unreachable(f"it answered with HTTP status {self.status}")


class Http:
    """A pool of connections to one address."""

    def __init__(
        self,
        address: str,
        *,
        namespace: str,
        ca_file: str,
        cert_file: str,
        key_file: str,
        server_name: str,
        timeout: float,
        connections: int,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigInvalid(f"{address!r} is no address of a server", hint='such as "https://vault.example:8200"')
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ConfigInvalid(
                f"{address} is not encrypted, and would show keys and tokens to the network", hint="use https"
            )
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._timeout = timeout
        self._server_name = server_name
        self._headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if namespace:
            self._headers["X-Vault-Namespace"] = namespace
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file or None)
                if cert_file:
                    self._tls.load_cert_chain(cert_file, key_file or None)
            except (OSError, ssl.SSLError) as error:
                raise ConfigInvalid(f"the certificates for {address} cannot be read: {error}") from None
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue(connections)

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None, *, token: Secret | None, call: Call
    ) -> Answer:
        """One request. Raises `Unreachable` when there is no answer, `TimedOut` when the caller's time is over."""
        headers = dict(self._headers)
        if token is not None:
            headers["X-Vault-Token"] = token.reveal().decode("latin-1")
        data = None if body is None else json.dumps(body).encode()
        connection, used = self._connection()
        try:
            answer = self._exchange(connection, method, path, data, headers, call)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            connection.close()
            if not used:
                raise Unreachable(f"it closed the connection: {type(error).__name__}") from None
            # A kept connection may have been closed meanwhile, before the request was looked at.
            connection = self._open()
            try:
                answer = self._exchange(connection, method, path, data, headers, call)
            except (OSError, http.client.HTTPException) as again:
                connection.close()
                raise _no_answer(again, call) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _no_answer(error, call) from None
        except BaseException:
            connection.close()
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return answer

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        try:
            return self._idle.get_nowait(), True
        except queue.Empty:
            return self._open(), False

    def _open(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
        if self._server_name:
            connection = _NamedConnection(self._host, self._port, self._server_name, self._timeout, self._tls)
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        call: Call,
    ) -> Answer:
        wait = min(self._timeout, call.seconds_left())
        end = time.monotonic() + wait
        connection.timeout = wait
        if connection.sock is not None:
            connection.sock.settimeout(wait)
        connection.request(method, f"/v1/{path}", body=data, headers=dict(headers))
        reply = connection.getresponse()
        content = bytearray()
        # Piece by piece: a timeout of the socket is for each piece, and a server may send a byte of them a second.
        while part := reply.read1(_PIECE):
            content += part
            if len(content) > _LARGEST:
                connection.close()
                raise Unreachable("its answer is larger than any it should give")
            if time.monotonic() > end:
                raise TimeoutError
        reply.close()  # all of it is read; without this the connection takes no further request
        return _answer(reply.status, bytes(content), reply.getheader("Retry-After"))

    def close(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


class _NamedConnection(http.client.HTTPSConnection):
    """To one host, for a certificate in another name."""

    def __init__(self, host: str, port: int, name: str, timeout: float, tls: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=tls)
        self._name = name
        self._own_tls = tls

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._own_tls.wrap_socket(self.sock, server_hostname=self._name)


def _answer(status: int, content: bytes, retry_after: str | None) -> Answer:
    try:
        found = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, dict):
        found = {}
    data, auth, errors = found.get("data"), found.get("auth"), found.get("errors")
    return Answer(
        status,
        data if isinstance(data, dict) else {},
        auth if isinstance(auth, dict) else {},
        " ".join(map(str, errors)) if isinstance(errors, list) else "",
        float(retry_after) if retry_after and retry_after.isdecimal() else 1.0,
    )


def _no_answer(error: Exception, call: Call) -> Exception:
    if isinstance(error, TimeoutError):
        try:
            call.seconds_left()
        except TimedOut as over:
            return over
        return Unreachable("it does not answer in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(f"its certificate is not trusted: {error.verify_message}", hint="look at ca_file")
    return Unreachable(
        f"it cannot be reached: {error.strerror if isinstance(error, OSError) else type(error).__name__}"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
