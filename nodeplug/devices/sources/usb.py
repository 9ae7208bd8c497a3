"""USB devices by what they say of themselves or by the port they are in.

Containers get the device's own node or the nodes of its drivers (tty, video4linux, hidraw, input, block ...). The key
is the device's name in sysfs ("1-1.4"); the id comes from the serial number, or from controller and port, whose names
survive a change of bus and device numbers.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nodeplug.devices.contract import Change, Device, Node
from nodeplug.devices.host import Host, clean, device_number
from nodeplug.devices.ids import device_id
from nodeplug.devices.topology import Topology

_DEVICE = re.compile(r"\d+-\d+(\.\d+)*\Z")
_INTERFACE = re.compile(r"\d+-[\d.]+:\d+\.\d+\Z")
_ROOT_HUB = re.compile(r"usb(\d+)\Z")


@dataclass(frozen=True, slots=True)
class UsbMatch:
    """What a device must be. Empty fields match all; `serial` and `port` are globs, numbers are hexadecimal."""

    vendor: str = ""
    product: str = ""
    serial: str = ""
    port: str = ""  # "1-1.4" as the kernel says, or "0000:00:14.0-usbv2-1.4" as our ids do
    interface: str = ""  # bInterfaceNumber of the nodes wanted
    subsystem: str = ""  # of the nodes wanted; empty: the device's own node
    each: str = "device"  # or "node": every node is a device by itself
    id: str = "auto"  # or "serial", "port"


class UsbSource:
    """USB devices on the bus. The key is the name in sysfs."""

    def __init__(self, host: Host, topology: Topology, match: UsbMatch) -> None:
        self._host = host
        self._topology = topology
        self._match = match
        self._top = f"{host.sys}/bus/usb/devices"
        self._holders: dict[str, str] = {}  # identity by serial -> key: two sticks may claim one serial number

    def keys(self) -> Iterable[str]:
        return [name for name in self._host.entries(self._top) if _DEVICE.match(name)]

    def look(self, key: str) -> tuple[Device, ...]:
        directory = self._host.real(f"{self._top}/{key}")
        facts = self._facts(key, directory)
        if not facts or self._unlike(facts):
            self._release(key)
            return ()
        nodes = self._nodes(directory)
        if not nodes:
            return ()  # its driver has not made them yet
        identity = self._identity(key, facts)
        if not identity:
            return ()
        numa = self._topology.of_directory(directory)
        if self._match.each == "device":
            return (self._device(identity, nodes, numa, facts),)
        return tuple(
            self._device(f"{identity}-{role}", [(role, path, number)], numa, facts) for role, path, number in nodes
        )

    def touched(self, change: Change) -> Iterable[str] | None:
        if change.path:
            return ()
        # The parts of a device path from the root: hubs come before what hangs on them.
        names = [part for part in change.devpath.split("/") if _DEVICE.match(part)]
        return names[-1:]

    def directories(self) -> Collection[str]:
        return ()

    def explain(self, path: str) -> str:
        for key in self.keys():
            directory = self._host.real(f"{self._top}/{key}")
            own = self._host.variables(directory).get("DEVNAME", "")
            below = [name for _, name in self._host.children(directory, self._match.subsystem, skip=_DEVICE)]
            if path not in [f"{self._host.dev}/{name}" for name in (own, *below) if name]:
                continue
            facts = self._facts(key, directory)
            unlike = self._unlike(facts)
            if unlike:
                return f"usb {key}: {unlike}"
            if path not in [real for _, real, _ in self._nodes(directory)]:
                return f"usb {key} matches, but not this node of it"
            return f"usb {key} matches ({facts['vendor']}:{facts['product']} serial {facts['serial'] or 'none'})"
        return "no USB device of the kind asked for has this node"

    def close(self) -> None:
        pass

    def _facts(self, key: str, directory: str) -> dict[str, str]:
        attribute = self._host.attribute
        vendor = attribute(f"{directory}/idVendor").lower()
        if not vendor:
            return {}
        return {
            "vendor": vendor,
            "product": attribute(f"{directory}/idProduct").lower(),
            "serial": clean(attribute(f"{directory}/serial")),
            "manufacturer": clean(attribute(f"{directory}/manufacturer")),
            "model": clean(attribute(f"{directory}/product")),
            "port": key,
            "port_path": self._port_path(key, directory),
            "driver": self._host.link_name(f"{directory}/driver"),
        }

    def _port_path(self, key: str, directory: str) -> str:
        """Controller, USB version of its root hub, ports: the same after every boot, as long as nobody replugs."""
        parts = directory.split("/")
        for position, part in enumerate(parts):
            if _ROOT_HUB.match(part):
                root = "/".join(parts[: position + 1])
                version = self._host.attribute(f"{root}/version").partition(".")[0] or "2"
                return f"{parts[position - 1]}-usbv{version}-{key.partition('-')[2]}"
        return f"usb-{key.partition('-')[2]}"

    def _unlike(self, facts: dict[str, str]) -> str:
        """Why the rule does not want this device; "" when it does."""
        match = self._match
        if not facts:
            return "it is gone"
        for name, wanted in (("vendor", match.vendor), ("product", match.product)):
            if wanted and facts[name] != wanted:
                return f"{name} is {facts[name]}, and {wanted} is asked for"
        if match.serial and not fnmatchcase(facts["serial"], match.serial):
            return f"serial is {facts['serial'] or 'none'}, and {match.serial} is asked for"
        if match.port and not any(fnmatchcase(facts[name], match.port) for name in ("port", "port_path")):
            return f"port is {facts['port']} ({facts['port_path']}), and {match.port} is asked for"
        return ""

    def _nodes(self, directory: str) -> list[tuple[str, str, tuple[str, int, int]]]:
        """(role, path, number) of each node that is there; roles count within the device, not over the machine."""
        if not self._match.subsystem:
            name = self._host.variables(directory).get("DEVNAME", "")
            listed = [("usb", name)] if name else []
        else:
            listed = []
            for place, name in self._host.children(directory, self._match.subsystem, skip=_DEVICE):
                interface = next((part for part in place.split("/") if _INTERFACE.match(part)), "")
                number = self._host.attribute(f"{place.partition(interface)[0]}{interface}/bInterfaceNumber")
                if self._match.interface and number != self._match.interface:
                    continue
                same = sum(1 for role, _ in listed if role.startswith(f"{self._match.subsystem}-{number or 'x'}."))
                listed.append((f"{self._match.subsystem}-{number or 'x'}.{same}", name))
        found = []
        for role, name in listed:
            path = f"{self._host.dev}/{name}"
            number_of = device_number(path)
            if number_of is not None:
                found.append((role, path, number_of))
        return found

    def _identity(self, key: str, facts: dict[str, str]) -> str:
        by_port = f"usb-{facts['vendor']}-{facts['product']}-{facts['port_path']}"
        if self._match.id == "port":
            return by_port
        if not facts["serial"]:
            return "" if self._match.id == "serial" else by_port
        by_serial = f"usb-{facts['vendor']}-{facts['product']}-{facts['serial']}"
        holder = self._holders.setdefault(by_serial, key)
        if holder == key:
            return by_serial
        held = self._host.attribute(f"{self._top}/{holder}/serial")
        if clean(held) != facts["serial"]:
            self._holders[by_serial] = key  # it was moved to another port
            return by_serial
        return f"{by_serial}-{facts['port_path']}"

    def _release(self, key: str) -> None:
        for identity in [identity for identity, holder in self._holders.items() if holder == key]:
            del self._holders[identity]

    def _device(
        self,
        identity: str,
        nodes: list[tuple[str, str, tuple[str, int, int]]],
        numa: tuple[int, ...],
        facts: dict[str, str],
    ) -> Device:
        id = device_id(identity)
        return Device(
            id=id,
            nodes=tuple(
                Node(
                    host=self._host.stable(id, role),
                    real=path,
                    container="/dev" + path.removeprefix(self._host.dev),
                    number=number,
                )
                for role, path, number in nodes
            ),
            healthy=bool(facts["driver"]),
            reason="" if facts["driver"] else "no driver is bound",
            numa=numa,
            properties=facts,
        )
