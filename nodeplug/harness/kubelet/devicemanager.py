"""A kubelet's device manager: kubelet.sock, the plugin watcher, capacities, admission, the checkpoint, podresources.

    with DeviceManager(directory) as kubelet:
        kubelet.wait("nodeplug.dev/serial", capacity=2, allocatable=2)
        given = kubelet.admit("default/pod", "app", {"nodeplug.dev/serial": 1})
        kubelet.restart()

It behaves as kubelets were seen to: a stream is opened once and never again, its end makes all devices unhealthy and
after the grace time forgets the resource, an allocation is asked for once and replayed for ever. `old` brings back
what kubelets before the fix of kubernetes#127803 do: the end of an old stream takes down the plugin that came after.
Imports core, daemon and pb; knows plugins by their sockets only.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import grpc

from nodeplug.core import files
from nodeplug.core.errors import Error, NotFound, Refused, TimedOut
from nodeplug.daemon.grpcserver import Abort, Call, Limits, Server, Service
from nodeplug.daemon.listeners import Place
from nodeplug.harness.kubelet.memory import (
    CHECKPOINT,
    Held,
    Known,
    Pods,
    list_allocatable,
    list_pods,
    read_checkpoint,
    write_checkpoint,
)
from nodeplug.harness.kubelet.plugin import Plugin
from nodeplug.harness.kubelet.pluginwatcher import PluginWatcher
from nodeplug.pb.deviceplugin import v1beta1_pb2 as dp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRACE = 300.0
"""Seconds from the end of a stream until a resource is forgotten."""
_NAME = re.compile(
    r"(?=.{1,244}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
    r"/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z"
)
_SOCKET_LIMITS = Limits(threads=32, queue=256, message_bytes=16 << 20)


class AdmissionFailed(Refused):
    """The pod's phase would be Failed with reason UnexpectedAdmissionError, and nobody tries it again."""


