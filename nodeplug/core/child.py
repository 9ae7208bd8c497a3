"""A child process bounded in time and output: delegated CNI plugins, mkfs, nft for hand-written conditions.

It leads a process group of its own, which is killed whole at the deadline. subprocess is imported by the call. Secrets
go in by stdin, never by argv.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import company
from nodeplug.core.errors import Refused, TimedOut, from_os
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import Popen

_ETXTBSY_ATTEMPTS = 6
_LINGER = 1.0  # seconds that the pipes of an ended child are still read when a child of its own holds them open


class Finished(Record):
    """How a child ended: its exit code (negative: the signal), and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: bytes = b"",
    timeout: float,
    limit: int = 1 << 20,
    fds: Sequence[int] = (),
) -> Finished:
    """Run to the end. `limit` bounds stdout and stderr, each in bytes. The child has these `fds`, by the same numbers.

    Raises `TimedOut`, `Refused` when it writes more than `limit`, `NotFound`, `PermissionRefused` or `Unavailable` when
    it cannot be started. A binary being replaced (ETXTBSY) is tried again for a second.
    """
    with company.present().waiting():
        child = _start(argv, env, fds)
        try:
            return _converse(child, argv[0], stdin, time.monotonic() + timeout, limit)
        finally:
            _end(child)


def _start(argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int]) -> Popen[bytes]:
    import errno
    import subprocess

    for attempt in range(_ETXTBSY_ATTEMPTS):
        try:
            return subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError as error:
            if error.errno != errno.ETXTBSY or attempt + 1 == _ETXTBSY_ATTEMPTS:
                raise from_os(error, f"cannot run {argv[0]}") from error
        time.sleep(0.2)
    raise AssertionError("the loop returns or raises")


def _converse(child: Popen[bytes], name: str, stdin: bytes, deadline: float, limit: int) -> Finished:
    import selectors

    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    heard = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    left = memoryview(stdin)
    os.set_blocking(child.stdin.fileno(), False)
    ended = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdin, selectors.EVENT_WRITE)
            waiting = {ended, *heard}
            for fd in waiting:
                selector.register(fd, selectors.EVENT_READ)
            while waiting and (time.monotonic() < deadline or ended in waiting):
                for ready, _ in selector.select(_until(deadline, name) if ended in waiting else _LINGER):
                    fd = ready.fd
                    if ready.fileobj is child.stdin:
                        left = _feed(fd, left)
                        if not left:
                            selector.unregister(child.stdin)
                            child.stdin.close()
                    elif fd == ended or not _hear(fd, heard[fd], limit, name):
                        selector.unregister(fd)
                        waiting.discard(fd)
                        if fd == ended:
                            deadline = min(deadline, time.monotonic() + _LINGER)
    finally:
        os.close(ended)
    stdout, stderr = (bytes(heard[stream.fileno()]) for stream in (child.stdout, child.stderr))
    return Finished(code=child.wait(), stdout=stdout, stderr=stderr)


def _feed(fd: int, left: memoryview) -> memoryview:
    """What is still to be written; nothing when the reader has gone, who then had no wish for the rest."""
    try:
        return left[os.write(fd, left[:65536]) :]
    except BrokenPipeError:
        return left[:0]


def _hear(fd: int, heard: bytearray, limit: int, name: str) -> bool:
    """Whether there may be more to read."""
    part = os.read(fd, 65536)
    heard += part
    if len(heard) > limit:
        raise Refused(f"{name} wrote more than {limit} bytes and was ended")
    return bool(part)


def _until(deadline: float, name: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimedOut(f"{name} did not end in time and was killed")
    return left


def _end(child: Popen[bytes]) -> None:
    """Kill what is left of the child's process group, reap the child, close the pipes."""
    import signal

    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
