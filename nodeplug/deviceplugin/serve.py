"""The gRPC services of one resource: what is asked, gated, answered from the snapshot, and measured.

`Service` lives as long as the resource, `Endpoint` as long as one registration.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from nodeplug.core import child
from nodeplug.core.errors import Error, Refused
from nodeplug.daemon import grpcserver
from nodeplug.daemon.grpcserver import Abort, Call, Limits, Server
from nodeplug.daemon.listeners import Place
from nodeplug.deviceplugin import protocol
from nodeplug.deviceplugin.allocation import allocate, pick, prefer
from nodeplug.deviceplugin.cdi import SpecFile
from nodeplug.deviceplugin.contract import WIRE_LIMIT, Allocation
from nodeplug.deviceplugin.metrics import Meters
from nodeplug.deviceplugin.settings import Resource
from nodeplug.devices.contract import Device
from nodeplug.devices.snapshot import Publisher, Snapshot

PUBLISHES = 4  # a second, per resource: the kubelet rewrites its checkpoint for each
RETURN = 2.0  # seconds an allocation waits for a device that has just gone
_STREAMS = 3
_ROOM = 1024  # bytes of a message kept free for what gRPC adds
_LIMITS = Limits(threads=8, queue=64, message_bytes=WIRE_LIMIT, streams=64)

Note = Callable[[str, str], None]
"""Takes a level and a sentence for the log."""


class Service:
    """One resource's answers. `by_cdi` is asked at each allocation."""

    def __init__(
        self,
        resource: Resource,
        publisher: Publisher,
        *,
        spec_file: SpecFile | None,
        by_cdi: Callable[[], bool],
        meters: Meters,
        note: Note,
    ) -> None:
        self.resource = resource
        self.publisher = publisher
        self.meters = meters
        self.sent = -1  # version of the last list that went out
        self.oversized = ""
        self.cdi_trouble = ""
        self._spec_file = spec_file
        self._by_cdi = by_cdi
        self._note = note
        self._writing = threading.Lock()
        self._spec_version = -1
        self._recent: collections.deque[float] = collections.deque(maxlen=PUBLISHES)
        self._writer = protocol.ListWriter(replicas=resource.share.replicas, numa=resource.numa)
        self._listing = threading.Lock()

    @property
    def options(self) -> tuple[bool, bool]:
        """(PreStartContainer wanted, GetPreferredAllocation available)."""
        return self.resource.reset is not None, True

    def get_options(self, _request: bytes, _call: Call) -> bytes:
        reset, preferred = self.options
        return protocol.write_options(reset=reset, preferred=preferred)

    def lists(self, over: threading.Event) -> Iterator[bytes]:
        """Lists of devices, the present one at once, each later one when something has changed."""
        sent = -1
        while not over.is_set():
            snapshot = self.publisher.current
            if snapshot.version == sent:
                snapshot = self.publisher.wait(sent, 60.0, unless=over.is_set)
                if snapshot.version == sent:
                    continue
            if sent >= 0:
                over.wait(self._must_wait())
                if over.is_set():
                    return
                snapshot = self.publisher.current
            data = self._list(snapshot)
            first, sent = sent < 0, snapshot.version
            if data is None:
                if not first:
                    continue
                data = b""  # the kubelet waits for a first list; the last good one is not known to it
            self._recent.append(time.monotonic())
            yield data
            self._went_out(snapshot, len(data))

    def _must_wait(self) -> float:
        if len(self._recent) < PUBLISHES:
            return 0.0
        return max(0.0, self._recent[0] + 1.0 - time.monotonic())

    def _list(self, snapshot: Snapshot) -> bytes | None:
        """The message; None when the kubelet's client would refuse it."""
        with self._listing:
            data = self._writer.write(snapshot.devices)
        name, size = self.resource.name, len(data)
        if size <= WIRE_LIMIT - _ROOM:
            self.oversized = ""
            return data
        self.meters.oversized.labels(name).inc()
        entries = len(snapshot.devices) * self.resource.share.replicas
        sentence = (
            f"the list of {entries} devices takes {size} bytes and the kubelet reads {WIRE_LIMIT}: it was not sent; "
            f"set limit to at most {entries * (WIRE_LIMIT - _ROOM) // size // self.resource.share.replicas}, ask for "
            "fewer replicas, or make each device stand for more"
        )
        if not self.oversized:
            self._note("error", f"{name}: {sentence}")
        self.oversized = sentence
        return None

    def _went_out(self, snapshot: Snapshot, size: int) -> None:
        name = self.resource.name
        fresh = snapshot.version != self.sent
        self.sent = snapshot.version
        self.meters.publishes.labels(name).inc()
        self.meters.published_bytes.labels(name).inc(size)
        if snapshot.caused and fresh:
            self.meters.hotplug.labels(name).observe(time.monotonic() - snapshot.caused)

    def allocate(self, request: bytes, call: Call) -> bytes:
        with self._measured("Allocate"):
            return protocol.write_allocate([self._allocated(ids) for ids in protocol.read_allocate(request)])

    def _allocated(self, ids: tuple[str, ...]) -> Allocation:
        resource = self.resource
        devices = self._returned(resource, ids, pick(resource, ids, self.publisher.current.by_id))
        return allocate(resource, devices, by_cdi=self._by_cdi() and self.write_spec())

    def _returned(self, resource: Resource, ids: tuple[str, ...], devices: list[Device]) -> list[Device]:
        """The devices, after a moment for those that are gone: a device that is reset comes back at once.

        One that does not is given all the same. A refusal here fails the pod for good; a container that cannot be
        started is tried again, and starts when the device is back.
        """
        end = time.monotonic() + RETURN
        while gone := [device.id for device in devices if not device.healthy]:
            version = self.publisher.current.version
            left = end - time.monotonic()
            if left <= 0:
                self._note("warning", f"{resource.name}: gave {', '.join(gone)} to a container although unhealthy")
                break
            self.publisher.wait(version, left)
            known = self.publisher.current.by_id
            devices = [known.get(device.id, device) for device in devices]
        return devices

    def use_spec_file(self, spec_file: SpecFile | None) -> None:
        """Write that file from now on."""
        with self._writing:
            self._spec_file, self._spec_version, self.cdi_trouble = spec_file, -1, ""

    def write_spec(self) -> bool:
        """Make the CDI file right for what is published now; False when that cannot be done."""
        if self._spec_file is None:
            return False
        with self._writing:
            snapshot = self.publisher.current
            if snapshot.version == self._spec_version and not self.cdi_trouble:
                return True
            try:
                self._spec_file.write(snapshot.devices)
            except OSError as error:
                if not self.cdi_trouble:
                    self._note("error", f"{self.resource.name}: devices are given without CDI: {error}")
                self.cdi_trouble = f"cannot write {self._spec_file.path}: {error.strerror}"
                return False
            self._spec_version, self.cdi_trouble = snapshot.version, ""
            return True

    def preferred(self, request: bytes, _call: Call) -> bytes:
        """Never an error: that would fail the pod over a mere wish."""
        try:
            with self._measured("GetPreferredAllocation"):
                known = self.publisher.current.by_id
                return protocol.write_preferred(
                    [prefer(self.resource, wish, known) for wish in protocol.read_preferred(request)]
                )
        except Abort:
            return protocol.write_preferred([[]])

    def prestart(self, request: bytes, _call: Call) -> bytes:
        with self._measured("PreStartContainer"):
            resource = self.resource
            if resource.reset is not None:
                for device in pick(resource, protocol.read_prestart(request), self.publisher.current.by_id):
                    self._reset(device)
            return protocol.write_prestart()

    def _reset(self, device: Device) -> None:
        reset = self.resource.reset
        assert reset is not None
        host = device.nodes[0].host if device.nodes else ""
        argv = [part.replace("{host}", host).replace("{id}", device.id) for part in reset.command]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEVICE": host, "DEVICE_ID": device.id}
        done = child.run(argv, env=env, timeout=reset.timeout, limit=64 * 1024)
        if done.code != 0:
            said = done.stderr[-200:].decode("utf-8", "replace").strip()
            raise Refused(f"{self.resource.name}: the reset of {device.id} ended with status {done.code}: {said}")

    def _measured(self, method: str) -> "_Measured":
        return _Measured(self.meters, self.resource.name, method, self._note)


