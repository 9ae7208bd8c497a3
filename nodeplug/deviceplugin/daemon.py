"""All resources of one process: started, followed, reloaded, withdrawn; health, metrics, log.

Called by `main`; knows discovery, registration and the services, and is where they meet.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nodeplug.core import files
from nodeplug.core.errors import Error
from nodeplug.core.log import Event, Log
from nodeplug.daemon.health import Condition, Health
from nodeplug.daemon.httpserver import HttpServer, standard_pages
from nodeplug.daemon.metrics import open_registry
from nodeplug.deviceplugin import cdi, runtime
from nodeplug.deviceplugin.cdi import SpecFile
from nodeplug.deviceplugin.kubelet import DEVICE_PLUGINS, REGISTRY, Kubelet, sweep
from nodeplug.deviceplugin.metrics import Meters
from nodeplug.deviceplugin.podresources import PodResources
from nodeplug.deviceplugin.registration import Registrar, turns
from nodeplug.deviceplugin.serve import Endpoint, Service
from nodeplug.deviceplugin.settings import Resource, Settings, host_of, load
from nodeplug.deviceplugin.statefile import state_path, write_state
from nodeplug.deviceplugin.watch import Watch
from nodeplug.devices.discovery import Discovery, Observer

_WITHDRAW = 2.0  # seconds for the kubelet to take the empty list of a resource that is withdrawn
_FOLLOW = 0.25
_SWEEP = 60.0
_STATE = 1.0


@dataclass
class _Served:
    """One resource that is served."""

    resource: Resource
    service: Service
    registrar: Registrar
    spec_file: SpecFile | None
    followed: int = -1  # the version its gauges show


class Daemon:
    """Serves the resources of `settings` from construction to `close`.

    `source` is the file they are from and `read` reads them anew; without it the file is all there is to read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kubelet_dir: str,
        log: Log,
        source: str = "",
        read: Callable[[], Settings] | None = None,
    ) -> None:
        self.health = Health()
        self.registry = open_registry("deviceplugin")
        self.meters = Meters(self.registry)
        self._log = log
        self._settings = settings
        self._source = source
        self._read = read or (lambda: load(source))
        self._served: dict[str, _Served] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._changed = threading.Event()
        self._turn = turns()
        self._runtime = runtime.Asked(settings.directories.runtime)
        self._told_state: tuple[object, ...] = ()
        self._state_due = 0.0
        self._pages: HttpServer | None = None
        config_directory = [os.path.dirname(os.path.abspath(source))] if source else []
        plugins = os.path.join(kubelet_dir, DEVICE_PLUGINS)
        watcher = os.path.join(kubelet_dir, REGISTRY)
        self.watch = Watch([plugins, watcher, *config_directory])
        self.kubelet = Kubelet(kubelet_dir, self.watch)
        self.pods = PodResources(os.path.join(kubelet_dir, "pod-resources", "kubelet.sock"), news=self._pods_changed)
        self.discovery = Discovery(
            host_of(settings),
            observer=_Observer(self),
            in_use=self.pods.in_use,
            rescan=settings.rescan,
            poll=settings.poll,
        )
        self._swept = 0.0
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        try:
            self._start()
        except BaseException:
            self.close(0.0)
            raise

    def _start(self) -> None:
        self._open_pages(self._settings.health.listen)
        self._sweep()
        self.watch.start()
        self.discovery.start()
        self._ask_runtime()
        self._apply(self._settings, old=None)
        self._follower.start()
        self.note("info", self.status())

    @property
    def alive(self) -> bool:
        """Whether the threads that must run do: what a watchdog asks."""
        threads = self._follower.is_alive() and self.discovery.alive and self.watch.alive
        return self.health.live and threads and not self._over.is_set()

    def status(self) -> str:
        """One line for people."""
        served = list(self._served.values())
        return f"{len(served)} resources, {sum(item.registrar.registered for item in served)} registered"

    def reload(self, settings: Settings | None = None) -> bool:
        """Read the settings again and go on with them; with bad ones nothing changes. True when they were good."""
        try:
            fresh = self._read() if settings is None else settings
            if fresh.health.listen != self._settings.health.listen:
                self._open_pages(fresh.health.listen)
        except Error as error:
            self._state("settings", Condition(False, str(error)))
            self.note("error", f"the settings stay as they were: {error}")
            return False
        self._state("settings", Condition(True))
        old, self._settings = self._settings, fresh
        if fresh == old:
            return True
        if (fresh.directories, fresh.rescan, fresh.poll) != (old.directories, old.rescan, old.poll):
            self.note("warning", "directories, rescan and poll are taken at the next start only")
        self._apply(fresh, old=old)
        self.note("info", f"new settings: {self.status()}")
        return True

    def close(self, seconds: float) -> bool:
        """End within about `seconds`. Links and CDI files stay: containers that start meanwhile need them."""
        end = time.monotonic() + seconds
        if self._over.is_set():
            return True
        self._over.set()
        self._changed.set()
        served = list(self._served.values())
        for item in served:
            item.registrar.stop()
        for item in served:
            item.registrar.close(max(0.5, end - time.monotonic()))
        self.discovery.close()
        self.pods.close()
        self.watch.close()
        if self._follower.is_alive():
            self._follower.join(max(0.5, end - time.monotonic()))
        if self._pages is not None:
            self._pages.close()
        if self._source:
            try:
                files.remove(state_path(self._settings, self._source))
            except OSError:
                pass  # it only tells of a daemon that is gone
        return time.monotonic() <= end

    def note(self, level: str, sentence: str, *, id: str = "", op: str = "device") -> None:
        """A line in the log."""
        outcome = "error" if level == "error" else "note"
        self._log.write(Event(contract="deviceplugin", op=op, level=level, id=id, outcome=outcome, message=sentence))  # type: ignore[arg-type]  # callers write these words literally

    # Resources

    def _apply(self, settings: Settings, *, old: Settings | None) -> None:
        wanted = {resource.name: resource for resource in settings.resource}
        with self._lock:
            again = old is not None and old.registration != settings.registration
            gone = [item for name, item in self._served.items() if name not in wanted]
            closing = [
                item
                for name, item in self._served.items()
                if name in wanted and (again or _wire(item.resource) != _wire(wanted[name]))
            ]
            if not self.discovery.follow(resource.spec for resource in wanted.values()):
                self.note("warning", "the first look at all devices takes long; resources appear as it goes on")
            self._withdraw(gone)
            for item in closing:
                item.registrar.stop()
            for item in closing:
                item.registrar.close()
                del self._served[item.resource.name]
            for name, resource in wanted.items():
                known = self._served.get(name)
                if known is None:
                    self._served[name] = self._serve(resource)
                elif known.resource != resource:
                    self._swap(known, resource)
        self._changed.set()

    def _serve(self, resource: Resource) -> _Served:
        spec_file = None if resource.cdi == "never" else SpecFile(self._settings.directories.cdi, resource)
        publisher = self.discovery.publisher(resource.name)
        service = Service(
            resource,
            publisher,
            spec_file=spec_file,
            by_cdi=lambda: self._by_cdi(service.resource),
            meters=self.meters,
            note=lambda level, sentence: self.note(level, sentence, id=service.resource.name),
        )
        publisher.subscribe(self._changed.set)
        service.write_spec()
        registrar = Registrar(
            resource.name,
            self.kubelet,
            flow=self._settings.registration,
            options=service.options,
            open_line=lambda path, watched: Endpoint(service, path, watched=watched, changed=self.watch.notify),
            listener=self,
            turn=self._turn,
            lock=os.path.join(os.path.dirname(self._settings.directories.links), "lock", "deviceplugin"),
        )
        self.meters.registered.labels(resource.name).set(0)
        registrar.start()
        return _Served(resource, service, registrar, spec_file)

    def _swap(self, item: _Served, resource: Resource) -> None:
        """Other answers from now on; the kubelet need not know."""
        item.resource = item.service.resource = resource
        if resource.cdi != "never":
            item.spec_file = SpecFile(self._settings.directories.cdi, resource)
        elif item.spec_file is not None:
            item.spec_file = None
        item.service.use_spec_file(item.spec_file)
        item.service.write_spec()

    def _withdraw(self, gone: list[_Served]) -> None:
        """Let the kubelet take the empty list, then end the registration."""
        end = time.monotonic() + _WITHDRAW
        for item in gone:
            publisher = item.service.publisher
            while item.registrar.streaming and item.service.sent < publisher.current.version:
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
        for item in gone:
            item.registrar.stop()
        for item in gone:
            item.registrar.close()
            name = item.resource.name
            del self._served[name]
            self.health.clear(f"registered {name}")
            self.health.clear(f"list {name}")
            self.health.clear(f"cdi {name}")
            self.meters.forget(name)
            self.note("info", "withdrawn", id=name)

    # CDI

    def _by_cdi(self, resource: Resource) -> bool:
        return resource.cdi == "always" or (resource.cdi == "auto" and self._runtime.known)

    def _ask_runtime(self) -> None:
        """Learn whether the runtime knows CDI, where a resource wants to know."""
        asking = [resource.name for resource in self._settings.resource if resource.cdi == "auto"]
        news = self._runtime.ask() if asking else ""
        if news:
            known = self._runtime.known
            what = "devices are named by CDI" if known else "cdi = true falls back to device nodes"
            self.note("info" if known else "warning", f"{news}; {what} for {', '.join(asking)}", op="cdi")

    # Following

    def _follow(self) -> None:
        """Gauges, conditions and CDI files, soon after something changed and every few seconds."""
        while not self._over.is_set():
            self._changed.wait(5.0)
            self._changed.clear()
            if self._over.is_set():
                return
            try:
                self._ask_runtime()
                for item in list(self._served.values()):
                    self._follow_one(item)
                self._write_state()
                if time.monotonic() > self._swept + _SWEEP:
                    self._sweep()
            except Exception as error:  # this thread must not end
                self.note("error", f"{type(error).__name__}: {error}")
            self._over.wait(_FOLLOW)

    def _follow_one(self, item: _Served) -> None:
        name = item.resource.name
        snapshot = item.service.publisher.current
        if snapshot.version != item.followed:
            item.followed = snapshot.version
            unhealthy = sum(1 for device in snapshot.devices if not device.healthy)
            self.meters.devices.labels(name, "healthy").set(len(snapshot.devices) - unhealthy)
            self.meters.devices.labels(name, "unhealthy").set(unhealthy)
        item.service.write_spec()
        used = self.pods.last(name)
        if used is not None:
            self.meters.allocated.labels(name).set(len(used))
        registrar = item.registrar
        late = time.monotonic() - registrar.unregistered_at > self._settings.health.unregistered
        if registrar.registered:
            self._state(f"registered {name}", Condition(True))
        elif late:
            self._state(f"registered {name}", Condition(False, f"not registered: {registrar.trouble}"))
        for what, trouble in (("list", item.service.oversized), ("cdi", item.service.cdi_trouble)):
            self._state(f"{what} {name}", Condition(not trouble, trouble))

    def _write_state(self) -> None:
        """What `nodeplug device list` reads, when it is different. An author's plugin without settings has none."""
        if not self._source:
            return
        told = [
            (item.resource.name, item.registrar.registered, item.registrar.trouble, item.service.publisher.current)
            for item in list(self._served.values())
        ]
        mark = tuple((name, registered, trouble, snapshot.version) for name, registered, trouble, snapshot in told)
        if mark == self._told_state:
            return
        if time.monotonic() < self._state_due:
            self._changed.set()
            return
        self._state_due = time.monotonic() + _STATE
        path = state_path(self._settings, self._source)
        try:
            write_state(path, told)
        except OSError as error:
            self.note("warning", f"cannot write {path}: {error.strerror}")
        self._told_state = mark

    def _pods_changed(self) -> None:
        self.discovery.news()
        self._changed.set()

    def _state(self, name: str, condition: Condition) -> None:
        if self.health.set(name, condition) and not condition.ok:
            self.note("warning", f"{name}: {condition.message}", op="health")

    def _sweep(self) -> None:
        """Remove what a killed process or withdrawn resources left: sockets nobody listens on, unused CDI files."""
        self._swept = time.monotonic()
        for directory in (self.kubelet.plugins, self.kubelet.registry):
            sweep(directory)
        wanted = [resource.name for resource in self._settings.resource if resource.cdi != "never"]
        for path, resource in cdi.leftovers(self._settings.directories.cdi, wanted):
            in_use = self.pods.in_use(resource) if resource else ()
            if in_use is not None and not in_use:
                try:
                    files.remove(path)
                except OSError as error:
                    self.note("warning", f"cannot remove {path}: {error.strerror}", op="cdi")

    # What registrars tell (registration.Listener)

    def registered(self, resource: str, flow: str) -> None:
        self.meters.registered.labels(resource).set(1)
        self.meters.registrations.labels(resource, flow).inc()
        self.note("info", f"registered by {flow}", id=resource, op="register")
        self._changed.set()

    def unregistered(self, resource: str, cause: str) -> None:
        self.meters.registered.labels(resource).set(0)
        self.meters.ends.labels(resource, cause).inc()
        if cause != "stopped":
            self.note("warning", f"no longer registered: {cause}", id=resource, op="register")
        self._changed.set()

    def refused(self, resource: str, error: str) -> None:
        self.meters.refusals.labels(resource).inc()
        self.note("error", error, id=resource, op="register")

    def _open_pages(self, listen: str) -> None:
        """Serve the pages there from now on. Raises what `HttpServer` raises, and then they are where they were."""
        fresh = HttpServer(listen, standard_pages(self.health, self.registry)) if listen else None
        if self._pages is not None:
            self._pages.close()
        self._pages = fresh


def _wire(resource: Resource) -> tuple[object, ...]:
    """What of a resource the kubelet learns at registration or sees in lists."""
    return resource.share.replicas, resource.numa, resource.reset is None


class _Observer(Observer):
    """Discovery's news, counted and logged."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def note(self, sentence: str) -> None:
        self._daemon.note("warning", sentence, op="discover")

    def scanned(self, trigger: str, seconds: float) -> None:
        self._daemon.meters.scan.labels(trigger).observe(seconds)

    def lost(self, kind: str) -> None:
        self._daemon.meters.lost.labels(kind).inc()
