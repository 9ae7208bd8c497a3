"""The parts of a running KMS daemon put together from its settings, and taken apart in order.

`main` owns the process; this module owns what serves. Changes of the watched directory become reloads here.
"""

import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from nodeplug.core.errors import Error
from nodeplug.core.log import Event, Log
from nodeplug.core.record import Record
from nodeplug.daemon import metrics
from nodeplug.daemon.grpcserver import Limits, Server
from nodeplug.daemon.health import Condition, Health
from nodeplug.daemon.httpserver import HttpServer, standard_pages
from nodeplug.daemon.lifecycle import drain
from nodeplug.daemon.listeners import Place, inherited
from nodeplug.kernel import inotify
from nodeplug.kms.contract import Level, Note, Provider, Surroundings
from nodeplug.kms.prober import Pace, Prober, View
from nodeplug.kms.providers.guarded import Guarded
from nodeplug.kms.serve import Service
from nodeplug.kms.settings import KmsSettings

_THREADS = 4
_FIRST_PROBE = 1.0  # seconds; a backend that is down must not keep the socket from answering
_SETTLE = 0.05  # seconds; a rename follows its fsync at once, and one reload for both is enough
_LOOK_AGAIN = 30.0  # seconds, for what inotify cannot see (a mount over the directory)


class Daemon:
    """Serves from construction to `close()`. Raises what the parts raise; nothing is left open then."""

    def __init__(
        self,
        settings: KmsSettings,
        provider: type[Provider],
        provider_settings: Record,
        *,
        environ: Mapping[str, str],
        log: Log,
        pace: Pace | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self.note = _note_to(log)
        self.health = Health()
        self.registry = metrics.open_registry("kms")
        self._closers: list[Callable[[float], object]] = []
        try:
            surroundings = Surroundings(environ, self.health, self.registry, self.note)
            inner = provider(provider_settings, surroundings)
            self.provider = inner if inner.in_process else Guarded(inner, self.registry)
            self._closers.append(lambda _: self.provider.close())
            self.prober = Prober(self.provider, self.health, self.registry, self.note, pace)
            self.prober.probe(patience=_FIRST_PROBE)  # the first Status is good at once where the backend is
            self._closers.append(self.prober.close)
            self.prober.start()
            self._serve(environ)
            self._watch(getattr(inner, "watched", ""))
            self.health.set("serving", Condition(ok=True, vital=True))
        except BaseException:
            self.close(0.0)
            raise

    def _serve(self, environ: Mapping[str, str]) -> None:
        settings = self._settings
        # The pages come first and go last: they tell of a start that is slow and of a drain.
        self.health.set("serving", Condition(ok=False, message="starting"))
        if settings.health.listen:
            pages = HttpServer(settings.health.listen, standard_pages(self.health, self.registry))
            self._closers.append(lambda _: pages.close())
        service = Service(
            self.provider,
            self.prober,
            self.registry,
            self._log,
            status_version=settings.status_version,
            verbose=settings.log.level == "debug",
        )
        adopted = self._adopted(environ)
        self._server = server = Server(
            Place(settings.socket, settings.socket_mode, settings.socket_group),
            service.services(settings.apis),
            limits=Limits(threads=settings.threads or self._threads(), queue=settings.queue),
            note=self.note,
            inherited=adopted,
            allowed_uids=settings.allowed_uids,
        )
        self._closers.append(server.close)

    def _adopted(self, environ: Mapping[str, str]) -> socket.socket | None:
        """The service manager's socket at `kms.socket`; others that it passed are named and closed."""
        own: socket.socket | None = None
        for name, found in inherited(environ, os.getpid()):
            # The unit may say /var/run where the settings say /run.
            if own is None and os.path.realpath(found.getsockname()) == os.path.realpath(self._settings.socket):
                own = found
                continue
            self.note(f"the service manager's socket {name} ({found.getsockname()}) is not kms.socket; closed")
            found.close()
        return own

    def _threads(self) -> int:
        return max(_THREADS, 2 * self.provider.limit) if isinstance(self.provider, Guarded) else _THREADS

    @property
    def alive(self) -> bool:
        """Whether the watchdog is to be fed."""
        return self.health.live and self.prober.alive and self._server.alive

    def reload(self) -> None:
        """Read what may have changed on disk: on SIGHUP, or when the watched directory changed."""
        try:
            self.provider.reload()
        except Exception as error:  # an author's provider may fail in any way, and what was read before serves on
            said = str(error) if isinstance(error, Error) else type(error).__name__
            self.note(f"the provider cannot read its files again: {said}", level="error")
        self.prober.wake()

    def status(self) -> str:
        """One line for the service manager."""
        return self.health.trouble() or f"encrypting with {self.prober.view.key_id}"

    def close(self, seconds: float) -> bool:
        """End in the reverse order of the beginning; False when calls under way were cut off."""
        in_time = drain(seconds, *reversed(self._closers))
        self._closers.clear()
        return in_time

    def _watch(self, directory: str) -> None:
        if not directory:
            return
        stop, wake = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._follow, args=(directory, stop), name="kms-watch", daemon=True)

        def close(seconds: float) -> None:
            os.close(wake)
            thread.join(seconds)
            if not thread.is_alive():  # else it is reading the ring, and ends with the process
                os.close(stop)

        self._closers.append(close)
        thread.start()

    def _follow(self, directory: str, stop: int) -> None:
        """Reload after each change until the other end of the pipe `stop` is closed."""
        while True:
            try:
                with inotify.Inotify() as changes:
                    changes.add(
                        directory, inotify.IN_MOVED_TO | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | inotify.IN_DELETE
                    )
                    while True:
                        ready, _, _ = select.select([changes.fileno(), stop], [], [], _LOOK_AGAIN)
                        if stop in ready:
                            return
                        if ready:
                            found = changes.read(0)
                            if not any(_concerns_ring(event.name) for event in found):
                                continue
                            if select.select([stop], [], [], _SETTLE)[0]:
                                return
                            changes.read(0)
                            if any(event.ended for event in found):
                                break  # the directory itself was replaced: watch the new one
                        self.reload()
            except OSError:
                # No instance or no directory at the moment: look again later, and meanwhile as often as not.
                if select.select([stop], [], [], 1.0)[0]:
                    return
                self.reload()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close(1.0)


def _concerns_ring(name: str) -> bool:
    """Temporary files, locks and the usage note change often and mean nothing."""
    return not (name.endswith((".usage", ".lock", "~", ".seen")))


def try_provider(provider: type[Provider], own: Record, *, environ: Mapping[str, str], log: Log) -> View:
    """What one probe of a provider finds. Raises what the provider's construction raises."""
    health, registry = Health(), metrics.open_registry("kms")
    opened = provider(own, Surroundings(environ, health, registry, _note_to(log)))
    try:
        prober = Prober(opened, health, registry, _note_to(log), Pace(failures=1))
        prober.probe()
        return prober.view
    finally:
        opened.close()


def _note_to(log: Log) -> Note:
    def note(message: str, *, level: Level = "info") -> None:
        log.write(Event(contract="kms", op="daemon", level=level, outcome="note", message=message))

    return note
