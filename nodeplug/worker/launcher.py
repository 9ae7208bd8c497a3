"""The worker as a launcher sees it: asked first, before anything of the door is imported.

`ask` does what shim.c does, with the same two words of contracts: CNI_COMMAND tells whether stdin holds a
configuration, CNI_NETNS which namespace to open for the worker, which opens no path that it is sent. What comes with
arguments and no CNI_COMMAND has nothing on stdin. docs/wire.md has the frames and what a client does, step by step.

A call that the worker answers pays for the interpreter's start and for this: it imports only what is inside the
interpreter, not even os (1.1 ms).
"""

from __future__ import annotations

import posix
from _socket import AF_UNIX, SCM_RIGHTS, SHUT_RD, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket
from sys import byteorder
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Reply = tuple[int, bool, bytes, bytes, bytes]
    """Exit code, whether to run it oneself first, stdout, stderr, the path that must be a mount point."""

PATIENCE = {"cni": 90.0, "flexvolume": 55.0}
"""Seconds for an answer; callers give up after two to four minutes, and running the call here takes its time too."""
GREETING = 2.0
"""Seconds to wait for last words before the worker is taken for dead."""

_LARGEST = 16 << 20
_CHUNK = 256 << 10
_REQUEST, _LAST_WORDS, _ANSWER = 1, 2, 3
_HEADER = 24
_REQUEST_MOST = (256 << 10, 256 << 10, 4096 << 10)
_REPLY_MOST = {_LAST_WORDS: (64 << 10, 64 << 10, 0), _ANSWER: (8192 << 10, 1024 << 10, 4 << 10)}
_OWN = ("/proc/thread-self/ns/net", "/proc/thread-self/ns/mnt")


def ask(path: str, contract: str, argv: Sequence[str], *, out: int = 1) -> bytes | None:
    """Have the worker at the socket `path` answer this process's call: with an answer, print it on `out` and end.

    Otherwise the call is to be run here: returns what was read from stdin; None when nothing has been.
    """
    deadline = monotonic() + PATIENCE[contract]
    stdin = b""
    if posix.environ.get(b"CNI_COMMAND", b"") not in (b"", b"VERSION"):
        try:
            stdin = _read(0)
        except OSError:
            return None  # the door words it
    files = []
    try:
        # O_NONBLOCK, because a FIFO put in the place must not hold the caller up.
        how = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOCTTY
        files.append(posix.open(posix.environ[b"CNI_NETNS"], how))
    except (KeyError, OSError):
        pass
    data = request([_name(argv), *argv[1:]], stdin, flags=len(files), seconds=PATIENCE[contract])
    if data:
        # Last words are for those who cannot run the call themselves.
        answer, words, _reason = converse(path, data, files, greeting=GREETING, deadline=deadline)
        if answer is None and words is not None and not words[1]:
            answer = words
        if answer is not None:
            _finish(answer[0], answer[2], answer[3], out)
    for file in files:
        posix.close(file)
    return stdin


def step_aside(private: str, argv: Sequence[str]) -> None:
    """Where this plugin is being taken out (`.nodeplug/leaving` has a line for the call), be what comes in its place.

    That is a program, or the text of an answer. Returns when there is none.
    """
    lines = _content(f"{private}/leaving").splitlines()
    if not {name + b"=" + value for name, value in posix.environ.items()}.isdisjoint(lines):
        path = f"{private}/old/{_name(argv)}"
        try:
            posix.execve(path, list(argv), posix.environ)
        except OSError:
            pass  # no program
        text = _content(path)
        if text:
            _finish(1, text, b"", 1)


