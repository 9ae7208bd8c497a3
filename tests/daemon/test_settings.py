"""The log on stderr: levels for the journal only where stderr is the journal's."""

from __future__ import annotations

import os
import socket
import sys

from tests.child import run
from tests.examples import ROOT

SCRIPT = (
    "import os; from nodeplug.core.log import Event; from nodeplug.daemon.settings import LogSettings, open_log;"
    "open_log(LogSettings(), os.environ).write(Event(contract='t', op='o', level='warning', message='m'))"
)


def written(environ: dict[str, str]) -> str:
    done = run([sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": str(ROOT), **environ})
    assert done.code == 0
    return done.stderr.decode()


def test_a_variable_that_was_passed_on_with_another_stderr_marks_no_line() -> None:
    assert written({"JOURNAL_STREAM": "1:2"}).startswith("{")
    assert written({}).startswith("{")


def test_lines_for_the_journal_begin_with_their_level() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        script = (
            "import os, subprocess, sys; status = os.fstat(2);"
            "environ = {**os.environ, 'JOURNAL_STREAM': f'{status.st_dev}:{status.st_ino}'};"
            f"sys.exit(subprocess.run([sys.executable, '-c', {SCRIPT!r}], env=environ).returncode)"
        )
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", script],
            {**os.environ, "PYTHONPATH": str(ROOT)},
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 2)],
        )
        assert os.waitpid(pid, 0)[1] == 0
        ours.settimeout(10)
        assert ours.recv(4096).startswith(b"<4>{")
