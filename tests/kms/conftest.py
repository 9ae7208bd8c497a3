from __future__ import annotations

import grpc
import pytest

from tests.kms.node import Node
from tests.ledger import Ledger

# gRPC keeps a few descriptors for the process once it has been used; they are nobody's leak.
grpc.insecure_channel("unix:/nonexistent").close()


@pytest.fixture
def node(ledger: Ledger) -> Node:
    """A node with a ring of one key and no daemon yet."""
    node = Node(ledger)
    node.kms("init").ok()
    return node
