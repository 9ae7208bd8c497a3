"""`python -m tests.shards [pytest arguments]`: pytest in several sandboxes at once, as one run.

Most tests wait for something, so that one after another leave the machine idle. Here a first process of pytest, which
runs no test itself, starts pytest in sandboxes, one more than there are cores (see `tests.sandbox`, `tests.shard`), and
hands out modules, one at a time to each. What it hears it reports when a module is through, as if it had run it: one
output, one summary, one exit status, every option that shapes them.

- each module runs once, in one sandbox, in the order of its tests; all see the same tests, or the run ends
- a sandbox that dies fails the test it was at, and the others go on
- Ctrl-C and SIGTERM end all of them, with what they know by then
- what is the machine's, whatever the namespace, is left to the first sandbox: see `ALONE`
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import pytest

from tests import sandbox
from tests.shard import FD, module_of

ALONE = ("tests/volumes/", "tests/flexvolume/", "tests/kernel/test_loop.py", "tests/real/test_volumes.py")
"""Modules that use loop devices: any process of the machine can meet those of another."""
FIRST = ("tests/arch/", "tests/real/")
"""In this order: what a fresh node costs; and what takes longest, lest one sandbox runs on when all others are done."""

_MOST = 4
_GRACE = 60.0


def main(arguments: list[str]) -> int:
    """Run pytest with `arguments`; returns its exit status."""
    if sandbox.what_is_missing():
        return sandbox.main(arguments)
    os.chdir(sandbox.CHECKOUT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    count = min((os.cpu_count() or 1) + 1, _MOST)
    return int(pytest.main(arguments, plugins=[Shards(arguments, count)]))


class Shard:
    """A pytest in a sandbox of its own, and what is known of it."""

    def __init__(self, number: int, arguments: list[str]) -> None:
        self.number = number
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        # Of its own group, so that Ctrl-C comes from here: what it reports on its way out is to be heard.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sandbox", "-p", "tests.shard", "-p", "no:cacheprovider", *arguments],
            env={**os.environ, FD: str(theirs.fileno())},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.tests: list[str] | None = None
        self.module = ""
        self.at = ""
        self.reports: list[pytest.TestReport] = []
        self.ended = False

    def read(self) -> tuple[str, Any]:
        """The next thing it says; ("ended", None) when it will say no more."""
        try:
            said: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.ended = True
            return "ended", None
        return said

    def run(self, module: str) -> None:
        self.module = module
        self._tell(module)

    def finish(self) -> None:
        """Nothing more is to be run."""
        self._tell(None)

    def _tell(self, what: str | None) -> None:
        try:
            self.connection.send(what)
        except OSError:
            pass  # it has died, which the next read says

    def interrupt(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def end(self) -> None:
        """Kill what is left of it; its namespaces go with it."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.output.close()

    def last_words(self) -> str:
        status = self.process.wait(_GRACE)
        said = os.pread(self.output.fileno(), 1 << 20, 0).decode(errors="replace")
        return f"sandbox {self.number} ended with status {status}; it wrote:\n{said[-8000:]}"


