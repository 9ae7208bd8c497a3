"""Who counts as a device of a pool: what is found, without doubles, and for a while what is gone.

Pure: no I/O, no clock of its own. A device keeps its place against a newcomer that is the same thing by another name,
so that no published id changes; what vanishes stays, unhealthy, for the hold time, and as long as a pod has it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from nodeplug.devices.contract import Device

_LONGEST_UNKNOWN = 15.0  # seconds a vanished device is kept at least while nobody can say whether a pod has it
_ASK_AGAIN = 5.0


@dataclass(frozen=True, slots=True)
class Double:
    """A device that is not published because it is another one already."""

    device: Device
    same_as: str


class Roster:
    """One pool's devices over time."""

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self.present: dict[str, Device] = {}
        self.doubles: list[Double] = []
        self._gone: dict[str, tuple[Device, float]] = {}
        self._due = 0.0

    @property
    def gone(self) -> Collection[str]:
        """The ids that are kept although nothing is there."""
        return self._gone.keys()

    def merge(self, found: Iterable[Device]) -> None:
        """Take what all rules found, in the order of the rules and of their units."""
        incumbents: list[Device] = []
        newcomers: list[Device] = []
        known = self.present
        for device in found:
            (incumbents if device.id in known or device.id in self._gone else newcomers).append(device)
        claims: dict[tuple[str, int, int], str] = {}
        present: dict[str, Device] = {}
        self.doubles = []
        for devices in (incumbents, newcomers):
            for device in devices:
                if device.id in present:
                    self.doubles.append(Double(device, device.id))
                    continue
                taken = ""
                for node in device.nodes:
                    if node.number is not None and not node.common:
                        taken = claims.setdefault(node.number, device.id)
                        if taken != device.id:
                            break
                if taken and taken != device.id:
                    self.doubles.append(Double(device, taken))
                    continue
                present[device.id] = device
        self.present = present

    def settle(self, now: float, before: Mapping[str, Device], in_use: Collection[str] | None) -> dict[str, Device]:
        """All devices to publish at `now`, by id. `before` is what is published; `in_use` None means nobody knows."""
        for id in self.present:
            if self._gone:
                self._gone.pop(id, None)
        if len(before) != len(self.present) or before.keys() != self.present.keys():
            for id, device in before.items():
                if id not in self.present and id not in self._gone:
                    self._gone[id] = (device, now)
        self._due = 0.0
        if not self._gone:
            return self.present
        kept = {}
        for id, (device, since) in list(self._gone.items()):
            used = in_use is not None and id in in_use
            if not used:
                age = now - since
                limit = self.hold if in_use is not None else max(self.hold, _LONGEST_UNKNOWN)
                if age >= limit:
                    del self._gone[id]
                    continue
                left = self.hold - age if age < self.hold else _ASK_AGAIN
                self._due = min(self._due or now + left, now + left)
            else:
                self._due = min(self._due or now + _ASK_AGAIN, now + _ASK_AGAIN)
            if device.roams and used:
                kept[id] = device if device.healthy else replace(device, healthy=True, reason="")
            elif device.healthy or device.reason != "it is gone":
                kept[id] = replace(device, healthy=False, reason="it is gone")
                self._gone[id] = (kept[id], since)
            else:
                kept[id] = device
        return {**self.present, **kept}

    @property
    def due(self) -> float:
        """When `settle` has to be asked again (monotonic); 0 for not until something changes."""
        return self._due
