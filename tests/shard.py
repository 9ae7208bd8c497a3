"""A pytest plugin: run the modules that another process asks for, and tell it how they went. See `tests.shards`.

Said over the socket whose descriptor `FD` names, in this order: ("collect", report) for each module that could not be
collected, ("collected", ids of the tests), and of each module ("at", id) and ("report", report) for each test, then
("done", module). Asked: the path of a module; None to end.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

import pytest

FD = "NODEPLUG_TEST_SHARD"


def module_of(test: str) -> str:
    """The path of the module that a test's id begins with."""
    return test.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    fd = int(os.environ[FD])
    os.set_inheritable(fd, False)
    config.pluginmanager.register(Asked(config, Connection(fd)), "nodeplug-shard")


class Asked:
    """What the other process asks for is run as pytest would run it by itself."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        modules: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            modules.setdefault(module_of(item.nodeid), []).append(item)
        self._connection.send(("collected", [item.nodeid for item in session.items]))
        while module := self._connection.recv():
            items = modules[module]
            # Nothing outlives a module, so the last test of each has no next one.
            for item, following in zip(items, [*items[1:], None], strict=True):
                self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._connection.send(("done", module))
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._send("collect", report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._connection.send(("at", nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send("report", report)

    def _send(self, kind: str, report: Any) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send((kind, data))
