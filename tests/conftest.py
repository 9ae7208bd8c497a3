"""Fixtures for all tests. The tools behind them: ledger, space, traffic, child, needs (each says how in its docstring).

    ledger         hands out namespaces, directories, sockets, processes; takes them back after the test
    module_ledger  the same for a module: what is costly to start, once for all its tests
    netns          one fresh network namespace (needs the sandbox)
    directory      one fresh directory with a short path

Nothing may outlive a module: the leak check that closes each names what did, and the run fails. So there are no
fixtures of session scope.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import leaks
from tests.ledger import Ledger
from tests.needs import IN_THE_VM, missing
from tests.skips import Skips
from tests.space import Space


@pytest.fixture(scope="module", autouse=True)
def _leak_check() -> Iterator[None]:
    before = leaks.look()
    yield
    left = leaks.since(before)
    leaks.sweep()
    assert not left, "left behind by this module:\n  " + "\n  ".join(left)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """What this test takes from the system; taken back at its end."""
    book = Ledger()
    yield book
    book.close()


@pytest.fixture(scope="module")
def module_ledger(_leak_check: None) -> Iterator[Ledger]:
    """What this module's tests share; taken back after the last of them."""
    book = Ledger()
    yield book
    book.close()


@pytest.fixture
def netns(ledger: Ledger) -> Space:
    """A fresh network namespace; skips where none can be made."""
    if missing("sandbox"):
        pytest.skip(f"needs sandbox: {missing('sandbox')}")
    return ledger.netns()


@pytest.fixture
def directory(ledger: Ledger) -> Path:
    """A fresh directory, short enough for sockets; mounts and loop devices below it end with it."""
    return ledger.directory()


# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile("nodeplug", deadline=None)
hypothesis.settings.load_profile("nodeplug")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what the test needs of the machine, see tests/needs.py")
    config.pluginmanager.register(Skips(), "nodeplug-skips")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(name in IN_THE_VM for mark in item.iter_markers("needs") for name in mark.args):
            item.add_marker("vm")
