"""No silent gaps: every skip is listed at the end of the run, with the place where the test runs instead.

On Debian 12 as root, a skip that expected-skips.txt does not know fails the run; in the emulated machine, which is
there to run what others skip, every skip does. A pytest plugin, registered by conftest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.needs import missing
from tests.sandbox import IN_VM

EXPECTED = Path(__file__).with_name("expected-skips.txt")


@dataclass(frozen=True)
class Expectation:
    """One line of expected-skips.txt: a name of `needs`, or a pattern of test ids; why; and where it runs instead."""

    what: str
    why: str
    instead: str

    def covers(self, test: str, reason: str) -> bool:
        return fnmatchcase(test, self.what) or reason.startswith(f"needs {self.what}: ")


def read_expectations(text: str) -> list[Expectation]:
    """The lines of expected-skips.txt: three columns parted by `|`; `#` begins a comment."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            what, why, instead = (column.strip() for column in line.split("|"))
            found.append(Expectation(what, why, instead))
    return found


def strict() -> bool:
    """Whether this machine is one where nothing may be skipped unannounced."""
    if os.geteuid() != 0:
        return False
    try:
        release = Path("/etc/os-release").read_text().replace('"', "").splitlines()
    except OSError:
        return False
    return "ID=debian" in release and "VERSION_ID=12" in release


class Skips:
    """Collects skips, lists them, and fails the run over those that nobody announced."""

    def __init__(self) -> None:
        in_vm = os.environ.get(IN_VM) == "1"
        self._expected = [] if in_vm else read_expectations(EXPECTED.read_text())
        self._strict = in_vm or strict()
        self._seen: list[tuple[str, str]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                reason = missing(name)
                if reason:
                    pytest.skip(f"needs {name}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._seen.append((report.nodeid, reason.removeprefix("Skipped: ")))

    def _expectation(self, test: str, reason: str) -> Expectation | None:
        return next((line for line in self._expected if line.covers(test, reason)), None)

    def _unannounced(self) -> list[tuple[str, str]]:
        return [seen for seen in self._seen if self._expectation(*seen) is None]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._strict and self._unannounced() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._seen:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"{len(self._seen)} skipped")
        by_reason: dict[tuple[str, str], list[str]] = {}
        for test, reason in self._seen:
            line = self._expectation(test, reason)
            where = f"runs instead: {line.instead}" if line else "NOT IN tests/expected-skips.txt"
            by_reason.setdefault((reason, where), []).append(test)
        for (reason, where), tests in sorted(by_reason.items()):
            write(f"{reason} [{where}]")
            for test in tests:
                write(f"    {test}")
        if self._strict and self._unannounced():
            write("This machine must skip nothing unannounced, so the run fails.", red=True)
