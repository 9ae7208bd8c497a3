"""Whether a device is well: its nodes are there and open, its driver is bound, and the operator's command agrees.

`check` is asked by discovery after each look; `Probes` runs commands on threads of its own and remembers what they
said, with hysteresis: so many failures in a row make a device unhealthy, so many successes well again.
"""

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nodeplug.core import child
from nodeplug.core.errors import Error
from nodeplug.devices.contract import Device, Node
from nodeplug.devices.host import clean

# Major numbers whose open has no effect worth minding: memory, loop, input, drm, video4linux; of the misc devices
# (major 10) tun, fuse and kvm. Opening a tty raises DTR, a watchdog begins to count, a tape winds.
_QUIET_MAJORS = frozenset({("c", 1), ("b", 7), ("c", 13), ("c", 81), ("c", 226)})
_QUIET_MISC = frozenset({200, 229, 232})
_DEAD = frozenset({errno.ENXIO, errno.ENODEV, errno.EIO, errno.ENOENT})
_WORKERS = 2


def check(device: Device, opens: str) -> Device:
    """The device with what its nodes say of its health. `opens`: "auto" (where it has no effect), "always", "never"."""
    if not device.healthy:
        return device
    for node in device.nodes:
        reason = _trouble(node, opens)
        if reason:
            return replace(device, healthy=False, reason=reason)
    return device


def _trouble(node: Node, opens: str) -> str:
    path = node.real or node.host
    if node.number is None:
        return "" if os.path.exists(path) else f"{path} is not there"
    if node.common or opens == "never" or (opens == "auto" and not _quiet(node.number)):
        return ""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        # EBUSY is a device at work; EACCES and EPERM speak of this process, not of the device.
        return f"{path} does not open: {error.strerror}" if error.errno in _DEAD else ""
    return ""


def _quiet(number: tuple[str, int, int]) -> bool:
    kind, major, minor = number
    return (kind, major) in _QUIET_MAJORS or (kind == "c" and major == 10 and minor in _QUIET_MISC)


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that says by its exit status whether a device is well. `{host}` and `{id}` in argv are replaced."""

    argv: tuple[str, ...]
    interval: float
    timeout: float
    fall: int
    rise: int


@dataclass(slots=True)
class _State:
    well: bool = True
    streak: int = 0
    reason: str = ""
    due: float = 0.0
    busy: bool = False


class Probes:
    """Runs one pool's probe for each of its devices. `wake` is called when a verdict changes."""

    def __init__(self, probe: Probe, *, wake: Callable[[], None]) -> None:
        self._probe = probe
        self._wake = wake
        self._lock = threading.Lock()
        self._states: dict[str, _State] = {}
        self._devices: Mapping[str, Device] = {}
        self._jobs: queue.Queue[Device | None] = queue.Queue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._schedule, name="probe-clock", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, name=f"probe-{number}", daemon=True) for number in range(_WORKERS)
        ]
        for thread in self._threads:
            thread.start()

    def follow(self, devices: Mapping[str, Device]) -> None:
        """From now on probe these; what is gone is forgotten, and begins anew when it returns."""
        with self._lock:
            self._devices = devices
            for id in self._states.keys() - devices.keys():
                del self._states[id]
            for id in devices:
                self._states.setdefault(id, _State())

    def verdict(self, id: str) -> str:
        """Why the device is not well; "" when it is, or nothing is known yet."""
        state = self._states.get(id)
        return "" if state is None or state.well else state.reason

    def close(self) -> None:
        self._stop.set()
        for _ in range(_WORKERS):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(0.2)  # a command under way ends within its own bound

    def _schedule(self) -> None:
        while not self._stop.wait(min(1.0, self._probe.interval / 4)):
            now = time.monotonic()
            with self._lock:
                due = [id for id, state in self._states.items() if not state.busy and state.due <= now]
                for id in due:
                    self._states[id].busy = True
                    self._jobs.put(self._devices[id])

    def _work(self) -> None:
        while (device := self._jobs.get()) is not None:
            complaint = run_probe(self._probe, device)
            with self._lock:
                state = self._states.get(device.id)
                if state is None:
                    continue
                state.busy = False
                state.due = time.monotonic() + self._probe.interval
                agrees = (complaint == "") == state.well
                state.streak = 0 if agrees else state.streak + 1
                turned = not agrees and state.streak >= (self._probe.fall if state.well else self._probe.rise)
                if turned:
                    state.well, state.streak, state.reason = not state.well, 0, complaint
            if turned and not self._stop.is_set():
                self._wake()


def run_probe(probe: Probe, device: Device) -> str:
    """Run the command for a device; "" when it succeeded, else what to tell."""
    host = device.nodes[0].host if device.nodes else ""
    argv = [part.replace("{host}", host).replace("{id}", device.id) for part in probe.argv]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEVICE_ID": device.id, "DEVICE": host}
    try:
        done = child.run(argv, env=env, timeout=probe.timeout, limit=64 * 1024)
    except Error as error:
        return clean(str(error))
    if done.code == 0:
        return ""
    said = clean((done.stderr or done.stdout)[-120:].decode("utf-8", "replace").strip())
    return f"{argv[0]} ended with status {done.code}" + (f": {said}" if said else "")
