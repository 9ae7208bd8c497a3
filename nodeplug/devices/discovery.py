"""The one thread that knows what devices there are: hears, looks, and publishes whole snapshots.

The first event after quiet is acted on at once, later ones are gathered for 100 ms. An event costs a look at the units
it may concern; a full look every five minutes is the truth, and every five seconds where nothing can tell of changes.
"""

import threading
import time
from collections.abc import Iterable, Mapping

from nodeplug.devices.contract import Change, InUse
from nodeplug.devices.host import Host
from nodeplug.devices.links import Links
from nodeplug.devices.pool import Pool, PoolSpec, Surroundings
from nodeplug.devices.roster import Double
from nodeplug.devices.snapshot import Publisher
from nodeplug.devices.sources.polled import PolledSource
from nodeplug.devices.topology import Topology
from nodeplug.devices.triggers import Triggers

GATHER = 0.1  # seconds
RESCAN = 300.0
POLL = 5.0
_RECHECK = 5.0
_MOST_PENDING = 4096
_PAUSE = 1.0  # after a fault of ours
_MOST_WATCH_ROUNDS = 4


class Observer:
    """What discovery tells of its work; doors override what they count. Called on the discovery thread."""

    def note(self, sentence: str) -> None:
        """Something for the log."""

    def scanned(self, trigger: str, seconds: float) -> None:
        """A look was taken because of "event", "rescan", "poll", "overflow", "reload" or "timer"."""

    def lost(self, kind: str) -> None:
        """Events of that kind ("inotify", "uevents") were dropped by the kernel."""