class Shards:
    """The plugin of the first process: it collects and runs nothing, and reports what the sandboxes say."""

    def __init__(self, arguments: list[str], count: int) -> None:
        self._arguments = arguments
        self._count = count
        self._shards: list[Shard] = []
        self._waiting: deque[str] = deque()
        self._tests: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool:
        self._shards += [Shard(number, self._arguments) for number in range(1, self._count + 1)]
        session.items = []
        for shard in self._shards:
            self._await_collection(session, shard)
        known = self._shards[0].tests or []
        for shard in self._shards[1:]:
            if shard.tests != known:
                differing = sorted(set(known) ^ set(shard.tests or []))
                raise session.Interrupted(f"not all sandboxes see the same tests: {differing[:10]}")
        for test in known:
            self._tests.setdefault(module_of(test), []).append(test)
        self._waiting += sorted(self._tests, key=lambda module: [not module.startswith(early) for early in FIRST])
        session.testscollected = len(known)
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"{len(known)} tests of {len(self._tests)} modules, in {self._count} sandboxes")
        return True

    def _await_collection(self, session: pytest.Session, shard: Shard) -> None:
        errors = 0
        while shard.tests is None:
            kind, what = shard.read()
            if kind == "ended":
                raise session.Interrupted(shard.last_words())
            if kind == "collected":
                shard.tests = what
            elif shard.number == 1:  # the others tell the same
                report = self._revived(session, what)
                errors += report.failed
                session.config.hook.pytest_collectreport(report=report)
        if errors and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{errors} errors during collection")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.config.option.collectonly:
            return True
        try:
            for shard in self._shards:
                self._hand_out(shard)
            for shard, kind, what in self._heard():
                self._take(session, shard, kind, what)
                if session.shouldfail or session.shouldstop:
                    raise session.Failed(session.shouldfail or session.shouldstop)
            for module in self._waiting:
                self._fail(session, self._tests[module][0], "no sandbox is left to run this module")
        finally:
            self._interrupt(session)
        return True

    def _heard(self) -> Iterator[tuple[Shard, str, Any]]:
        """What the sandboxes say, until the last of them has ended."""
        while True:
            speaking = {shard.connection: shard for shard in self._shards if not shard.ended}
            if not speaking:
                return
            for connection in wait(list(speaking), _GRACE):
                shard = speaking[connection]  # type: ignore[index]  # it returns what it was given
                yield (shard, *shard.read())

    def _hand_out(self, shard: Shard) -> None:
        alone = [module for module in self._waiting if module.startswith(ALONE)]
        anywhere = [module for module in self._waiting if not module.startswith(ALONE)]
        for module in (alone if shard.number == 1 else []) + anywhere:
            self._waiting.remove(module)
            shard.run(module)
            return
        shard.finish()

    def _take(self, session: pytest.Session, shard: Shard, kind: str, what: Any) -> None:
        if kind == "at":
            shard.at = what
        elif kind == "report":
            shard.reports.append(self._revived(session, what))
        elif kind == "done":
            self._report(session, shard)
            self._hand_out(shard)
        elif kind == "ended" and shard.module:
            at = shard.at or self._tests[shard.module][0]
            self._report(session, shard)
            self._fail(session, at, shard.last_words())

    def _report(self, session: pytest.Session, shard: Shard) -> None:
        """Say what is known of the module, as the process that ran it would have."""
        hook, reporting = session.config.hook, ""
        reports, shard.reports, shard.module, shard.at = shard.reports, [], "", ""
        for report in reports:
            if report.nodeid != reporting:
                if reporting:
                    hook.pytest_runtest_logfinish(nodeid=reporting, location=report.location)
                reporting = report.nodeid
                hook.pytest_runtest_logstart(nodeid=reporting, location=report.location)
            hook.pytest_runtest_logreport(report=report)
        if reporting:
            hook.pytest_runtest_logfinish(nodeid=reporting, location=reports[-1].location)

    def _fail(self, session: pytest.Session, test: str, why: str) -> None:
        path = module_of(test)
        report = pytest.TestReport(test, (path, None, test), {}, "failed", why, "call")
        session.config.hook.pytest_runtest_logreport(report=report)

    def _interrupt(self, session: pytest.Session) -> None:
        """End what still runs, and tell what it knew."""
        running = [shard for shard in self._shards if not shard.ended]
        try:
            for shard in running:
                shard.interrupt()
            deadline = time.monotonic() + _GRACE
            for shard, kind, what in self._heard() if running else ():
                if kind == "report":
                    shard.reports.append(self._revived(session, what))
                if time.monotonic() > deadline:
                    break
            for shard in running:
                self._report(session, shard)
        finally:
            for shard in self._shards:
                shard.end()

    def _revived(self, session: pytest.Session, data: dict[str, Any]) -> Any:
        hook = session.config.hook
        return hook.pytest_report_from_serializable(config=session.config, data=data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
