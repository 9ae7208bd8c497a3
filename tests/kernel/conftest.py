"""Fixtures of the kernel tests: an open namespace and a routing socket in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from tests.ledger import Ledger
from tests.space import Space


@pytest.fixture
def opened(netns: Space) -> Iterator[Netns]:
    """The test's namespace, open."""
    with Netns.open(netns.path) as handle:
        yield handle


@pytest.fixture
def route(opened: Netns) -> Iterator[Netlink]:
    """A routing socket in the test's namespace."""
    with Netlink(NETLINK_ROUTE, netns=opened) as socket:
        yield socket


@pytest.fixture
def pod(ledger: Ledger, netns: Space) -> Space:
    """A second namespace."""
    return ledger.netns()


@pytest.fixture
def pod_opened(pod: Space) -> Iterator[Netns]:
    """The second namespace, open."""
    with Netns.open(pod.path) as handle:
        yield handle


@pytest.fixture
def pod_route(pod_opened: Netns) -> Iterator[Netlink]:
    """A routing socket in the second namespace."""
    with Netlink(NETLINK_ROUTE, netns=pod_opened) as socket:
        yield socket
