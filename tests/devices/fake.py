"""A sysfs that is not there, in the shape of the real one: links relative, attributes with newlines, uevent files."""

from __future__ import annotations

import os
from pathlib import Path

from nodeplug.devices.host import Host


class FakeNode:
    """Directories like /sys, /dev and /run/udev/data below `top`, to be filled piece by piece."""

    def __init__(self, top: Path, *, numa: str = "0-1") -> None:
        self.top = top
        self.sys = top / "sys"
        self.dev = top / "dev"
        self.udev = top / "udev"
        self.host = Host(dev=str(self.dev), sys=str(self.sys), udev=str(self.udev), links=str(top / "links"))
        for path in ("bus/usb/devices", "bus/pci/devices", "class/net", "dev/char", "dev/block", "devices/system/node"):
            (self.sys / path).mkdir(parents=True)
        self.dev.mkdir()
        self.udev.mkdir()
        self.write(self.sys / "devices/system/node/online", numa)
        self._minor = 0

    def write(self, path: Path, text: str | bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text + b"\n" if isinstance(text, bytes) else f"{text}\n".encode())

    def link(self, path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def node(self, name: str, *, number: tuple[int, int] | None = None, block: bool = False) -> tuple[int, int]:
        """A device node in the fake /dev."""
        self._minor += 1
        major, minor = number or (250, self._minor)
        path = self.dev / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(path, (0o60660 if block else 0o20660), os.makedev(major, minor))
        return major, minor

    def child(self, parent: Path, subsystem: str, name: str, devname: str = "", **facts: str) -> Path:
        """A class device below `parent` (parent/subsystem/name) with its node."""
        directory = parent / subsystem / name
        directory.mkdir(parents=True)
        major, minor = self.node(devname or name)
        self.write(directory / "uevent", f"MAJOR={major}\nMINOR={minor}\nDEVNAME={devname or name}")
        self.write(directory / "dev", f"{major}:{minor}")
        (self.sys / "class" / subsystem).mkdir(parents=True, exist_ok=True)
        self.link(directory / "subsystem", self.sys / "class" / subsystem)
        self.link(self.sys / "dev/char" / f"{major}:{minor}", directory)
        for key, value in facts.items():
            self.write(directory / key, value)
        return directory

    def pci(
        self,
        address: str,
        vendor: str,
        device: str,
        pci_class: str,
        *,
        driver: str = "",
        numa: int = -1,
        bridge: str = "",
    ) -> Path:
        """A PCI function, below a bridge where one is named."""
        top = self.sys / "devices" / f"pci{address[:7]}"
        directory = (top / bridge / address) if bridge else (top / address)
        directory.mkdir(parents=True)
        self.write(directory / "vendor", f"0x{vendor}")
        self.write(directory / "device", f"0x{device}")
        self.write(directory / "class", f"0x{pci_class}")
        self.write(directory / "numa_node", str(numa))
        self.write(directory / "uevent", f"PCI_SLOT_NAME={address}")
        self.link(self.sys / "bus/pci/devices" / address, directory)
        if driver:
            self.bind(directory, driver)
        return directory

    def bind(self, directory: Path, driver: str) -> None:
        """Bind a driver."""
        place = self.sys / "bus/drivers" / driver
        place.mkdir(parents=True, exist_ok=True)
        (directory / "driver").unlink(missing_ok=True)
        self.link(directory / "driver", place)

    def iommu_group(self, directory: Path, group: int) -> None:
        place = self.sys / "kernel/iommu_groups" / str(group)
        place.mkdir(parents=True, exist_ok=True)
        self.link(directory / "iommu_group", place)

    def vfs(self, physical: Path, addresses: list[str], *, driver: str = "iavf") -> None:
        """Virtual functions of a network card, linked both ways."""
        for number, address in enumerate(addresses):
            directory = self.pci(address, "8086", "1889", "020000", driver=driver, numa=0)
            self.link(physical / f"virtfn{number}", directory)
            self.link(directory / "physfn", physical)

    def interface(self, name: str, device: Path | None = None, *, carrier: str = "1") -> Path:
        """A network interface, of a card or virtual."""
        directory = (device / "net" / name) if device else (self.sys / "devices/virtual/net" / name)
        directory.mkdir(parents=True)
        self.write(directory / "ifindex", "7")
        self.write(directory / "address", "02:00:00:00:00:07")
        self.write(directory / "carrier", carrier)
        if device:
            self.link(directory / "device", device)
        self.link(self.sys / "class/net" / name, directory)
        return directory

    def root_hub(self, controller: Path, bus: int, version: str = "2.00") -> Path:
        directory = controller / f"usb{bus}"
        directory.mkdir()
        self.write(directory / "version", f" {version}")
        self.link(self.sys / "bus/usb/devices" / f"usb{bus}", directory)
        return directory

    def usb(
        self, parent: Path, key: str, vendor: str, product: str, *, serial: str | bytes = "", number: int = 4
    ) -> Path:
        """A USB device in the port `key` ("1-1.4") of a hub, with its node in /dev/bus/usb."""
        directory = parent / key
        directory.mkdir()
        self.write(directory / "idVendor", vendor)
        self.write(directory / "idProduct", product)
        if serial:
            self.write(directory / "serial", serial)
        self.write(directory / "manufacturer", "Maker")
        self.write(directory / "product", "Thing")
        name = f"bus/usb/{int(key.partition('-')[0]):03}/{number:03}"
        major, minor = self.node(name, number=(189, (int(key.partition("-")[0]) - 1) * 128 + number - 1))
        self.write(directory / "uevent", f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\nDRIVER=usb")
        self.link(self.sys / "bus/usb/devices" / key, directory)
        self.bind(directory, "usb")
        return directory

    def usb_interface(self, device: Path, number: str = "00") -> Path:
        """An interface of a USB device."""
        directory = device / f"{device.name}:1.{int(number, 16)}"
        directory.mkdir()
        self.write(directory / "bInterfaceNumber", number)
        return directory
