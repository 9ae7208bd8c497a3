"""A child process bounded in time and output: delegated CNI plugins, mkfs, nft for hand-written conditions.

It leads a process group of its own, which is killed whole at the deadline. subprocess is imported by the call. Secrets
go in by stdin, never by argv.
"""

from __future__ import annotations

import os
import time

from nodeplug.core.errors import Refused, TimedOut, from_os
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import Popen

_ETXTBSY_ATTEMPTS = 6


class Finished(Record):
    """How a child ended: its exit code (negative: the signal), and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes = b"", timeout: float, limit: int = 1 << 20
) -> Finished:
    """Run to the end. `limit` bounds stdout and stderr, each in bytes.

    Raises `TimedOut`, `Refused` when it writes more than `limit`, `NotFound`, `PermissionRefused` or `Unavailable` when
    it cannot be started. A binary being replaced (ETXTBSY) is tried again for a second.
    """
    child = _start(argv, env)
    try:
        return _converse(child, argv[0], stdin, time.monotonic() + timeout, limit)
    finally:
        _end(child)


def _start(argv: Sequence[str], env: Mapping[str, str]) -> Popen[bytes]:
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
    collected: dict[int, list[bytes]] = {child.stdout.fileno(): [], child.stderr.fileno(): []}
    sizes = dict.fromkeys(collected, 0)
    left = memoryview(stdin)
    os.set_blocking(child.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            selector.register(stream, selectors.EVENT_READ)
        if left:
            selector.register(child.stdin, selectors.EVENT_WRITE)
        else:
            child.stdin.close()
        while selector.get_map():
            for ready, _ in selector.select(_until(deadline, name)):
                fd = ready.fd
                if ready.fileobj is child.stdin:
                    try:
                        left = left[os.write(fd, left[:65536]) :]
                    except BrokenPipeError:
                        left = left[len(left) :]
                    if not left:
                        selector.unregister(child.stdin)
                        child.stdin.close()
                    continue
                part = os.read(fd, 65536)
                if not part:
                    selector.unregister(ready.fileobj)
                    continue
                sizes[fd] += len(part)
                if sizes[fd] > limit:
                    raise Refused(f"{name} wrote more than {limit} bytes and was ended")
                collected[fd].append(part)
    while child.poll() is None:
        # Both its streams are closed, so it is about to end; a wait with a timeout sleeps in just such steps.
        _until(deadline, name)
        time.sleep(0.001)
    stdout, stderr = (b"".join(collected[stream.fileno()]) for stream in (child.stdout, child.stderr))
    return Finished(code=child.returncode, stdout=stdout, stderr=stderr)


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
