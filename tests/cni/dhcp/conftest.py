"""What the tests of dhcp share: a network, the node's settings, and no lease of a test before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeplug.cni.ipam.dhcp import plugin
from tests.cni.dhcp.lan import DIRECTORY, Lan
from tests.ledger import Ledger
from tests.needs import missing

SETTINGS = Path("/etc/nodeplug/nodeplug.toml")


@pytest.fixture
def lan(ledger: Ledger) -> Iterator[Lan]:
    if missing("sandbox"):
        pytest.skip(f"needs sandbox: {missing('sandbox')}")
    yield Lan(ledger)
    for path in DIRECTORY.glob("*"):
        path.unlink()


@pytest.fixture(autouse=True)
def _short_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nodeplugd that is not there is not waited for as long as one that is being started again."""
    monkeypatch.setattr(plugin, "_RESTART", 0.3)


@pytest.fixture
def configure() -> Iterator[Callable[..., None]]:
    """Write `[cni.dhcp]` of the node's settings."""

    def write(text: str) -> None:
        SETTINGS.write_text(f"[cni.dhcp]\n{text}\n")

    yield write
    SETTINGS.unlink(missing_ok=True)


@pytest.fixture
def impatient(configure: Callable[..., None]) -> None:
    """ADD gives up soon, and does not mind that nobody renews."""
    configure('wait = "600ms"\nunattended = "0s"')
