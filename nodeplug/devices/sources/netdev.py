"""Network devices and SR-IOV virtual functions, to be handed to a CNI plugin by `deviceID`.

A function of a PCI card goes by its address, so that it stays known while its interface is inside a pod; what has no
card behind it (veth, tap, macvlan) goes by its name and `roams`: it leaves our sight when a pod takes it.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nodeplug.devices.contract import Change, Device
from nodeplug.devices.host import Host, clean, number_list
from nodeplug.devices.ids import device_id
from nodeplug.devices.sources.pci import ADDRESS, pci_facts
from nodeplug.devices.topology import Topology

_INTERFACE = re.compile(r"/net/([^/]+)")


@dataclass(frozen=True, slots=True)
class NetMatch:
    """What an interface or function must be. Empty fields match all; `name`, `pf` and `address` are globs."""

    name: str = ""
    kind: str = "any"  # "vf": virtual functions; "pf": physical functions; "virtual": no card behind it
    pf: str = ""  # name of the physical function's interface
    vfs: str = ""  # numbers of its virtual functions ("0-7,9")
    driver: str = ""
    vendor: str = ""
    device: str = ""
    address: str = ""
    link: str = ""  # "up": healthy only with a carrier


class NetSource:
    """Interfaces and functions. The key is a PCI address, or the name of an interface without a card."""

    def __init__(self, host: Host, topology: Topology, match: NetMatch) -> None:
        self._host = host
        self._topology = topology
        self._match = match
        self._pci = f"{host.sys}/bus/pci/devices"
        self._net = f"{host.sys}/class/net"
        self._vfs = frozenset(number_list(match.vfs))

    def keys(self) -> Iterable[str]:
        functions = [
            address
            for address in self._host.entries(self._pci)
            if ADDRESS.match(address) and self._host.attribute(f"{self._pci}/{address}/class").startswith("0x02")
        ]
        return functions + [name for name in self._host.entries(self._net) if not self._address(name) and name != "lo"]

    def look(self, key: str) -> tuple[Device, ...]:
        facts = self._facts(key)
        if not facts or self._unlike(facts):
            return ()
        down = self._match.link == "up" and facts["interface"] and facts["carrier"] != "1"
        return (
            Device(
                id=device_id(key),
                healthy=not down,
                reason=f"{facts['interface']} has no carrier" if down else "",
                numa=self._topology.of_directory(self._host.real(f"{self._pci}/{key}")) if facts["address"] else (),
                properties=facts,
                roams=True,
            ),
        )

    def touched(self, change: Change) -> Iterable[str] | None:
        if change.path:
            return ()
        touched = [part for part in change.devpath.split("/") if ADDRESS.match(part)]
        found = _INTERFACE.search(change.devpath)
        if found:
            touched.append(found[1])
        if change.subsystem == "net" and "/virtual/" in change.devpath:
            return touched if found else None
        return touched

    def directories(self) -> Collection[str]:
        return ()

    def explain(self, path: str) -> str:
        name = path.rpartition("/")[2]
        key = name if ADDRESS.match(name) else self._address(name) or name
        facts = self._facts(key)
        if not facts:
            return f"there is no network device {name}"
        unlike = self._unlike(facts)
        return f"netdev {key}: {unlike}" if unlike else f"netdev {key} matches"

    def close(self) -> None:
        pass

    def _address(self, interface: str) -> str:
        """The PCI address of the card behind an interface; "" without one."""
        name = self._host.real(f"{self._net}/{interface}/device").rpartition("/")[2]
        if ADDRESS.match(name):
            return name
        # virtio and other buses on top of PCI have one more step.
        parent = self._host.real(f"{self._net}/{interface}/device").rpartition("/")[0].rpartition("/")[2]
        return parent if ADDRESS.match(parent) else ""

    def _facts(self, key: str) -> dict[str, str]:
        if not ADDRESS.match(key):
            directory = f"{self._net}/{key}"
            if "/" in key or not self._host.attribute(f"{directory}/ifindex"):
                return {}
            return {
                "interface": key,
                "address": "",
                "mac": self._host.attribute(f"{directory}/address"),
                "carrier": self._host.attribute(f"{directory}/carrier"),
                "driver": self._host.link_name(f"{directory}/device/driver"),
                "vendor": "",
                "device": "",
                "pf": "",
                "vf": "",
                "kind": "virtual",
            }
        directory = self._host.real(f"{self._pci}/{key}")
        facts = pci_facts(self._host, key, directory)
        if not facts:
            return {}
        if not facts["interface"]:  # virtio and the like
            below = [name for name in self._host.entries(directory) if name.startswith("virtio")]
            names = self._host.entries(f"{directory}/{below[0]}/net") if below else []
            facts["interface"] = names[0] if names else ""
        physical = facts["physical"]
        interfaces = self._host.entries(f"{self._pci}/{physical}/net") if physical else []
        interface = facts["interface"]
        return {
            **facts,
            "interface": clean(interface),
            "mac": self._host.attribute(f"{self._net}/{interface}/address") if interface else "",
            "carrier": self._host.attribute(f"{self._net}/{interface}/carrier") if interface else "",
            "pf": interfaces[0] if interfaces else "",
            "vf": self._number_of(key, physical) if physical else "",
            "kind": "vf" if physical else "pf",
        }

    def _number_of(self, address: str, physical: str) -> str:
        """Which virtual function of its card this is."""
        top = f"{self._pci}/{physical}"
        for name in self._host.entries(top):
            if name.startswith("virtfn") and self._host.link_name(f"{top}/{name}") == address:
                return name.removeprefix("virtfn")
        return ""

    def _unlike(self, facts: dict[str, str]) -> str:
        match = self._match
        if match.kind != "any" and facts["kind"] != match.kind:
            return f"it is of kind {facts['kind']}, and {match.kind} is asked for"
        for name in ("driver", "vendor", "device"):
            wanted = getattr(match, name)
            if wanted and facts[name] != wanted:
                return f"{name} is {facts[name] or 'none'}, and {wanted} is asked for"
        for name, wanted in (("interface", match.name), ("address", match.address), ("pf", match.pf)):
            if wanted and not fnmatchcase(facts[name], wanted):
                return f"{name} is {facts[name] or 'none'}, and {wanted} is asked for"
        if self._vfs and (not facts["vf"].isdigit() or int(facts["vf"]) not in self._vfs):
            return f"virtual function {facts['vf'] or 'none'} is not one of {match.vfs}"
        return ""