class Discovery:
    """Follows the pools it is given until `close()`. `publisher(name)` is where a door reads and waits."""

    def __init__(
        self,
        host: Host,
        *,
        observer: Observer | None = None,
        in_use: InUse = lambda _: frozenset(),
        rescan: float = RESCAN,
        poll: float = POLL,
        keep_links: bool = True,
    ) -> None:
        self._observer = observer or Observer()
        self._rescan = rescan
        self._poll = poll
        self._topology = Topology(host)
        self._links = Links(host.links, make=keep_links)
        self._links.load()
        self._swept = False
        self._triggers = Triggers(on_loss=self._observer.lost)
        self._around = Surroundings(
            host, self._topology, self._links, in_use, wake=self._triggers.wake, note=self._observer.note
        )
        self._told_missing: dict[str, str] = {}
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()
        self._wanted: dict[str, PoolSpec] | None = None
        self._publishers: dict[str, Publisher] = {}
        self._reloaded = threading.Condition(self._lock)
        self._generation = 0
        self._stopping = False
        self._recheck_at = 0.0
        self._pending: dict[tuple[str, str], Change] = {}
        self._everything = ""  # why all has to be looked at; "" when it has not
        self._acted = 0.0
        self._full = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    def start(self) -> None:
        """Begin to look; the pools come by `follow`."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking. What is published stays readable."""
        self._stopping = True
        self._triggers.wake()
        if self._thread.is_alive():
            self._thread.join(10.0)
        for pool in self._pools.values():
            pool.close()
        self._triggers.close()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def follow(self, specs: Iterable[PoolSpec], *, timeout: float = 30.0) -> bool:
        """From now on these pools and no others; unchanged ones are not disturbed. True once all have been looked at.

        Rules' classes must be loadable (`rules.load_inventory`): one that fails leaves its rule without devices.
        """
        with self._lock:
            self._wanted = {spec.name: spec for spec in specs}
            for name in self._wanted:
                self._publishers.setdefault(name, Publisher())
            goal = self._generation + 1
        self._triggers.wake()
        with self._lock:
            return self._reloaded.wait_for(lambda: self._generation >= goal or self._stopping, timeout)

    def wait_polled(self, timeout: float) -> None:
        """Wait until every command and class has been asked once, and what it said is published."""
        end = time.monotonic() + timeout
        polled = [src for pool in list(self._pools.values()) for src in pool.sources if isinstance(src, PolledSource)]
        for source in polled:
            source.wait_first(max(0.0, end - time.monotonic()))
        if polled:
            self.follow([pool.spec for pool in self._pools.values()])

    def publisher(self, name: str) -> Publisher:
        """The publisher of a pool that was once given to `follow`."""
        return self._publishers[name]

    def doubles(self, name: str) -> list[Double]:
        """What was found and is not published because it is another device already."""
        pool = self._pools.get(name)
        return list(pool.roster.doubles) if pool else []

    def explain(self, name: str, path: str) -> list[tuple[str, str]]:
        """For each rule of a pool: its words, and why `path` is or is not one of its devices. Not for a live thread."""
        pool = self._pools[name]
        return [(rule.shown, src.explain(path)) for rule, src in zip(pool.spec.rules, pool.sources, strict=True)]

    @property
    def missing(self) -> Mapping[str, str]:
        """What cannot tell of changes here, and why: then all is polled."""
        return self._triggers.missing

    # The rest runs on the discovery thread.

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._step()
            except Exception as error:  # without this thread nothing is noticed any more, so nothing may end it
                self._observer.note(f"{type(error).__name__}: {error}; all devices are looked at again")
                self._everything = "recovery"
                self._triggers.wait(_PAUSE)

    def _step(self) -> None:
        """Take a reload, wait for the next thing to do, do it."""
        self._take_reload()
        interval = min(self._poll, self._rescan) if self._triggers.missing else self._rescan
        pending = self._pending or self._everything
        due = min(self._full + interval, self._next_due(), self._acted + GATHER if pending else float("inf"))
        for change in self._triggers.wait(max(0.0, due - time.monotonic())):
            if change.everything or len(self._pending) >= _MOST_PENDING:
                self._everything = "overflow"
            else:
                self._pending.setdefault((change.path, change.devpath), change)
        self._take_reload()
        now = time.monotonic()
        if not self._everything and now >= self._full + interval:
            self._everything = "poll" if self._triggers.missing else "rescan"
        gathered = now >= self._acted + GATHER
        changes = list(self._pending.values())
        if self._everything and gathered:
            trigger, self._everything, self._pending = self._everything, "", {}
            self._look_at_everything(trigger, changes)
            self._full = self._acted = time.monotonic()
        elif changes and gathered:
            self._pending = {}
            self._look("event", changes)
            self._acted = time.monotonic()
        elif any(pool.stale or pool.dirty for pool in self._pools.values()) or now >= self._next_due():
            self._look("timer", [])

    def news(self) -> None:
        """Ask `in_use` again about what is gone: the answer may be another."""
        for pool in list(self._pools.values()):
            if pool.roster.gone:
                pool.dirty = True
        self._triggers.wake()

    def _next_due(self) -> float:
        dues = [pool.roster.due for pool in self._pools.values() if pool.roster.due]
        if any(pool.unwell for pool in self._pools.values()):
            dues.append(self._recheck_at)
        return min(dues, default=float("inf"))

    def _take_reload(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, None
        if wanted is None:
            return
        left: list[tuple[str, str]] = []
        for name in [name for name, pool in self._pools.items() if wanted.get(name) != pool.spec]:
            pool = self._pools.pop(name)
            pool.close()
            left += [(name, id) for id in pool.published]
            if name not in wanted:
                self._publishers[name].publish(())
        fresh = [
            Pool(spec, self._publishers[name], self._around) for name, spec in wanted.items() if name not in self._pools
        ]
        self._pools.update({pool.spec.name: pool for pool in fresh})
        self._look_at_everything("reload", [], only=fresh or None)
        for name, id in left:
            if name not in self._pools or id not in self._pools[name].published:
                self._links.forget(name, id)
        if not self._swept:
            self._links.sweep()
            self._swept = True
        with self._lock:
            self._generation += 1
            for name in [name for name in self._publishers if name not in wanted]:
                del self._publishers[name]
            self._reloaded.notify_all()

    def _look_at_everything(self, trigger: str, changes: list[Change], *, only: list[Pool] | None = None) -> None:
        began = time.monotonic()
        self._topology.forget()
        if only is None:
            self._links.load()  # somebody may have cleaned up below /run
            for pool in self._pools.values():
                pool.relink()
        pools = list(self._pools.values()) if only is None else only
        for _ in range(_MOST_WATCH_ROUNDS):
            for pool in pools:
                for number in range(len(pool.sources)):
                    pool.scan(number)
            # What came between a look and its watch would go unheard: look again when a watch is new.
            if not self._watch():
                break
        self._conclude(changes)
        self._observer.scanned(trigger, time.monotonic() - began)
        self._tell_missing()

    def _look(self, trigger: str, changes: list[Change]) -> None:
        began = time.monotonic()
        moved = False
        for pool in self._pools.values():
            for number in range(len(pool.sources)):
                moved |= pool.touch(number, changes, whole=pool.take_stale(number))
            if pool.unwell and began >= self._recheck_at:
                pool.recheck()
        if began >= self._recheck_at:
            self._recheck_at = began + _RECHECK
        if moved and self._watch():
            for pool in self._pools.values():
                for number in range(len(pool.sources)):
                    pool.scan(number)
            self._watch()
        self._conclude(changes)
        self._observer.scanned(trigger, time.monotonic() - began)

    def _watch(self) -> bool:
        return self._triggers.watch(
            {path for pool in self._pools.values() for source in pool.sources for path in source.directories()}
        )

    def _conclude(self, changes: list[Change]) -> None:
        """Publish the pools that are different now."""
        now = time.monotonic()
        for pool in self._pools.values():
            if not pool.dirty and not (pool.roster.due and now >= pool.roster.due):
                pool.caused = 0.0
                continue
            if not pool.caused and changes:
                pool.caused = changes[0].at
            pool.publish(now)
            pool.caused = 0.0

    def _tell_missing(self) -> None:
        missing = dict(self._triggers.missing)
        for kind, why in missing.items():
            if self._told_missing.get(kind) != why:
                self._observer.note(f"no {kind}: {why}; devices are looked for every {self._poll:g} s instead")
        self._told_missing = missing