def converse(
    path: str, data: bytes, files: Sequence[int], *, greeting: float, deadline: float
) -> tuple[Reply | None, Reply | None, str]:
    """The answer to the request `data`, sent with this process's namespaces and `files`; the last words; why none came.

    An answer that names a mount point which is none here counts as none. Never raises, and never waits for last words
    longer than `greeting` seconds, nor past `deadline`.
    """
    words: Reply | None = None
    opened: list[int] = []
    connection = None
    try:
        connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        limit = min(deadline, monotonic() + greeting)
        for name in _OWN:
            opened.append(posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC))
        rights = b"".join([fd.to_bytes(4, byteorder) for fd in (*opened, *files)])
        connection.settimeout(_left(limit))
        connection.connect(path)
        sent = connection.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        if sent < len(data):  # an empty send would fail once the worker has answered and closed
            connection.settimeout(_left(limit))
            connection.sendall(memoryview(data)[sent:])
        buffer = b""
        while more := _receive(connection, limit):
            buffer += more
            while taken := take_reply(buffer):
                kind, reply, buffer = taken
                if kind == _LAST_WORDS:
                    words, limit = reply, deadline
                elif not reply[4] or _is_mounted(reply[4]):
                    return reply, words, ""
                else:
                    return None, words, f"what it mounted on {_text(reply[4])} is not to be seen here"
        late = monotonic() >= limit
        return None, words, "no answer in time" if late else "it ended the connection without an answer"
    except (OSError, ValueError) as error:
        return None, words, str(error)
    finally:
        if connection is not None:
            connection.close()
        for fd in opened:
            posix.close(fd)


def request(argv: Sequence[str], stdin: bytes, *, flags: int, seconds: float) -> bytes:
    """The frame of this process's call; nothing when it does not fit into one."""
    arguments = b"".join([argument.encode("utf-8", "surrogateescape") + b"\0" for argument in argv])
    environ = b"".join([name + b"=" + value + b"\0" for name, value in posix.environ.items() if name])
    parts = (arguments, environ, stdin)
    if any(len(part) > most for part, most in zip(parts, _REQUEST_MOST, strict=True)):
        return b""
    numbers = (round(seconds * 1000), *map(len, parts))
    header = b"npwr\1\0" + bytes((_REQUEST, flags)) + b"".join([number.to_bytes(4, "little") for number in numbers])
    return b"".join((header, *parts))


def take_reply(buffer: bytes) -> tuple[int, Reply, bytes] | None:
    """The first whole response in `buffer`, its kind, and what follows it. ValueError for what is no response."""
    if len(buffer) < _HEADER:
        return None
    kind, flags = buffer[6], buffer[7]
    code, out, err, mounted = (int.from_bytes(buffer[at : at + 4], "little") for at in (8, 12, 16, 20))
    if buffer[:6] != b"npwr\1\0" or kind not in _REPLY_MOST or flags > (kind == _LAST_WORDS) or code > 255:
        raise ValueError("what it says is no response of this version of the wire")
    if any(size > most for size, most in zip((out, err, mounted), _REPLY_MOST[kind], strict=True)):
        raise ValueError("it says more than may be said")
    end = _HEADER + out + err + mounted
    if len(buffer) < end:
        return None
    body = buffer[_HEADER:end]
    path = body[out + err :]
    if path and (b"\0" in path or path[:1] != b"/"):
        raise ValueError("what a mount point's path can never be")
    return kind, (code, bool(flags), body[:out], body[out : out + err], path), buffer[end:]


def _receive(connection: socket, limit: float) -> bytes:
    """What arrived; b"" at the end of the connection, which `limit` brings about.

    Once the receiving side is shut the worker's sends fail; what it sent before is still read, and then the end.
    """
    try:
        connection.settimeout(_left(limit))
        return connection.recv(_CHUNK)
    except TimeoutError:
        connection.shutdown(SHUT_RD)
        return connection.recv(_CHUNK)


def _left(limit: float) -> float:
    left = limit - monotonic()
    if left <= 0:
        raise TimeoutError("the deadline passed")
    return left


def _is_mounted(path: bytes) -> bool:
    from nodeplug.kernel import mount

    return mount.is_mounted(_text(path))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _name(argv: Sequence[str]) -> str:
    return argv[0].rpartition("/")[2]


def _read(fd: int) -> bytes:
    """All that there is, or so much that no door takes it."""
    parts = []
    left = _LARGEST + 1
    while left > 0 and (part := posix.read(fd, min(left, 65536))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _content(path: str) -> bytes:
    """Of a file; nothing where it cannot be read."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return _read(fd)
        finally:
            posix.close(fd)
    except OSError:
        return b""


def _finish(code: int, stdout: bytes, stderr: bytes, out: int) -> None:
    try:
        for fd, data in ((2, stderr), (out, stdout)):
            while data:
                data = data[posix.write(fd, data) :]
    except OSError:
        code = code or 1  # the caller has gone, or its pipe has
    posix._exit(code)