class DeviceManager:
    """The device manager of a kubelet whose directory is `directory` (/var/lib/kubelet on a node).

    `watcher` gives it a plugin watcher (and makes the DEPRECATION file); `grace` scales the five minutes down.
    """

    def __init__(self, directory: Path, *, watcher: bool = False, old: bool = False, grace: float = GRACE) -> None:
        self.directory = directory
        self.plugins = directory / "device-plugins"
        self.registry = directory / "plugins_registry"
        self.podresources = directory / "pod-resources" / "kubelet.sock"
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self._has_watcher = watcher
        self._old = old
        self._grace = grace
        self._condition = threading.Condition(threading.RLock())
        self._resources: dict[str, Known] = {}
        self._pods: Pods = {}
        self._connected: list[Plugin] = []
        self._servers: list[Server] = []
        self._watcher: PluginWatcher | None = None
        self._generation = 0
        self.on_register: Callable[[str], None] = lambda _: None
        """Called with the resource inside each Register call, before anything is checked: to delay or to fail."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Life

    def start(self, *, wipe: bool = True) -> None:
        """Begin as a kubelet does: read the checkpoint, remove the sockets, serve."""
        self.plugins.mkdir(parents=True, exist_ok=True, mode=0o750)
        self.podresources.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._read_checkpoint()
        if wipe:
            self._wipe()
        if self._has_watcher:
            self.registry.mkdir(exist_ok=True, mode=0o750)
            (self.plugins / "DEPRECATION").touch()
            self._watcher = PluginWatcher(str(self.registry), self._register_watched, self._deregister_watched)
            self._watcher.start()
        self.serve()
        lister = Service(
            "v1.PodResourcesLister", {"List": self._list_pods, "GetAllocatableResources": self._list_allocatable}
        )
        self._servers.append(self._server(str(self.podresources), lister))

    def serve(self) -> None:
        """Make kubelet.sock and answer there."""
        register = Service("v1beta1.Registration", {"Register": self._register})
        self._servers.append(self._server(str(self.plugins / "kubelet.sock"), register))

    def _server(self, path: str, service: Service) -> Server:
        files.remove(path)
        return Server(Place(path, lock=False), [service], limits=_SOCKET_LIMITS, note=lambda _: None)

    def stop(self) -> None:
        """End as a kubelet that is killed does: connections close, files stay."""
        with self._condition:
            self._generation += 1
            connected, self._connected = self._connected, []
            servers, self._servers = self._servers, []
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        for server in servers:
            server.close(0.0)
        for plugin in connected:
            plugin.close()
        with self._condition:
            self._resources.clear()
            self._pods.clear()

    def restart(self, *, pause: float = 0.0) -> None:
        """Stop and start again, as `systemctl restart kubelet` does."""
        self.stop()
        time.sleep(pause)
        self.start()

    def recreate_socket(self) -> None:
        """What a kubelet does whose registration server failed: kubelet.sock anew, nothing else is touched."""
        with self._condition:
            server = self._servers.pop(0)
        server.close(0.0)
        self.serve()
        self._servers.insert(0, self._servers.pop())

    def drop_streams(self, resource: str = "") -> None:
        """Cancel the streams of a resource (of all), as a kubelet does whose connection broke; sockets stay."""
        with self._condition:
            dropped = [plugin for plugin in self._connected if resource in ("", plugin.resource)]
        for plugin in dropped:
            plugin.close()

    def _wipe(self) -> None:
        for entry in self.plugins.iterdir():
            if stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink(missing_ok=True)

    # Registration

    def _register(self, request: bytes, _call: Call) -> bytes:
        asked = dp.RegisterRequest.FromString(request)
        self.calls["Register"] += 1
        try:
            self.on_register(asked.resource_name)
            self._admit_plugin(asked.resource_name, str(self.plugins / asked.endpoint), [asked.version])
        except Error as error:
            raise Abort(grpc.StatusCode.UNKNOWN, str(error)) from None
        return dp.Empty().SerializeToString()

    def _register_watched(self, name: str, endpoint: str, versions: list[str]) -> None:
        self.calls["GetInfo"] += 1
        self._admit_plugin(name, endpoint, versions)

    def _deregister_watched(self, endpoint: str) -> None:
        with self._condition:
            found = [plugin for plugin in self._connected if plugin.path == endpoint]
        for plugin in found:
            plugin.close()

    def _admit_plugin(self, resource: str, path: str, versions: list[str]) -> None:
        if "v1beta1" not in versions:
            raise Refused(f"requested API version {', '.join(versions)} is not supported by kubelet")
        if not is_extended_resource(resource):
            raise Refused(f"the ResourceName {resource!r} is invalid")
        generation = self._generation
        plugin = Plugin(resource, path, self.calls)
        try:
            plugin.connect()
        except Error:
            plugin.close()
            raise
        with self._condition:
            if generation != self._generation:
                plugin.close()
                raise Refused("the kubelet is stopping")
            known = self._resources.setdefault(resource, Known())
            known.plugin, known.stopped = plugin, 0.0
            self._connected.append(plugin)
            self._condition.notify_all()
        # After the answer to Register, as in a kubelet: the plugin must not expect the stream before.
        threading.Timer(0.0, plugin.follow, (self._listed, self._ended)).start()

    def _listed(self, plugin: Plugin, message: dp.ListAndWatchResponse) -> None:
        with self._condition:
            known = self._resources.get(plugin.resource)
            if known is None or (known.plugin is not plugin and not self._old):
                return
            known.healthy = {device.ID for device in message.devices if device.health == "Healthy"}
            known.unhealthy = {device.ID for device in message.devices if device.health != "Healthy"}
            known.numa = {device.ID: tuple(node.ID for node in device.topology.nodes) for device in message.devices}
            known.lists += 1
            known.heard = plugin.heard
            self.calls["lists"] += 1
            self._write_checkpoint()
            self._condition.notify_all()

    def _ended(self, plugin: Plugin, why: str) -> None:
        """The stream is over: the client is disconnected, its devices are unhealthy, the grace time begins."""
        with self._condition:
            if plugin in self._connected:
                self._connected.remove(plugin)
            self.log.append(f"ListAndWatch ended unexpectedly for device plugin {plugin.resource}: {why}")
            known = self._resources.get(plugin.resource)
            victim = None
            if known is not None and known.plugin is not None and (known.plugin is plugin or self._old):
                # An old kubelet looks its clients up by resource: it finds, and disconnects, the one that came after.
                victim = known.plugin if known.plugin is not plugin else None
                known.unhealthy |= known.healthy
                known.healthy = set()
                known.stopped = time.monotonic()
                known.plugin = None
                self._write_checkpoint()
            self._condition.notify_all()
        plugin.close()
        if victim is not None:
            victim.close()

    # Capacity

    def resources(self) -> dict[str, tuple[int, int]]:
        """(capacity, allocatable) of each resource, as the node would show it; what is over its grace is forgotten."""
        now = time.monotonic()
        with self._condition:
            for name, known in list(self._resources.items()):
                if known.stopped and known.plugin is None and now - known.stopped > self._grace:
                    del self._resources[name]
            return {
                name: (len(known.healthy) + len(known.unhealthy), len(known.healthy))
                for name, known in self._resources.items()
            }

    def devices(self, resource: str) -> dict[str, str]:
        """Each id with "Healthy" or "Unhealthy"."""
        with self._condition:
            known = self._resources.get(resource, Known())
            return {**dict.fromkeys(known.unhealthy, "Unhealthy"), **dict.fromkeys(known.healthy, "Healthy")}

    def topology(self, resource: str) -> dict[str, tuple[int, ...]]:
        """Each id with its memory nodes."""
        with self._condition:
            return dict(self._resources.get(resource, Known()).numa)

    def lists(self, resource: str) -> int:
        """How many lists came since the kubelet began."""
        with self._condition:
            return self._resources.get(resource, Known()).lists

    def heard(self, resource: str) -> float:
        """When the last list arrived (monotonic); 0 when none did."""
        with self._condition:
            return self._resources.get(resource, Known()).heard

    def streaming(self, resource: str) -> bool:
        """Whether a plugin is connected for the resource."""
        with self._condition:
            known = self._resources.get(resource)
            return known is not None and known.plugin is not None

    def wait(
        self, resource: str, *, capacity: int | None = None, allocatable: int | None = None, timeout: float = 15.0
    ) -> None:
        """Wait until the resource shows these numbers (None: any). Raises `TimedOut` with what it shows instead."""

        def shown() -> bool:
            found = self.resources().get(resource)
            if found is None:
                return False
            return capacity in (None, found[0]) and allocatable in (None, found[1])

        self.wait_for(shown, timeout, lambda: f"{resource} is {self.resources().get(resource, 'unknown')}")

    def wait_for(self, condition: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
        """Wait until `condition()` holds, asked whenever something changes. Raises `TimedOut`."""
        end = time.monotonic() + timeout
        with self._condition:
            while not condition():
                left = end - time.monotonic()
                if left <= 0:
                    raise TimedOut(f"waited {timeout:g} s in vain: {otherwise()}; log: {self.log[-3:]}")
                self._condition.wait(min(left, 0.1))

    # Admission

    def admit(
        self, pod: str, container: str, wanted: dict[str, int], *, reuse: str = ""
    ) -> dict[str, dp.ContainerAllocateResponse]:
        """Admit a container that asks for devices; the answers by resource. Raises `AdmissionFailed`.

        `reuse` names a finished init container of the pod whose devices are taken over.
        """
        given = {}
        for resource, count in wanted.items():
            held = self._pods.get(pod, {}).get(container, {}).get(resource)
            if held is not None:
                if len(held.ids) != count:
                    raise AdmissionFailed(f"changed request for {resource}: {len(held.ids)} and now {count}")
                given[resource] = held.answer
                continue
            given[resource] = self._allocate(pod, container, resource, count, reuse)
        return given

    def _allocate(
        self, pod: str, container: str, resource: str, count: int, reuse: str
    ) -> dp.ContainerAllocateResponse:
        with self._condition:
            known = self._resources.get(resource)
            if known is None:
                raise AdmissionFailed(f"cannot allocate unregistered device {resource}")
            if not known.healthy:
                raise AdmissionFailed(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
            plugin = known.plugin
            earlier = self._pods.get(pod, {}).get(reuse, {}).get(resource)
            ids = sorted(earlier.ids)[:count] if earlier is not None else []
            used = {id for held in self._held(resource) for id in held.ids}
            available = sorted(known.healthy - used)
            needed = count - len(ids)
            if needed > len(available):
                raise AdmissionFailed(
                    f"requested number of devices unavailable for {resource}. Requested: {needed}, "
                    f"Available: {len(available)}"
                )
        if plugin is None:
            raise AdmissionFailed(f"cannot allocate {resource}: its plugin has stopped")
        try:
            if 0 < needed < len(available) and plugin.options.get_preferred_allocation_available:
                liked = plugin.preferred(sorted({*available, *ids}), ids, count)
                ids += [id for id in dict.fromkeys(liked) if id in available and id not in ids][: count - len(ids)]
            ids += [id for id in available if id not in ids][: count - len(ids)]
            answer = plugin.allocate(ids)
        except Refused as error:
            raise AdmissionFailed(str(error)) from None
        with self._condition:
            self._pods.setdefault(pod, {}).setdefault(container, {})[resource] = Held(ids, answer)
            self._write_checkpoint()
        return answer

    def _held(self, resource: str) -> list[Held]:
        return [
            entries[resource]
            for containers in self._pods.values()
            for entries in containers.values()
            if resource in entries
        ]

    def held(self, pod: str, container: str, resource: str) -> list[str]:
        """The ids a container has."""
        with self._condition:
            try:
                return list(self._pods[pod][container][resource].ids)
            except KeyError:
                raise NotFound(f"{pod} {container} has no {resource}") from None

    def start_container(self, pod: str, container: str) -> dict[str, dp.ContainerAllocateResponse]:
        """What happens at each start: PreStartContainer where it is wanted, then the remembered answers."""
        with self._condition:
            entries = dict(self._pods.get(pod, {}).get(container, {}))
        for resource, entry in entries.items():
            with self._condition:
                known = self._resources.get(resource)
                plugin = known.plugin if known is not None else None
            if plugin is not None and plugin.options.pre_start_required:
                plugin.prestart(entry.ids)
        return {resource: entry.answer for resource, entry in entries.items()}

    def remove_pod(self, pod: str) -> None:
        """The pod is gone; its devices are free. No plugin is told."""
        with self._condition:
            self._pods.pop(pod, None)
            self._write_checkpoint()

    # State on disk and what others ask

    def _write_checkpoint(self) -> None:
        data = write_checkpoint(self._resources, self._pods)
        files.write_atomic(str(self.plugins / CHECKPOINT), data, 0o600, durable=False)

    def _read_checkpoint(self) -> None:
        try:
            data = (self.plugins / CHECKPOINT).read_bytes()
        except FileNotFoundError:
            return
        with self._condition:
            self._resources, self._pods = read_checkpoint(data)

    def _list_pods(self, _request: bytes, _call: Call) -> bytes:
        with self._condition:
            return list_pods(self._pods)

    def _list_allocatable(self, _request: bytes, _call: Call) -> bytes:
        with self._condition:
            return list_allocatable(self._resources)

    @property
    def sockets(self) -> list[str]:
        """The sockets of plugins in both directories: what a leak would add to."""
        found = []
        for directory in (self.plugins, self.registry):
            if directory.is_dir():
                found += [
                    entry.name
                    for entry in os.scandir(directory)
                    if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) and entry.name != "kubelet.sock"
                ]
        return sorted(found)


def is_extended_resource(name: str) -> bool:
    """Whether the kubelet takes the name: qualified, not of kubernetes.io, no request's name."""
    return "kubernetes.io/" not in name and not name.startswith("requests.") and _NAME.match(name) is not None
