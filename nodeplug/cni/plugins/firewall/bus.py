"""The system's message bus, as far as firewalld needs it: calls with strings, answers with one string or boolean.

See the D-Bus specification. Loaded only where a bus is there. Everything is bounded: the answer to a call in time, a
message in size.
"""

from __future__ import annotations

import os
import struct
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from nodeplug.core.errors import Refused, TimedOut, Unavailable, from_os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/run/dbus/system_bus_socket"
_ADDRESS = "DBUS_SYSTEM_BUS_ADDRESS"

_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_HEADER = 16
_LARGEST = 1 << 20
_LONGEST_LINE = 512
_BUS = "org.freedesktop.DBus"


class CallFailed(Refused):
    """The answer to a call was an error; `name` is its name on the bus."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


def address(env: Mapping[str, str]) -> str:
    """Where the bus listens: a path, or with a NUL before it an abstract name; empty where it is no unix socket."""
    for part in env.get(_ADDRESS, f"unix:path={SOCKET}").split(";"):
        transport, _, keys = part.partition(":")
        found = dict(key.partition("=")[::2] for key in keys.split(","))
        if transport == "unix" and "path" in found:
            return found["path"]
        if transport == "unix" and "abstract" in found:
            return "\0" + found["abstract"]
    return ""


class Bus:
    """A connection. Not shared between threads; closed by `close()`. Every call ends within `timeout` seconds."""

    def __init__(self, where: str, *, timeout: float = 10.0) -> None:
        """Raises `Unavailable`, `NotFound` and the like when it cannot be had."""
        self._timeout = timeout
        self._serial = 0
        self._deadline = time.monotonic() + timeout
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(where)
            self._greet()
            self.call(_BUS, "/org/freedesktop/DBus", _BUS, "Hello")
        except OSError as error:
            self._socket.close()
            raise from_os(error, f"cannot reach the system bus at {where.lstrip(chr(0))}") from error
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def has(self, name: str) -> bool:
        """Whether somebody on the bus has that name."""
        return self.call(_BUS, "/org/freedesktop/DBus", _BUS, "NameHasOwner", name) is True

    def call(self, to: str, path: str, interface: str, member: str, *arguments: str) -> str | bool | None:
        """Call a method; its answer where that is a string or a boolean. Raises `CallFailed`, `TimedOut`."""
        self._serial += 1
        self._deadline = time.monotonic() + self._timeout
        fields = {_PATH: ("o", path), _INTERFACE: ("s", interface), _MEMBER: ("s", member), _DESTINATION: ("s", to)}
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(encode(_CALL, self._serial, fields, arguments))
            while True:
                kind, found, body = decode(self._message())
                if found.get(_REPLY_SERIAL) != self._serial:
                    continue  # a signal, or another's business
                signature = str(found.get(_SIGNATURE, ""))
                if kind == _ERROR:
                    name = str(found.get(_ERROR_NAME, ""))
                    raise CallFailed(f"{member} of {to} failed: {first(signature, body) or name}", name=name)
                if kind == _RETURN:
                    return first(signature, body)
        except TimeoutError as error:
            raise TimedOut(f"{to} did not answer {member} within {self._timeout:g} s") from error
        except OSError as error:
            raise from_os(error, f"cannot call {member} of {to}") from error

    def _greet(self) -> None:
        """Authenticate by the socket's own credentials."""
        user = str(os.geteuid()).encode().hex()
        self._socket.sendall(f"\0AUTH EXTERNAL {user}\r\n".encode())
        line = b""
        while not line.endswith(b"\r\n"):
            if len(line) > _LONGEST_LINE:
                raise Unavailable("the system bus does not speak D-Bus")
            line += self._receive(1)
        if not line.startswith(b"OK "):
            raise Unavailable(f"the system bus refused us: {line.decode('ascii', 'replace').strip()}")
        self._socket.sendall(b"BEGIN\r\n")

    def _message(self) -> bytes:
        head = self._receive(_HEADER)
        order = "<" if head[:1] == b"l" else ">"
        body, _serial, fields = struct.unpack_from(f"{order}III", head, 4)
        rest = fields + -fields % 8 + body
        if rest > _LARGEST:
            raise Unavailable(f"a message of {rest} bytes came by the system bus; {_LARGEST} are the most")
        return head + self._receive(rest)

    def _receive(self, size: int) -> bytes:
        parts = []
        while size:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(size)
            if not part:
                raise Unavailable("the system bus closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def encode(
    kind: int, serial: int, fields: Mapping[int, tuple[str, str | int]], arguments: tuple[str, ...] = ()
) -> bytes:
    """A message whose body is strings. `fields` are (type, value), of strings, paths, signatures and numbers."""
    body = b""
    for argument in arguments:
        body += bytes(-len(body) % 4) + _string(argument)
    header = b""
    if arguments:
        fields = {**fields, _SIGNATURE: ("g", "s" * len(arguments))}
    for code, (type, value) in fields.items():
        header += bytes(-len(header) % 8) + bytes((code, 1)) + type.encode() + b"\0"
        if isinstance(value, int):
            header += bytes(-len(header) % 4) + struct.pack("<I", value)
        elif type == "g":
            header += bytes((len(value),)) + value.encode() + b"\0"
        else:
            header += bytes(-len(header) % 4) + _string(value)
    start = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), serial, len(header))
    return start + header + bytes(-len(header) % 8) + body


def decode(data: bytes) -> tuple[int, dict[int, str | int], bytes]:
    """(kind, header fields, body) of a whole message. Raises `Unavailable` for what is none."""
    try:
        order = {b"l": "<", b"B": ">"}[data[:1]]
        size = struct.unpack_from(f"{order}I", data, 12)[0]
        fields: dict[int, str | int] = {}
        at, end = _HEADER, _HEADER + size
        while at < end:
            at += -at % 8
            code, length = data[at], data[at + 1]
            type = data[at + 2 : at + 2 + length].decode()
            at += 3 + length
            if type == "g":
                fields[code] = data[at + 1 : at + 1 + data[at]].decode()
                at += 2 + data[at]
            elif type in ("s", "o"):
                at += -at % 4
                length = struct.unpack_from(f"{order}I", data, at)[0]
                fields[code] = data[at + 4 : at + 4 + length].decode()
                at += 5 + length
            elif type == "u":
                at += -at % 4
                fields[code] = struct.unpack_from(f"{order}I", data, at)[0]
                at += 4
            else:
                raise ValueError(type)
        body = data[end + -end % 8 :]
        return data[1], fields, body if order == "<" else _swapped(fields, body)
    except (LookupError, ValueError, struct.error) as error:
        raise Unavailable(f"what came by the system bus is no message: {error}") from error


def first(signature: str, body: bytes) -> str | bool | None:
    """The first argument, where it is a string or a boolean."""
    if len(body) < 4:
        return None
    number = struct.unpack_from("<I", body)[0]
    if signature.startswith("b"):
        return bool(number)
    return body[4 : 4 + number].decode("utf-8", "replace") if signature.startswith(("s", "o")) else None


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _swapped(fields: Mapping[int, str | int], body: bytes) -> bytes:
    """The first number of a body in big-endian order turned round; no more of it is read."""
    return body[3::-1] + body[4:] if len(body) >= 4 and fields.get(_SIGNATURE) else body
