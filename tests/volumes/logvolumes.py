"""Volumes of logs on a node: published by a service, kept by the chore in this process or by nodeplugd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nodeplug.core.paths import LOG
from nodeplug.volumes import state
from nodeplug.volumes.contract import Request
from nodeplug.volumes.log import index, records
from nodeplug.volumes.log.chore import LogChore
from nodeplug.worker.keeper import Turn
from tests.ledger import Ledger
from tests.volumes.places import POD, Place

PODS = Path(LOG, "pods")


class Node(Place):
    """See `Place`; what a test leaves of its logs is taken away."""

    def __init__(self, ledger: Ledger, **limits: int) -> None:
        super().__init__(ledger, **limits)
        ledger.adopt("logs", self._forget)

    def _forget(self) -> None:
        for target in self.top.glob("pods/*/volumes/*/*"):
            self.service.unpublish(str(target))
        for id in records.ids():
            known = records.read(id)
            if known is not None:
                records.remove(known, lambda _: None)

    def log(self, *, volume: str = "logs", **options: Any) -> Request:
        request: Request = self.request("log", volume=volume, **{"size": "8Mi", **options})
        return request

    def publish(self, **options: Any) -> Path:
        request = self.log(**options)
        self.service.publish(request)
        return Path(request.target)

    def place(self, volume: str = "logs") -> Path:
        """Where collectors find it."""
        return PODS / f"{POD.namespace}_{POD.name}_{POD.uid}" / volume

    def account(self, volume: str = "logs") -> index.Index:
        return index.read(f"{self.place(volume)}.json")

    def known(self, volume: str = "logs") -> records.Known:
        found = records.read(self.log(volume=volume).id)
        assert found is not None
        return found

    def remains(self, *, besides: str = "nothing") -> list[str]:
        """As in `Place`, and of logs."""
        found = [f"record {id}" for id in records.ids()]
        found += [f"place {path}" for path in PODS.rglob("*")]
        return found + super().remains(besides=besides)


class Hand:
    """The chore called by hand; each round ends at once."""

    def __init__(self, ledger: Ledger) -> None:
        self.chore = LogChore({})
        self._stop = os.eventfd(0)
        ledger.adopt("chore", self.chore.close)
        ledger.adopt("stop", lambda: os.close(self._stop))
        self.said: list[str] = []

    def round(self) -> dict[str, str]:
        """One look at all volumes; what is in trouble."""
        turn = Turn(self._stop, lambda sentence, **_more: self.said.append(sentence))
        self.chore._take_up(turn)
        for each in self.chore._watched.values():
            self.chore._look(each)
        return dict(self.chore._told)


def states() -> list[str]:
    return state.ids()
