"""The wire's frames, as pure functions between bytes and values. docs/wire.md has them byte for byte.

Used by `nodeplug.worker.wire`; what a client reads and writes is `nodeplug.worker.launcher`'s. No I/O, and no length is
believed before it was compared with its limit.
"""

from __future__ import annotations

import os
import struct

from nodeplug.core.call import Answer, Call, LastWords
from nodeplug.core.errors import Malformed, VersionUnsupported
from nodeplug.core.record import Record

MAGIC = b"npwr"
VERSION = 1
REQUEST, LAST_WORDS, ANSWER = 1, 2, 3
YOURSELF_FIRST = 0x01  # flag of last words: run it yourself if you can, and give these only if you cannot
HEADER = struct.Struct("<4sHBBIIII")  # magic, version, kind, flags, number, and the lengths of three parts

KIB = 1024
LIMITS = {
    REQUEST: (256 * KIB, 256 * KIB, 4096 * KIB),  # argv, environ, stdin
    LAST_WORDS: (64 * KIB, 64 * KIB, 0),  # stdout, stderr, nothing
    ANSWER: (8192 * KIB, 1024 * KIB, 4 * KIB),  # and a path that must be a mount point for the client, or nothing
}
PATIENCE_MAX = 3600.0  # seconds
FILES = ("netns",)  # bit n of a request's flags: the descriptor of that name in `Call.files` came along


class Frame(Record):
    """A frame's header, its lengths checked. `number` is milliseconds in a request, the exit code in a response."""

    kind: int
    flags: int
    number: int
    lengths: tuple[int, int, int]

    def size(self) -> int:
        """Bytes that follow the header."""
        return sum(self.lengths)


class Request(Record):
    """A call as it arrived: who asks, by descriptors of its namespaces, and how many seconds it will wait."""

    call: Call
    net: int
    mount: int
    patience: float

    def close(self) -> None:
        """Close every descriptor that came along; the call must not be used afterwards."""
        for fd in (self.net, self.mount, *(self.call.files or {}).values()):
            os.close(fd)


def encode_request(call: Call, *, patience: float) -> bytes:
    """The bytes of a request. Raises `Malformed` when the call does not fit the wire: too large, a NUL, no name."""
    unknown = [name for name in call.files or () if name not in FILES]
    if unknown:
        raise Malformed(f"the wire carries no descriptor named {', '.join(unknown)}, only {', '.join(FILES)}")
    flags = sum(1 << n for n, name in enumerate(FILES) if name in (call.files or ()))
    if any(not name or "=" in name for name in call.env):
        raise Malformed("a variable without a name, or with = in it")
    argv = _strings([call.name, *call.argv])
    environ = _strings([f"{name}={value}" for name, value in call.env.items()])
    milliseconds = round(min(max(patience, 0.001), PATIENCE_MAX) * 1000)
    return _frame(REQUEST, flags, milliseconds, (argv, environ, call.stdin))


def encode_last_words(words: LastWords) -> bytes:
    """The bytes of last words. Raises `Malformed` when they do not fit the wire."""
    flags = YOURSELF_FIRST if words.yourself else 0
    return _frame(LAST_WORDS, flags, _exit_code(words.answer.code), (words.answer.stdout, words.answer.stderr, b""))


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer. Raises `Malformed` when it does not fit the wire."""
    mounted = _strings([answer.mounted])[:-1]
    return _frame(ANSWER, 0, _exit_code(answer.code), (answer.stdout, answer.stderr, mounted))


def decode_header(header: bytes, kinds: tuple[int, ...]) -> Frame:
    """Read the 24 bytes before each frame; only `kinds` are welcome.

    Raises `Malformed`, or `VersionUnsupported` when it is our magic with another version. No length is believed before
    it was compared with its limit.
    """
    magic, version, kind, flags, number, *lengths = HEADER.unpack(header)
    if magic != MAGIC:
        raise Malformed(f"the frame begins with {magic!r} and not with {MAGIC!r}")
    if version != VERSION:
        raise VersionUnsupported(f"wire version {version}; this side speaks {VERSION}", hint="install both anew")
    if kind not in kinds:
        raise Malformed(f"a frame of kind {kind} where one of {kinds} is due")
    if flags & ~{REQUEST: (1 << len(FILES)) - 1, LAST_WORDS: YOURSELF_FIRST, ANSWER: 0}[kind]:
        raise Malformed(f"flags {flags:#x} in a frame of kind {kind}")
    for part, (length, limit) in enumerate(zip(lengths, LIMITS[kind], strict=True)):
        if length > limit:
            raise Malformed(f"part {part} of a frame of kind {kind} claims {length} bytes; the limit is {limit}")
    if not (1 <= number <= PATIENCE_MAX * 1000 if kind == REQUEST else number <= 255):
        raise Malformed(f"number {number} in a frame of kind {kind}")
    return Frame(kind=kind, flags=flags, number=number, lengths=tuple(lengths))


def decode_request(frame: Frame, body: bytes, descriptors: tuple[int, ...], *, contract: str) -> Request:
    """The request of a header and the bytes after it. Raises `Malformed`; the descriptors stay the caller's then."""
    names = [name for n, name in enumerate(FILES) if frame.flags & 1 << n]
    if len(descriptors) != 2 + len(names):
        raise Malformed(f"{len(descriptors)} descriptors came with a request whose flags say {2 + len(names)}")
    argv, environ, stdin = _parts(frame, body)
    name, *arguments = _split(argv, "argv") or [""]
    if not name or "/" in name:
        raise Malformed(f"the plugin's name is {name!r}; it must be a file's name")
    env: dict[str, str] = {}
    for entry in _split(environ, "environ"):
        variable, equals, value = entry.partition("=")
        if variable and equals:
            env.setdefault(variable, value)  # of equal names the first counts, as in getenv(3)
    files = dict(zip(names, descriptors[2:], strict=True))
    call = Call(contract=contract, name=name, argv=tuple(arguments), env=env, stdin=stdin, files=files)
    return Request(call=call, net=descriptors[0], mount=descriptors[1], patience=frame.number / 1000)


def _frame(kind: int, flags: int, number: int, parts: tuple[bytes, bytes, bytes]) -> bytes:
    for part, (data, limit) in enumerate(zip(parts, LIMITS[kind], strict=True)):
        if len(data) > limit:
            raise Malformed(f"part {part} of a frame of kind {kind} has {len(data)} bytes; the limit is {limit}")
    return HEADER.pack(MAGIC, VERSION, kind, flags, number, *map(len, parts)) + b"".join(parts)


def _exit_code(code: int) -> int:
    if not 0 <= code <= 255:
        raise Malformed(f"exit code {code}; it must be 0 to 255")
    return code


def _strings(values: list[str]) -> bytes:
    if any("\0" in value for value in values):
        raise Malformed("a NUL inside an argument or variable")
    try:
        return "".join(f"{value}\0" for value in values).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise Malformed(f"an argument or variable that no process can have: {error.reason}") from error


def _split(data: bytes, what: str) -> list[str]:
    if data and data[-1]:
        raise Malformed(f"{what} does not end with a NUL")
    return data.decode("utf-8", "surrogateescape").split("\0")[:-1]


def _parts(frame: Frame, body: bytes) -> tuple[bytes, bytes, bytes]:
    if len(body) != frame.size():
        raise Malformed(f"{len(body)} bytes after a header that says {frame.size()}")
    first, second, _third = frame.lengths
    return body[:first], body[first : first + second], body[first + second :]
