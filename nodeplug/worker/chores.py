"""The chores of nodeplugd: which there are, which are kept, and what is seen of them. See `nodeplug.core.chore`.

A table, as for doors: an implementation lies behind its door and is imported from here by its name alone.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, cast

from nodeplug.worker.keeper import Keeper
from nodeplug.worker.tally import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from nodeplug.core.chore import Chore
    from nodeplug.daemon.health import Health
    from nodeplug.worker.notes import Note
    from nodeplug.worker.settings import ChoresSettings

TABLE = {
    "dhcp": "nodeplug.cni.ipam.dhcp.renewal:Renewal",
    "identity": "nodeplug.volumes.identity.chore:IdentityChore",
    "logs": "nodeplug.volumes.log.chore:LogChore",
}
"""Name -> "module:Class". Each name is also a key of `[worker.chores]` (`nodeplug.worker.settings.ChoresSettings`)."""

_PATIENCE = 3.0


def load(chosen: ChoresSettings, node: Mapping[str, object]) -> list[Chore]:
    """Those that the settings enable, made from the node's settings. Raises `ConfigInvalid`."""
    names = [name for name in TABLE if getattr(chosen, name, True)]
    return [_class(TABLE[name])(node) for name in names]


def _class(entry: str) -> type[Chore]:
    module, _, name = entry.partition(":")
    return cast("type[Chore]", getattr(importlib.import_module(module), name))


class Chores:
    """All that a daemon keeps, from construction to `close()`."""

    def __init__(self, chores: list[Chore], note: Note, health: Health) -> None:
        self._keepers = [Keeper(chore, note, health) for chore in chores]
        for keeper in self._keepers:
            keeper.start()

    @property
    def alive(self) -> bool:
        """False when a thread of theirs was lost: starting the process again mends it."""
        return all(keeper.alive for keeper in self._keepers)

    def close(self, seconds: float) -> None:
        """End them, last first. A run that takes longer ends with the process: all it needs is on disk."""
        deadline = time.monotonic() + min(seconds, _PATIENCE)
        for keeper in reversed(self._keepers):
            keeper.close(max(0.0, deadline - time.monotonic()))

    def register(self, registry: CollectorRegistry) -> None:
        """Show them in `registry`, as nodeplug_worker_chore_*."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        def collect() -> Iterator[Metric]:
            runs = CounterMetricFamily("nodeplug_worker_chore_runs", "Runs of a chore.", labels=["chore"])
            failed = CounterMetricFamily("nodeplug_worker_chore_failures", "Runs that failed.", labels=["chore"])
            troubles = CounterMetricFamily(
                "nodeplug_worker_chore_troubles", "Single things in trouble, in each run.", labels=["chore"]
            )
            overdue = GaugeMetricFamily(
                "nodeplug_worker_chore_overdue_seconds", "How long its work has been waiting.", labels=["chore"]
            )
            for keeper in self._keepers:
                account = keeper.account
                for family, value in (
                    (runs, account.runs),
                    (failed, account.failed),
                    (troubles, account.troubles),
                    (overdue, account.overdue),
                ):
                    family.add_metric([keeper.chore.name], value)
            yield from (runs, failed, troubles, overdue)

        registry.register(Shown(collect))
