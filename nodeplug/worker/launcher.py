"""The worker as a launcher sees it: asked first, before anything of the door is imported.

`ask` does what shim.c does, with the same two words of contracts: CNI_COMMAND tells whether stdin holds a
configuration, CNI_NETNS which namespace to open for the worker, which opens no path that it is sent. What comes with
arguments and no CNI_COMMAND has nothing on stdin. Imported only where the worker's socket exists. Exec dialect.
"""

from __future__ import annotations

import os
import time

from nodeplug.core import files
from nodeplug.core.call import Answer, Call
from nodeplug.core.errors import Malformed
from nodeplug.worker import wire
from nodeplug.worker.frames import LIMITS, REQUEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = {"cni": 90.0, "flexvolume": 55.0}
"""Seconds for an answer; callers give up after two to four minutes, and running the call here takes its time too."""

_LARGEST = 16 << 20


def ask(path: str, contract: str, argv: Sequence[str], *, out: int = 1) -> bytes | None:
    """Have the worker at the socket `path` answer this process's call: with an answer, print it on `out` and end.

    Otherwise the call is to be run here: returns what was read from stdin; None when nothing has been.
    """
    env = dict(os.environ)
    stdin = b""
    if env.get("CNI_COMMAND", "") not in ("", "VERSION"):
        try:
            stdin = _read()
        except OSError:
            return None  # the door words it
        if len(stdin) > LIMITS[REQUEST][2]:
            return stdin
    netns = _open(env.get("CNI_NETNS", ""))
    try:
        call = Call(
            contract=contract,
            name=os.path.basename(argv[0]),
            argv=tuple(argv[1:]),
            env=env,
            stdin=stdin,
            files={} if netns is None else {"netns": netns},
        )
        # Last words are for those who cannot run the call themselves.
        outcome = wire.ask(path, call, deadline=time.monotonic() + PATIENCE[contract])
    finally:
        if netns is not None:
            os.close(netns)
    if isinstance(outcome, Answer):
        _finish(outcome, out)
    return stdin


def step_aside(private: str, argv: Sequence[str]) -> None:
    """Where this plugin is being taken out (`.nodeplug/leaving` has a line for the call), be what comes in its place.

    That is a program, or the text of an answer. Returns when there is none.
    """
    env = dict(os.environ)
    try:
        lines = files.read_bounded(f"{private}/leaving", _LARGEST).decode("utf-8", "replace").splitlines()
    except (OSError, Malformed):
        return
    path = f"{private}/old/{os.path.basename(argv[0])}"
    if not {f"{name}={value}" for name, value in env.items()}.isdisjoint(lines):
        try:
            os.execve(path, list(argv), env)
        except OSError:
            pass  # no program
        try:
            text = files.read_bounded(path, _LARGEST)
        except (OSError, Malformed):
            return
        _finish(Answer(code=1, stdout=text), 1)


def _read() -> bytes:
    """All of stdin, or so much that no door takes it."""
    parts = []
    left = _LARGEST + 1
    while left > 0 and (part := os.read(0, min(left, 65536))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _open(path: str) -> int | None:
    try:
        # O_NONBLOCK, because a FIFO put in the place must not hold the caller up.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY) if path else None
    except (OSError, ValueError):
        return None


def _finish(answer: Answer, out: int) -> None:
    code = answer.code
    try:
        files.write_all(2, answer.stderr)
        files.write_all(out, answer.stdout)
    except OSError:
        code = code or 1  # the caller has gone, or its pipe has
    os._exit(code)
