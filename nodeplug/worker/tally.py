"""What the worker counts: requests by how they ended, connections by why they were refused. Cheap; shown on demand."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""Seconds, from arrival to the end of the answer; the last bucket has no bound."""


class Tally:
    """Shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()

    def served(self, contract: str, outcome: str, seconds: float) -> None:
        """A request ended: "ok", "error", "foreign", "late", "unheard" or "stranded"."""
        with self._lock:
            self._served[(contract, outcome)] += 1
            buckets = self._buckets.setdefault(contract, [0] * (len(BOUNDS) + 1))
            buckets[sum(seconds > bound for bound in BOUNDS)] += 1
            self._seconds[contract] += seconds  # type: ignore[assignment]  # a Counter adds floats as well

    def refused(self, contract: str, why: str) -> None:
        """A connection was closed before its request was taken: "stranger", "full", "malformed", "slow" or "gone"."""
        with self._lock:
            self._refused[(contract, why)] += 1

    def register(self, registry: CollectorRegistry, *, under_way: Callable[[], int]) -> None:
        """Show it in `registry`, as nodeplug_worker_*."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def collect() -> Iterator[Metric]:
            requests = CounterMetricFamily(
                "nodeplug_worker_requests", "Requests by how they ended.", labels=["contract", "outcome"]
            )
            refused = CounterMetricFamily(
                "nodeplug_worker_refused",
                "Connections closed before their request was taken.",
                labels=["contract", "why"],
            )
            seconds = HistogramMetricFamily(
                "nodeplug_worker_seconds", "From a request's arrival to its end.", labels=["contract"]
            )
            with self._lock:
                for labels, count in self._served.items():
                    requests.add_metric(labels, count)
                for labels, count in self._refused.items():
                    refused.add_metric(labels, count)
                for contract, buckets in self._buckets.items():
                    names = [*map(str, BOUNDS), "+Inf"]
                    sums = [sum(buckets[: n + 1]) for n in range(len(buckets))]
                    seconds.add_metric([contract], list(zip(names, sums, strict=True)), self._seconds[contract])
            busy = GaugeMetricFamily(
                "nodeplug_worker_under_way", "Requests that are served or wait for it.", value=under_way()
            )
            yield from (requests, refused, seconds, busy)

        registry.register(Shown(collect))


class Shown:
    """A collector, as prometheus-client wants it."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect
