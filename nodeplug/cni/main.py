"""The executable: a call from this process, its answer to this process. About all that may touch either."""

from __future__ import annotations

import os
import sys

from nodeplug.cni import dispatch
from nodeplug.cni.contract import EnvironmentInvalid
from nodeplug.core import config, document, files, log, paths
from nodeplug.core.call import Answer, Call
from nodeplug.core.document import absolute_path, choice, integer
from nodeplug.core.errors import Error
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from nodeplug.cni.contract import Plugin

_LARGEST = 16 << 20  # a GC's list of 100,000 attachments fits


class LogSettings(Record):
    """`[cni.log]` of the node's settings."""

    path: str = key(absolute_path, default=paths.LOG + "/cni.log", help="the file; it moves to .1, .2 ... as it grows")
    form: str = key(choice("json", "text"), default="json", help="one JSON object a line, or text for people")
    level: str = key(choice("debug", "info", "warning", "error"), default="info", help="the least that is written")
    limit: int = key(document.size, default=8 << 20, help="bytes after which the file moves")
    keep: int = key(integer(0, 100), default=3, help="old files kept")


def run(plugin: type[Plugin]) -> NoReturn:
    """Be the executable of that plugin: an author's own file calls this and nothing else."""
    _finish(_answer(plugin.name or os.path.basename(sys.argv[0]), plugin))


def main() -> NoReturn:
    """Be the executable of the plugin of ours that this file is named after."""
    _finish(_answer(os.path.basename(sys.argv[0]), None))


def _answer(name: str, plugin: type[Plugin] | None) -> Answer:
    env = dict(os.environ)
    stdin = b""
    try:
        to = _log()
        if env.get("CNI_COMMAND", "") not in ("", "VERSION"):
            stdin = files.read_fd(0, _LARGEST, "the configuration on stdin")
    except Error as error:
        return dispatch.refuse(error, env.get("CNI_COMMAND", ""))
    except OSError as error:
        return dispatch.refuse(EnvironmentInvalid(f"cannot read stdin: {error.strerror}"), env.get("CNI_COMMAND", ""))
    call = Call(contract="cni", name=name, argv=tuple(sys.argv[1:]), env=env, stdin=stdin)
    return dispatch.answer(call, to=to, plugin=plugin)


def _log() -> log.Log:
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
