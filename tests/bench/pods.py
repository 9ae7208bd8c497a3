"""Pods for a round each."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from tests.space import Space


@contextmanager
def a_pod() -> Iterator[Space]:
    """A namespace that ends with the block."""
    pod = Space.make(f"np-{secrets.token_hex(4)}")
    try:
        yield pod
    finally:
        pod.remove()
