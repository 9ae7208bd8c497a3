"""Sources that cannot answer from the file system at once: commands that print devices, and authors' classes.

Each has a thread that asks every `interval` seconds; discovery reads the last answer. What fails keeps the last answer
for three intervals, then its devices are unhealthy until it answers again.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from nodeplug.core import child
from nodeplug.core.errors import ConfigInvalid, Error
from nodeplug.devices.contract import Change, Device, Inventory, Node
from nodeplug.devices.host import clean, device_number
from nodeplug.devices.ids import device_id

_MOST_DEVICES = 100_000
_MOST_NODES = 256
_STALE_INTERVALS = 3
_PERMISSIONS = re.compile(r"[rwm]{0,3}\Z")
_KEY = "all"


class CommandInventory:
    """A command that prints a JSON list of devices on stdout, bounded in time and size."""

    def __init__(self, argv: Sequence[str], *, interval: float, timeout: float, limit: int) -> None:
        self.interval = interval
        self._argv = tuple(argv)
        self._timeout = timeout
        self._limit = limit

    def devices(self) -> Iterable[Device]:
        """Run it once. Raises `Error` for what it did wrong."""
        done = child.run(
            self._argv,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            timeout=self._timeout,
            limit=self._limit,
        )
        if done.code != 0:
            said = clean(done.stderr[-200:].decode("utf-8", "replace").strip())
            raise ConfigInvalid(f"{self._argv[0]} ended with status {done.code}: {said}")
        return parse_devices(done.stdout)


def parse_devices(data: bytes) -> list[Device]:
    """The devices in a command's answer: [{"id": ..., "nodes": [...], "numa": [...], ...}]. Raises `ConfigInvalid`."""
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigInvalid("the command's answer is not JSON") from None
    if not isinstance(listed, list):
        raise ConfigInvalid("the command's answer is not a list of devices")
    if len(listed) > _MOST_DEVICES:
        raise ConfigInvalid(f"the command lists {len(listed)} devices; {_MOST_DEVICES} is the most")
    problems: list[tuple[str, str]] = []
    found = []
    for position, item in enumerate(listed):
        try:
            found.append(_device(item))
        except ValueError as wrong:
            problems.append((f"$[{position}]", str(wrong)))
        if len(problems) >= 20:
            break
    if problems:
        raise ConfigInvalid("the command's answer is not valid", problems=problems)
    return found


def _device(item: object) -> Device:
    if not isinstance(item, dict):
        raise ValueError("expected an object with keys")
    unknown = item.keys() - {"id", "nodes", "numa", "healthy", "reason", "properties"}
    if unknown:
        raise ValueError(f"no such key: {clean(', '.join(sorted(map(str, unknown))))}")
    identity = item.get("id")
    if not isinstance(identity, str) or not 0 < len(identity) <= 1024:
        raise ValueError("id: required, a string of at most 1024 characters")
    nodes = item.get("nodes", [])
    if not isinstance(nodes, list) or len(nodes) > _MOST_NODES:
        raise ValueError(f"nodes: expected a list of at most {_MOST_NODES}")
    numa = item.get("numa", [])
    if not isinstance(numa, list) or not all(type(node) is int and -1 <= node < 4096 for node in numa):
        raise ValueError("numa: expected a list of node numbers")
    healthy = item.get("healthy", True)
    reason = item.get("reason", "")
    properties = item.get("properties", {})
    if not isinstance(healthy, bool) or not isinstance(reason, str):
        raise ValueError("healthy: expected true or false; reason: expected a string")
    if not isinstance(properties, dict) or not all(isinstance(value, str) for value in properties.values()):
        raise ValueError("properties: expected an object whose values are strings")
    return Device(
        id=device_id(identity),
        nodes=tuple(_node(node) for node in nodes),
        healthy=healthy,
        reason=clean(reason[:200]),
        numa=tuple(node for node in numa if node >= 0),
        properties={str(name): clean(value) for name, value in properties.items()},
    )


def _node(item: object) -> Node:
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, dict) or item.keys() - {"path", "container", "permissions"}:
        raise ValueError("nodes: expected paths, or objects with path, container and permissions")
    path, inside, permissions = (item.get(name, "") for name in ("path", "container", "permissions"))
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise ValueError("nodes: expected an absolute path")
    if not isinstance(inside, str) or (inside and not inside.startswith("/")) or "\0" in inside:
        raise ValueError("nodes: container: expected an absolute path")
    if not isinstance(permissions, str) or not _PERMISSIONS.match(permissions):
        raise ValueError('nodes: permissions: expected letters of "rwm"')
    return Node(host=path, real=path, container=inside or path, permissions=permissions)


class PolledSource:
    """Runs an inventory on a thread of its own. `wake` is called when the answer changes; `note` takes complaints."""

    def __init__(
        self, inventory: Inventory, shown: str, *, wake: Callable[[], None], note: Callable[[str], None]
    ) -> None:
        self._inventory = inventory
        self._shown = shown
        self._wake = wake
        self._note = note
        self._answer: Mapping[str, Device] = {}
        self._answered = 0.0
        self._complaint = ""
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inventory", daemon=True)
        self._thread.start()

    def keys(self) -> Iterable[str]:
        return (_KEY,)

    def look(self, key: str) -> tuple[Device, ...]:
        if key != _KEY:
            return ()
        devices = self._answer.values()
        stale = self._complaint and time.monotonic() - self._answered > _STALE_INTERVALS * self._inventory.interval
        found = []
        for device in devices:
            nodes = tuple(replace(node, number=device_number(node.host)) for node in device.nodes)
            if stale and device.healthy:
                device = replace(device, healthy=False, reason=f"{self._shown} no longer answers")
            found.append(replace(device, nodes=nodes) if nodes != device.nodes else device)
        return tuple(found)

    def touched(self, change: Change) -> Iterable[str] | None:
        nodes = {node.host for device in self._answer.values() for node in device.nodes} if change.path else ()
        return (_KEY,) if change.path in nodes else ()

    def directories(self) -> Collection[str]:
        return ()

    def explain(self, path: str) -> str:
        for device in self._answer.values():
            if any(path in (node.host, node.real) for node in device.nodes):
                return f"{self._shown} lists it as {device.id}"
        return f"{self._shown} does not list it" + (f" ({self._complaint})" if self._complaint else "")

    def wait_first(self, timeout: float) -> bool:
        """Wait until it has been asked once: for commands that print what there is and end."""
        return self._first.wait(timeout)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(0.2)  # a command under way ends within its own bound; it is a daemon thread

    def _run(self) -> None:
        while not self._stop.is_set():
            before, complained = self._answer, self._complaint
            self._ask()
            self._first.set()
            if self._complaint and self._complaint != complained:
                self._note(f"{self._shown}: {self._complaint}")
            if self._answer != before or self._complaint:
                self._wake()
            self._stop.wait(max(0.05, self._inventory.interval))

    def _ask(self) -> None:
        try:
            listed = list(self._inventory.devices())
        except Error as error:
            self._complaint = str(error)
            return
        except Exception as error:  # an author's class may fail in any way, and the others must not
            self._complaint = f"{type(error).__name__}: {error}"
            return
        answer: dict[str, Device] = {}
        for device in listed[:_MOST_DEVICES]:
            answer.setdefault(device.id, device)
        self._answer, self._answered, self._complaint = answer, time.monotonic(), ""
