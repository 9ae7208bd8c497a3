"""Devices by the properties udev has found out about them, read from its data files.

udev writes a device's file whole, once all its rules have run: what is not there yet is waited for. The key is the
file's name ("c188:0"), and with it the device's number.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from nodeplug.devices.contract import Change, Device, Node
from nodeplug.devices.host import Host, clean, device_number
from nodeplug.devices.ids import device_id
from nodeplug.devices.sources.finders import nearest_directory
from nodeplug.devices.topology import Topology

_KEY = re.compile(r"([bc])(\d{1,7}):(\d{1,7})\Z")
_STABLE_LINK = re.compile(r"(.*/)?by-(id|path)/")
_MOST_PROPERTIES = 64


@dataclass(frozen=True, slots=True)
class UdevMatch:
    """Properties and the globs their values must match; `id` is the property that names the device."""

    properties: Mapping[str, str] = field(default_factory=dict)
    id: str = ""  # empty: ID_SERIAL with the subsystem and interface, else ID_PATH


class UdevSource:
    """Device nodes udev knows. The key is the name of its data file."""

    def __init__(self, host: Host, topology: Topology, match: UdevMatch) -> None:
        self._host = host
        self._topology = topology
        self._match = match

    def keys(self) -> Iterable[str]:
        return [name for name in self._host.entries(self._host.udev) if _KEY.match(name)]

    def look(self, key: str) -> tuple[Device, ...]:
        properties, links = self._record(key)
        if self._unlike(properties):
            return ()
        directory, path = self._node(key)
        number = device_number(path) if path else None
        identity = self._identity(directory, properties)
        if number is None or not identity:
            return ()
        id = device_id(identity)
        return (
            Device(
                id=id,
                nodes=(
                    Node(
                        host=self._stable(links, path) or self._host.stable(id, "node"),
                        real=path,
                        container="/dev" + path.removeprefix(self._host.dev),
                        number=number,
                    ),
                ),
                numa=self._topology.of_directory(directory),
                properties={name: clean(value) for name, value in properties.items()},
            ),
        )

    def touched(self, change: Change) -> Iterable[str] | None:
        if change.path:
            if os.path.dirname(change.path) == self._host.udev:
                name = os.path.basename(change.path)
                return (name,) if _KEY.match(name) else ()
            return None if self._host.udev.startswith(change.path.rstrip("/") + "/") else ()
        if not change.devpath:
            return ()
        number = self._host.attribute(f"{self._host.sys}{change.devpath}/dev")
        kind = "b" if change.subsystem == "block" else "c"
        return (f"{kind}{number}",) if number else ()

    def directories(self) -> Collection[str]:
        return {nearest_directory(self._host.udev)}

    def explain(self, path: str) -> str:
        number = device_number(path)
        if number is None:
            return "there is no device node"
        key = f"{number[0]}{number[1]}:{number[2]}"
        properties, _ = self._record(key)
        if not properties:
            return f"udev has no data of it ({self._host.udev}/{key})"
        unlike = self._unlike(properties)
        if unlike:
            return f"udev {key}: {unlike}"
        return f"udev {key} matches" if self.look(key) else f"udev {key} matches, but nothing names it; set `id`"

    def close(self) -> None:
        pass

    def _record(self, key: str) -> tuple[dict[str, str], list[str]]:
        record = self._host.udev_record(key)
        properties: dict[str, str] = {}
        for line in record.get("E", ())[:_MOST_PROPERTIES]:
            name, _, value = line.partition("=")
            properties[name] = value
        return properties, record.get("S", [])

    def _unlike(self, properties: Mapping[str, str]) -> str:
        for name, wanted in self._match.properties.items():
            value = properties.get(name)
            if value is None:
                return f"it has no property {name}"
            if not fnmatchcase(value, wanted):
                return f"{name} is {clean(value)}, and {wanted} is asked for"
        return ""

    def _node(self, key: str) -> tuple[str, str]:
        """(sysfs directory, path of the node)."""
        found = _KEY.match(key)
        if found is None:
            return "", ""
        directory = self._host.node_directory((found[1], int(found[2]), int(found[3])))
        name = self._host.variables(directory).get("DEVNAME", "") if directory else ""
        return directory, f"{self._host.dev}/{name}" if name else ""

    def _identity(self, directory: str, properties: Mapping[str, str]) -> str:
        if self._match.id:
            return properties.get(self._match.id, "")
        subsystem = self._host.link_name(f"{directory}/subsystem")
        for name in ("ID_SERIAL", "ID_PATH"):
            if properties.get(name):
                parts = [subsystem, properties[name], properties.get("ID_USB_INTERFACE_NUM", "")]
                # Several nodes of one function (video0 and its metadata video1) differ in their index only.
                index = self._host.attribute(f"{directory}/index")
                parts.append(index if index not in ("", "0") else "")
                return "-".join(part for part in parts if part)
        return ""

    def _stable(self, links: list[str], path: str) -> str:
        """A link of udev's own that names the device and not its order."""
        for link in sorted(links):
            full = f"{self._host.dev}/{link}"
            if _STABLE_LINK.match(link) and os.path.realpath(full) == os.path.realpath(path):
                return full
        return ""
