"""The two tables that the settings of every daemon have, and the log that one of them describes."""

import os
from collections.abc import Mapping
from typing import Literal, cast

from nodeplug.core import document
from nodeplug.core.log import Log, to_descriptor
from nodeplug.core.record import Record, key


class HealthSettings(Record):
    """`[DAEMON.health]`: /livez, /readyz and /metrics."""

    listen: str = key(
        document.text, default="", help="a unix socket's path, or 127.0.0.1:PORT; empty: no pages are served"
    )


class LogSettings(Record):
    """`[DAEMON.log]`: what goes to stderr."""

    form: str = key(document.choice("json", "text"), default="json", help="one JSON object a line, or text for people")
    level: str = key(
        document.choice("debug", "info", "warning", "error"),
        default="info",
        help="the least that is written; debug may have a line for each call, never data",
    )


def open_log(wanted: LogSettings, environ: Mapping[str, str]) -> Log:
    """The log on stderr, with levels for the journal where that is what stderr is (systemd.exec(5), sd-daemon(3)).

    The variable alone does not tell: it is passed on to children whose stderr is something else.
    """
    form = cast("Literal['json', 'text']", wanted.form)
    level = cast("Literal['debug', 'info', 'warning', 'error']", wanted.level)
    status = os.fstat(2)
    journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return Log(to_descriptor(2, journal=journal), form=form, level=level)
