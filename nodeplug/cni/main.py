"""The executable: a call from this process, its answer to this process. About all that may touch either."""

from __future__ import annotations

import os
import sys

from nodeplug.cni import dispatch
from nodeplug.core import config, document, errors, files, log, paths
from nodeplug.core.call import Answer, Call
from nodeplug.core.document import absolute_path, choice, integer
from nodeplug.core.errors import Error, Malformed
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from nodeplug.cni.contract import Plugin

_LARGEST = 16 << 20  # a GC's list of 100,000 attachments fits
_STDIN = "the configuration on stdin"


class LogSettings(Record):
    """`[cni.log]` of the node's settings."""

    path: str = key(absolute_path, default=paths.LOG + "/cni.log", help="the file; it moves to .1, .2 ... as it grows")
    form: str = key(choice("json", "text"), default="json", help="one JSON object a line, or text for people")
    level: str = key(choice("debug", "info", "warning", "error"), default="info", help="the least that is written")
    limit: int = key(document.size, default=8 << 20, help="bytes after which the file moves")
    keep: int = key(integer(0, 100), default=3, help="old files kept")


def run(plugin: type[Plugin]) -> NoReturn:
    """Be the executable of that plugin: an author's own file calls this and nothing else."""
    _finish(_answer(plugin.name or os.path.basename(sys.argv[0]), plugin, arguments=sys.argv[1:]))


def main(argv: Sequence[str], *, stdin: bytes | None = None) -> NoReturn:
    """Be the executable of the plugin of ours that `argv[0]` is named after. `stdin` is its content if it was read."""
    name = os.path.basename(argv[0]) if argv else ""
    _finish(_answer(name, None, arguments=argv[1:], stdin=stdin))


def _answer(name: str, plugin: type[Plugin] | None, *, arguments: Sequence[str], stdin: bytes | None = None) -> Answer:
    env = dict(os.environ)
    try:
        to = open_log()
        if env.get("CNI_COMMAND", "") in ("", "VERSION"):
            stdin = b""
        elif stdin is None:
            stdin = files.read_fd(0, _LARGEST, _STDIN)
        elif len(stdin) > _LARGEST:
            raise Malformed(f"{_STDIN} is larger than {_LARGEST} bytes")
    except Error as error:
        return dispatch.refuse(error, env.get("CNI_COMMAND", ""))
    except OSError as error:
        return dispatch.refuse(errors.from_os(error, "cannot read stdin"), env.get("CNI_COMMAND", ""))
    call = Call(contract="cni", name=name, argv=tuple(arguments), env=env, stdin=stdin)
    return dispatch.answer(call, to=to, plugin=plugin)


def open_log() -> log.Log:
    """The node's log of CNI calls, as its settings say. Raises `ConfigInvalid`."""
    settings = config.section(LogSettings, config.load(), "cni.log", paths.ETC)
    sink = log.RotatingFile(settings.path, limit=settings.limit, keep=settings.keep)
    return log.Log(sink, form=settings.form, level=settings.level)  # type: ignore[arg-type]  # choice() has checked both


def _finish(answer: Answer) -> NoReturn:
    code = answer.code
    try:
        files.write_all(2, answer.stderr)
        files.write_all(1, answer.stdout)
    except OSError:
        code = code or 1  # the caller has gone, or its pipe has: what was done stays, and it will ask for DEL
    os._exit(code)
