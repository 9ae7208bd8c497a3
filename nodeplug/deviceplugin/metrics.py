"""What this daemon counts, on the process's registry. See docs/deviceplugin.md for what each tells."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nodeplug.daemon.metrics import LATENCY_BUCKETS

_HOTPLUG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Meters:
    """All of them; labels are bounded by the settings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        p = "nodeplug_deviceplugin_"
        r = ("resource",)
        self.registered = Gauge(
            p + "registered", "1 while the kubelet follows the resource's list.", r, registry=registry
        )
        self.registrations = Counter(
            p + "registrations", "Registrations that led to a stream, by flow.", (*r, "flow"), registry=registry
        )
        self.ends = Counter(p + "stream_ends", "Registrations that ended, by cause.", (*r, "cause"), registry=registry)
        self.refusals = Counter(p + "registration_errors", "Registrations the kubelet refused.", r, registry=registry)
        self.devices = Gauge(p + "devices", "Devices by health.", (*r, "health"), registry=registry)
        self.allocated = Gauge(
            p + "allocated", "Devices that pods have, as the kubelet last said.", r, registry=registry
        )
        self.publishes = Counter(p + "publishes", "Lists sent to the kubelet.", r, registry=registry)
        self.published_bytes = Counter(p + "published_bytes", "Bytes of those lists.", r, registry=registry)
        self.oversized = Counter(p + "oversized_lists", "Lists not sent: over gRPC's 4 MiB.", r, registry=registry)
        self.hotplug = Histogram(
            p + "hotplug_seconds",
            "From the event to the list that tells of it.",
            r,
            buckets=_HOTPLUG,
            registry=registry,
        )
        self.scan = Histogram(
            p + "scan_seconds",
            "Looks at the devices, by what led to them.",
            ("trigger",),
            buckets=_HOTPLUG,
            registry=registry,
        )
        self.lost = Counter(p + "lost_events", "Overflows: events the kernel dropped.", ("kind",), registry=registry)
        self.calls = Histogram(
            p + "call_seconds", "Calls answered.", (*r, "method"), buckets=LATENCY_BUCKETS, registry=registry
        )
        self.errors = Counter(p + "call_errors", "Calls answered with an error.", (*r, "method"), registry=registry)

    def forget(self, resource: str) -> None:
        """Drop the series of a resource that was withdrawn: settings may name ever new ones."""
        of_one = (self.registered, self.allocated, self.refusals, self.publishes, self.published_bytes, self.oversized)
        of_more = (self.registrations, self.ends, self.devices, self.calls, self.errors)
        for metric in (*of_one, *of_more, self.hotplug):
            metric.remove_by_labels({"resource": resource})
