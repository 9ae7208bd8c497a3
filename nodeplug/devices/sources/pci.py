"""PCI functions by class, vendor, device, driver or address.

Containers get the function's VFIO group where vfio-pci drives it, else the nodes of its drivers (drm, nvme, misc ...),
or none: a network function is handed on by its address. The address is key and id: it is what the CNI plugins and the
SR-IOV world call `deviceID`.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nodeplug.devices.contract import Change, Device, Node
from nodeplug.devices.host import Host, device_number
from nodeplug.devices.ids import device_id
from nodeplug.devices.topology import Topology

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")


@dataclass(frozen=True, slots=True)
class PciMatch:
    """What a function must be. Empty fields match all; `pci_class` is a prefix ("0302"), `address` a glob."""

    vendor: str = ""
    device: str = ""
    pci_class: str = ""
    driver: str = ""
    address: str = ""
    subsystem: str = ""  # of the nodes wanted
    node: str = ""  # a glob on the names of the nodes wanted ("renderD*")


class PciSource:
    """Functions on the PCI bus. The key is the address."""

    def __init__(self, host: Host, topology: Topology, match: PciMatch) -> None:
        self._host = host
        self._topology = topology
        self._match = match
        self._top = f"{host.sys}/bus/pci/devices"

    def keys(self) -> Iterable[str]:
        return [name for name in self._host.entries(self._top) if ADDRESS.match(name)]

    def look(self, key: str) -> tuple[Device, ...]:
        directory = self._host.real(f"{self._top}/{key}")
        facts = pci_facts(self._host, key, directory)
        if not facts or self._unlike(facts):
            return ()
        nodes = self._nodes(directory, key, facts)
        if nodes is None:
            return ()
        return (
            Device(
                id=device_id(key),
                nodes=tuple(nodes),
                healthy=bool(facts["driver"]),
                reason="" if facts["driver"] else "no driver is bound",
                numa=self._topology.of_directory(directory),
                properties=facts,
            ),
        )

    def touched(self, change: Change) -> Iterable[str] | None:
        if change.path:
            return ()
        return [part for part in change.devpath.split("/") if ADDRESS.match(part)]

    def directories(self) -> Collection[str]:
        return ()

    def explain(self, path: str) -> str:
        for key in self.keys():
            directory = self._host.real(f"{self._top}/{key}")
            facts = pci_facts(self._host, key, directory)
            nodes = self._nodes(directory, key, facts) if facts else None
            below = [name for _, name in self._host.children(directory, self._match.subsystem, skip=ADDRESS)]
            own = {node.real for node in nodes or ()} | {f"{self._host.dev}/{name}" for name in below}
            if path in own or path == directory:
                unlike = self._unlike(facts)
                if unlike:
                    return f"pci {key}: {unlike}"
                return f"pci {key} matches" if nodes is not None else f"pci {key} matches, but its nodes are not there"
        return "no PCI function of the kind asked for has this node"

    def close(self) -> None:
        pass

    def _unlike(self, facts: dict[str, str]) -> str:
        match = self._match
        for name, wanted in (("vendor", match.vendor), ("device", match.device), ("driver", match.driver)):
            if wanted and facts[name] != wanted:
                return f"{name} is {facts[name] or 'none'}, and {wanted} is asked for"
        if match.pci_class and not facts["class"].startswith(match.pci_class):
            return f"class is {facts['class']}, and {match.pci_class} is asked for"
        if match.address and not fnmatchcase(facts["address"], match.address):
            return f"address is {facts['address']}, and {match.address} is asked for"
        return ""

    def _nodes(self, directory: str, key: str, facts: dict[str, str]) -> list[Node] | None:
        """The nodes; None when the rule wants some and they are not there yet."""
        id = device_id(key)
        if self._match.subsystem:
            return self._child_nodes(directory, id)
        if facts["driver"] != "vfio-pci":
            return []
        group = facts["iommu_group"]
        path = f"{self._host.dev}/vfio/{group}"
        number = device_number(path) if group else None
        if number is None:
            return None
        control = f"{self._host.dev}/vfio/vfio"
        return [
            # VFIO finds its group by number inside the container too, so the name there is the kernel's.
            Node(host=self._host.stable(id, "vfio"), real=path, container=f"/dev/vfio/{group}", number=number),
            Node(host=control, real=control, container="/dev/vfio/vfio", number=device_number(control), common=True),
        ]

    def _child_nodes(self, directory: str, id: str) -> list[Node] | None:
        found: list[Node] = []
        for _, name in self._host.children(directory, self._match.subsystem, skip=ADDRESS):
            path = f"{self._host.dev}/{name}"
            number = device_number(path)
            if number is None or (self._match.node and not fnmatchcase(name.rpartition("/")[2], self._match.node)):
                continue
            role = f"{self._match.subsystem}{len(found)}"
            found.append(Node(host=self._host.stable(id, role), real=path, container=f"/dev/{name}", number=number))
        return found or None


def pci_facts(host: Host, address: str, directory: str) -> dict[str, str]:
    """What sysfs says of a PCI function; empty when it is gone. Shared with the network source."""
    vendor = host.attribute(f"{directory}/vendor").removeprefix("0x").lower()
    if not vendor:
        return {}
    physical = host.link_name(f"{directory}/physfn")
    interfaces = host.entries(f"{directory}/net")
    return {
        "address": address,
        "vendor": vendor,
        "device": host.attribute(f"{directory}/device").removeprefix("0x").lower(),
        "class": host.attribute(f"{directory}/class").removeprefix("0x").lower(),
        "driver": host.link_name(f"{directory}/driver"),
        "iommu_group": host.link_name(f"{directory}/iommu_group"),
        "physical": physical,
        "interface": interfaces[0] if interfaces else "",
    }
