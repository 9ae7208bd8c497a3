"""A node that is not there."""

from __future__ import annotations

import pytest

from tests.devices.fake import FakeNode
from tests.ledger import Ledger


@pytest.fixture
def fake(ledger: Ledger) -> FakeNode:
    return FakeNode(ledger.directory())
