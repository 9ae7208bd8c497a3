"""The executable: a call from this process, its answer to this process. About all that may touch either."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, start_new_thread

from nodeplug.core import config, document, files, log, paths
from nodeplug.core.call import Answer, Call
from nodeplug.core.document import absolute_path, choice, integer
from nodeplug.core.errors import Error, TimedOut
from nodeplug.core.record import Record, key
from nodeplug.flexvolume import dispatch, process, protocol
from nodeplug.volumes.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from nodeplug.flexvolume.contract import Driver

_GRACE = 5.0
"""Seconds after the deadline of a call in which it may still end by itself."""


class LogSettings(Record):
    """`[flexvolume.log]` of the node's settings."""

    path: str = key(
        absolute_path, default=paths.LOG + "/flexvolume.log", help="the file; it moves to .1, .2 ... as it grows"
    )
    form: str = key(choice("json", "text"), default="json", help="one JSON object a line, or text for people")
    level: str = key(choice("debug", "info", "warning", "error"), default="info", help="the least that is written")
    limit: int = key(document.size, default=8 << 20, help="bytes after which the file moves")
    keep: int = key(integer(0, 100), default=3, help="old files kept")


class Means(Record):
    """What calls need of the node's settings."""

    log: log.Log
    policy: Policy


def load() -> Means:
    """The node's log of FlexVolume calls and its policy of volumes. Raises `ConfigInvalid` with every problem."""
    found = config.load()
    settings = config.section(LogSettings, found, "flexvolume.log", paths.ETC)
    policy = config.section(Policy, found, "volumes", paths.ETC)
    return Means(log=_log(settings), policy=policy)


def run(driver: type[Driver]) -> NoReturn:
    """Be the executable of that driver: an author's own file calls this and nothing else."""
    out = process.take_output()
    arguments = sys.argv[1:]
    process.hide_arguments(arguments[1:])
    try:
        made = driver()
    except (Exception, SystemExit) as error:
        _finish(dispatch.refuse(dispatch.fault(error)), out)
    made.name = made.name or os.path.basename(sys.argv[0])
    _serve(made.name, arguments, made, out=out)


def main(argv: Sequence[str], *, out: int) -> NoReturn:
    """Be the executable of the driver of ours that `argv[0]` is named after, and answer on `out`."""
    _serve(os.path.basename(argv[0]) if argv else "", argv[1:], None, out=out)


def _serve(name: str, arguments: Sequence[str], driver: Driver | None, *, out: int) -> NoReturn:
    answering = allocate_lock()  # never given back: one answer is given
    try:
        start_new_thread(_watch, (out, answering))
    except RuntimeError:
        pass  # no thread to be had: the call has its own deadline
    if protocol.secrets_of(arguments):
        process.forbid_dumps()
    call = Call(contract="flexvolume", name=name, argv=tuple(arguments), env=dict(os.environ))
    policy: Policy | Error
    try:
        means = load()
        to, policy = means.log, means.policy
    except Error as error:
        to, policy = _log(LogSettings()), error  # what ends a volume goes on without settings
    answer = dispatch.answer(call, to=to, policy=policy, driver=driver)
    answering.acquire()
    _finish(answer, out)


def _watch(out: int, answering: object) -> None:
    """Answer in the place of a driver that does not end: nobody else would ever end it."""
    from time import sleep

    sleep(dispatch.LIMIT + _GRACE)
    if answering.acquire(False):  # type: ignore[attr-defined]  # a lock, whose type has no name here
        process.kill_children()
        _finish(dispatch.refuse(TimedOut("the driver did not end in time; the kubelet tries again")), out)


def _finish(answer: Answer, out: int) -> NoReturn:
    try:
        files.write_all(out, answer.stdout)
    except OSError:
        pass  # the caller has gone, and will ask again
    os._exit(answer.code)


def _log(settings: LogSettings) -> log.Log:
    sink = log.RotatingFile(settings.path, limit=settings.limit, keep=settings.keep)
    return log.Log(sink, form=settings.form, level=settings.level)  # type: ignore[arg-type]  # choice() has checked both
