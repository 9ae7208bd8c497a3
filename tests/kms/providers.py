"""Providers opened in the test's own process, with what a daemon would lend them."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry

from nodeplug.core import document
from nodeplug.daemon.health import Health
from nodeplug.kms.contract import Api, Call, Provider, Surroundings
from nodeplug.kms.providers.guarded import Guarded
from tests.ledger import Ledger


class Opened:
    """A provider behind its guard; `notes` has what it said, `value` reads one metric."""

    def __init__(self, ledger: Ledger, kind: type[Provider], **keys: Any) -> None:
        self.notes: list[str] = []
        self.registry = CollectorRegistry()

        def note(message: str, *, level: str = "info") -> None:
            self.notes.append(message)

        surroundings = Surroundings({}, Health(), self.registry, note)
        self.inner = kind(document.decode(kind.Settings, keys), surroundings)
        self.provider = Guarded(self.inner, self.registry)
        ledger.adopt("provider", self.provider.close)

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


def call(seconds: float = 3.0, api: Api = Api.V2) -> Call:
    return Call(api, "uid", time.monotonic() + seconds)
