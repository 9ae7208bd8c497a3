"""The process's metrics: one prometheus-client registry of its own, with the process collectors.

Each room makes its metrics on the registry it is handed; nothing registers itself at import.
"""

from prometheus_client import CollectorRegistry, GCCollector, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

import nodeplug

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. A call on this machine takes 0.2 ms, one over the network 2 to 60 ms, and callers give up after 3 s.
LATENCY_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0)


def open_registry(daemon: str) -> CollectorRegistry:
    """A registry that knows the process (memory, CPU, open files), the collector of garbage and our version."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    Info("nodeplug_build", "What runs here.", registry=registry).info(
        {"version": nodeplug.__version__, "daemon": daemon}
    )
    return registry


def page(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus' text format."""
    return bytes(generate_latest(registry))