class _Measured:
    """Times a call and turns what it raises into a status. The one boundary between errors and gRPC."""

    def __init__(self, meters: Meters, resource: str, method: str, note: Note) -> None:
        self._meters = meters
        self._labels = (resource, method)
        self._note = note

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, _kind: object, error: BaseException | None, _tb: object) -> None:
        self._meters.calls.labels(*self._labels).observe(time.perf_counter() - self._began)
        if error is None or isinstance(error, Abort):
            return
        self._meters.errors.labels(*self._labels).inc()
        if isinstance(error, Error):
            self._note("warning", f"{self._labels[1]}: {error}")
            raise Abort(protocol.status_of(error), str(error)[:1000]) from None
        self._note("error", f"{self._labels[1]}: {type(error).__name__}: {error}")
        raise Abort(grpc.StatusCode.INTERNAL, "a fault of nodeplug; its log says more") from None


class Endpoint:
    """A service on a socket of its own. `changed` is called when a stream begins or ends, or the watcher speaks."""

    def __init__(self, service: Service, path: str, *, watched: bool, changed: Callable[[], None]) -> None:
        self._service = service
        self._changed = changed
        self._lock = threading.Lock()
        self._open: dict[threading.Event, None] = {}  # in the order they came
        self._streams = 0
        self._told: tuple[bool, str] | None = None
        self._closing = False
        services = [
            grpcserver.Service(
                protocol.PLUGIN,
                {
                    "GetDevicePluginOptions": service.get_options,
                    "Allocate": service.allocate,
                    "GetPreferredAllocation": service.preferred,
                    "PreStartContainer": service.prestart,
                },
                {"ListAndWatch": self._list_and_watch},
            )
        ]
        if watched:
            unary = {"GetInfo": self._info, "NotifyRegistrationStatus": self._notified}
            services.append(grpcserver.Service(protocol.WATCHED, unary))
        self._server = Server(Place(path, lock=False), services, limits=_LIMITS, note=lambda _: None)

    @property
    def streaming(self) -> bool:
        return bool(self._open)

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def told(self) -> tuple[bool, str] | None:
        return self._told

    def close(self, seconds: float) -> None:
        """End the streams, remove the socket."""
        with self._lock:
            self._closing = True
            for over in self._open:
                over.set()
        self._service.publisher.wake()
        self._server.close(seconds)

    def _list_and_watch(self, _request: bytes, call: Call) -> Iterator[bytes]:
        over = threading.Event()

        def ended() -> None:
            over.set()
            self._service.publisher.wake()

        with self._lock:
            if self._closing:
                return
            # Each stream keeps a thread: of those a confused caller opens only the newest few go on.
            while len(self._open) >= _STREAMS:
                next(iter(self._open)).set()
                del self._open[next(iter(self._open))]
            self._open[over] = None
            self._streams += 1
        self._service.publisher.wake()
        self._changed()
        try:
            if call.when_over(ended):
                yield from self._service.lists(over)
        finally:
            with self._lock:
                self._open.pop(over, None)
            self._changed()

    def _info(self, _request: bytes, _call: Call) -> bytes:
        return protocol.write_info(self._service.resource.name)

    def _notified(self, request: bytes, _call: Call) -> bytes:
        try:
            self._told = protocol.read_status(request)
        except Error as error:
            raise Abort(protocol.status_of(error), str(error)) from None
        self._changed()
        return protocol.write_status_taken()
