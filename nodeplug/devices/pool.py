"""One pool of devices: its rules' sources, what they found last, and what of it is published.

Used by discovery alone, on its thread; `stale` and `dirty` are set by sources and probes from theirs.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from nodeplug.core.errors import Error
from nodeplug.devices import health
from nodeplug.devices.contract import Change, Device, InUse, Source
from nodeplug.devices.host import Host
from nodeplug.devices.links import Links
from nodeplug.devices.roster import Roster
from nodeplug.devices.rules import Rule, build
from nodeplug.devices.snapshot import Publisher
from nodeplug.devices.topology import Topology


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What one pool of devices is. Two equal ones are the same pool: a reload leaves it alone."""

    name: str
    rules: tuple[Rule, ...]
    hold: float = 60.0
    opens: str = "auto"
    probe: health.Probe | None = None
    limit: int = 100_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all pools of a discovery share."""

    host: Host
    topology: Topology
    links: Links
    in_use: InUse
    wake: Callable[[], None]
    note: Callable[[str], None]


class Pool:
    """Opened with its sources; `close` ends what they started."""

    def __init__(self, spec: PoolSpec, publisher: Publisher, around: Surroundings) -> None:
        self.spec = spec
        self.publisher = publisher
        self.sources: list[Source] = []
        self.roster = Roster(spec.hold)
        self.published: Mapping[str, Device] = {}
        self.caused = 0.0
        self.dirty = True
        self.unwell = 0
        self.stale: set[int] = set()  # sources with news of their own
        self._around = around
        self._found: list[dict[str, tuple[Device, ...]]] = []
        self._probes: health.Probes | None = None
        self._over_limit = False
        with ExitStack() as undo:
            for number, rule in enumerate(spec.rules):
                source = self._open(number, rule)
                undo.callback(source.close)
                self.sources.append(source)
                self._found.append({})
            if spec.probe is not None:
                self._probes = health.Probes(spec.probe, wake=self._turned)
            undo.pop_all()

    def close(self) -> None:
        for source in self.sources:
            source.close()
        if self._probes is not None:
            self._probes.close()

    def _open(self, number: int, rule: Rule) -> Source:
        around = self._around

        def wake() -> None:
            self.stale.add(number)
            around.wake()

        try:
            return build(rule, around.host, around.topology, wake=wake, note=around.note)
        except Error as error:
            around.note(f"{self.spec.name}: rule {number + 1} finds nothing: {error}")
            return NoSource(str(error))

    def take_stale(self, number: int) -> bool:
        """Whether a source had news of its own; before it is looked at, so that what comes meanwhile is not lost."""
        if number not in self.stale:
            return False
        self.stale.discard(number)  # of this very set: others add to it from their threads
        return True

    def _turned(self) -> None:
        self.dirty = True
        self._around.wake()

    def scan(self, number: int) -> None:
        """Look at all units of a source."""
        source, known = self.sources[number], self._found[number]
        keys = set()
        for key in source.keys():  # noqa: SIM118  # a source is no mapping
            keys.add(key)
            self._look_at(number, key)
        for key in known.keys() - keys:
            del known[key]
            self.dirty = True

    def touch(self, number: int, changes: list[Change], *, whole: bool) -> bool:
        """Look at what the changes concern; True when directories to be watched may be others now."""
        source = self.sources[number]
        keys: set[str] = set()
        for change in changes:
            touched = source.touched(change)
            if touched is None:
                whole = True
                break
            keys.update(touched)
        if whole:
            self.scan(number)
            return True
        for key in keys:
            self._look_at(number, key)
        if keys and not self.caused:
            self.caused = changes[0].at
        return bool(keys)

    def recheck(self) -> None:
        """Unhealthy devices may become well without any event."""
        for number, found in enumerate(self._found):
            for key in [key for key, devices in found.items() if any(not device.healthy for device in devices)]:
                self._look_at(number, key)

    def _look_at(self, number: int, key: str) -> None:
        devices = self.sources[number].look(key)
        known = self._found[number]
        before = known.get(key, ())
        fresh = tuple(self._checked(number, device) for device in devices)
        if fresh == before:
            return
        self.dirty = True
        if fresh:
            known[key] = fresh
        else:
            known.pop(key, None)

    def _checked(self, number: int, device: Device) -> Device:
        if device.rule != number:
            device = replace(device, rule=number)
        return health.check(device, self.spec.opens)

    def publish(self, now: float) -> None:
        """Publish what is found, where that differs from what is published."""
        self.dirty = False
        roster = self.roster
        roster.merge(device for found in self._found for devices in found.values() for device in devices)
        gone = self.published.keys() - roster.present.keys()
        devices = roster.settle(now, self.published, self._around.in_use(self.spec.name) if gone else frozenset())
        devices = self._linked(self._judged(self._limited(devices)))
        self.unwell = sum(1 for device in devices.values() if not device.healthy)
        self.published = devices
        if self.publisher.current.version and devices == self.publisher.current.by_id:
            return
        self.publisher.publish(tuple(devices[id] for id in sorted(devices)), caused=self.caused)

    def _limited(self, devices: dict[str, Device]) -> dict[str, Device]:
        limit = self.spec.limit
        over = len(devices) > limit
        if over and not self._over_limit:
            self._around.note(
                f"{self.spec.name}: {len(devices)} devices match and the limit is {limit}: the rest stays out"
            )
        self._over_limit = over
        return {id: devices[id] for id in sorted(devices)[:limit]} if over else devices

    def _judged(self, devices: dict[str, Device]) -> dict[str, Device]:
        """With what the probe says of each."""
        probes = self._probes
        if probes is None:
            return devices
        probes.follow({id: device for id, device in self.roster.present.items() if device.healthy})
        judged = {}
        for id, device in devices.items():
            reason = probes.verdict(id) if device.healthy else ""
            judged[id] = replace(device, healthy=False, reason=reason) if reason else device
        return judged

    def relink(self) -> None:
        """Make the links again that are published and not there any more."""
        for id, device in self.published.items():
            if id not in self.roster.gone:
                try:
                    self._around.links.want(self.spec.name, device)
                except OSError as error:
                    self._around.note(f"{self.spec.name}: the link of {id} cannot be made: {error.strerror}")
                    return

    def _linked(self, devices: dict[str, Device]) -> dict[str, Device]:
        """Make the links of what is new or other, remove those of what is gone."""
        name, gone, links = self.spec.name, self.roster.gone, self._around.links
        failed: dict[str, Device] = {}
        for id, device in devices.items():
            if device is self.published.get(id):
                continue
            if id in gone:
                links.forget(name, id)
                continue
            try:
                links.want(name, device)
            except OSError as error:
                failed[id] = replace(device, healthy=False, reason=f"its link cannot be made: {error.strerror}")
        for id in self.published.keys() - devices.keys():
            links.forget(name, id)
        return {**devices, **failed} if failed else devices


class NoSource:
    """Stands for a rule whose source could not be made."""

    def __init__(self, why: str) -> None:
        self._why = why

    def keys(self) -> Iterable[str]:
        return ()

    def look(self, key: str) -> tuple[Device, ...]:
        return ()

    def touched(self, change: Change) -> Iterable[str] | None:
        return ()

    def directories(self) -> tuple[str, ...]:
        return ()

    def explain(self, path: str) -> str:
        return self._why

    def close(self) -> None:
        pass
