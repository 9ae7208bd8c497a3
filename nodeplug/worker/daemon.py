"""The parts of a running nodeplugd put together from its settings, and taken apart in order.

`main` owns the process; this module owns what serves.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from nodeplug.core.log import Event
from nodeplug.daemon.health import Condition, Health
from nodeplug.daemon.lifecycle import drain
from nodeplug.daemon.listeners import Place, Published
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import deletes
from nodeplug.worker import doors
from nodeplug.worker.chores import Chores
from nodeplug.worker.crowd import Crowd, Guest
from nodeplug.worker.entrance import Entrance
from nodeplug.worker.filterwatch import FilterWatch
from nodeplug.worker.front import Front
from nodeplug.worker.pool import Pool
from nodeplug.worker.serve import Service
from nodeplug.worker.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from nodeplug.core.chore import Chore
    from nodeplug.core.log import Level, Log
    from nodeplug.worker.settings import WorkerSettings
    from nodeplug.worker.world import World

_SILENCE = 10.0
_STUCK = 120.0
"""Seconds after which a worker that answers nothing, though it is asked, is to be started again."""


class Daemon:
    """Serves from construction to `close()`. Raises what the parts raise; nothing is left open then."""

    def __init__(self, settings: WorkerSettings, world: World, chores: list[Chore], *, log: Log) -> None:
        self._settings = settings
        self._log = log
        self.health = Health()
        self.tally = Tally()
        self._crowd = Crowd(running=settings.running)
        self._closers: list[Callable[[float], object]] = [lambda _: self._crowd.close()]
        self._progress = (0, time.monotonic())
        try:
            self._tidy()
            self._serve(settings, world)
            if settings.watch_filter:
                watch = FilterWatch(self.note, self.health, place=Guest(self._crowd))
                self._closers.append(lambda _: watch.close())
                watch.start()
            self._chores = Chores(chores, self.note, self.health)
            self._closers.append(self._chores.close)
            if settings.health.listen:
                self._show(settings.health.listen)
        except BaseException:
            self.close(0.0)
            raise

    def _tidy(self) -> None:
        """What a killed worker left in its groups is the business of nobody else."""
        try:
            with Netlink(NETLINK_ROUTE) as route:
                names = deletes.restore_leftovers(route, "np")
        except OSError as error:
            self.note(f"links could not be looked at: {error}", level="warning")
            return
        if names:
            self.note(f"links of an interrupted delete are put back: {', '.join(names)}", level="warning")

    def _serve(self, settings: WorkerSettings, world: World) -> None:
        self._service = Service(world, doors.opened(), self._log, self.tally.served)
        listeners = {}
        place = len(self._closers)
        for name in doors.DOORS:
            socket = Published(Place(os.path.join(settings.directory, f"{name}.sock")))
            # Before the pool is drained: whoever comes later finds no socket, and runs his call himself.
            self._closers.append(lambda _, socket=socket: socket.close())  # type: ignore[misc]  # bound now
            listeners[name] = socket.listen()
        entrance = Entrance(listeners, uids=frozenset({os.geteuid()}), tell=self.tally.refused)
        self._pool = Pool(
            lambda arrived, seat: self._service.serve(arrived, seat),
            self._crowd,
            entrance,
            threads=settings.threads,
            queue=settings.queue,
        )
        self.front = Front(entrance, self._pool.submit, connections=settings.connections, tell=self.tally.refused)
        self._closers[place:place] = [lambda _: entrance.close(), self._pool.drain]
        self._closers.append(lambda _: self.front.close())
        self._pool.start()
        self.front.start()
        self.health.set("serving", Condition(ok=True, vital=True))

    def _show(self, address: str) -> None:
        from nodeplug.daemon import metrics
        from nodeplug.daemon.httpserver import HttpServer, standard_pages

        registry = metrics.open_registry("worker")
        self.tally.register(registry, under_way=lambda: self._pool.under_way)
        self._chores.register(registry)
        pages = HttpServer(address, standard_pages(self.health, registry))
        self._closers.append(lambda _: pages.close())

    def reload(self, log: Log) -> None:
        """Go on with the doors' logs as their settings are now, and with this one. Raises `ConfigInvalid`."""
        self._service = replace(self._service, doors=doors.opened(), log=log)
        self._log = log

    @property
    def alive(self) -> bool:
        """Whether the watchdog is to be fed: requests are taken, of those under way some end, no chore was lost."""
        now = time.monotonic()
        if now - self.front.ticked > _SILENCE or not self._chores.alive:
            return False
        finished, since = self._progress
        if self._pool.finished != finished or not self._pool.under_way:
            self._progress = (self._pool.finished, now)
            return True
        return now - since < _STUCK

    def note(self, message: str, *, level: Level = "info") -> None:
        """A line in the daemon's own log."""
        self._log.write(Event(contract="worker", op="daemon", level=level, outcome="note", message=message))

    def status(self) -> str:
        """One line for the service manager."""
        return self.health.trouble() or f"serving {', '.join(doors.DOORS)} in {self._settings.directory}"

    def close(self, seconds: float) -> bool:
        """End in the reverse order of the beginning; False when calls under way were cut off."""
        in_time = drain(seconds, *reversed(self._closers))
        self._closers.clear()
        return in_time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close(1.0)


def preload_pages() -> None:
    """Import what the pages of health and metrics need: shared libraries, which a host may lack that is entered."""
    for name in ("metrics", "httpserver"):
        importlib.import_module(f"nodeplug.daemon.{name}")
