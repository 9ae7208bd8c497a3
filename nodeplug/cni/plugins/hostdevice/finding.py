"""Which link of the host is meant: by name, MAC address, or the place of its hardware in /sys. Read-only.

/sys shows the links of the namespace it was mounted from, the host's; a device that is in a pod has no link there.
"""

from __future__ import annotations

import os

from nodeplug.cni.plugins.hostdevice.config import AUXILIARY, MAC, NAME, PATH, PCI
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import NotFound, doing
from nodeplug.core.record import Record
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.plugins.hostdevice.config import Wanted
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

_PCI = "/sys/bus/pci/devices"
_AUXILIARY = "/sys/bus/auxiliary/devices"
_LINKS = "/sys/class/net"
_USER_SPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")


class Hardware(Record):
    """What a link is of. `path` is the device's own in the kernel, empty for a virtual link; `pci` its PCI address."""

    path: str = ""
    pci: str = ""


def find(host: Netlink, wanted: Wanted) -> Link | None:
    """The host's link of that device; None when the host has none now."""
    with doing(f"cannot look for the device with {wanted}", hints=HINTS):
        if wanted.by == NAME:
            return links.find(host, wanted.value)
        if wanted.by == MAC:
            return _by_mac(host, bytes.fromhex(wanted.value.replace(":", "")))
        for name in names_at(directory(wanted)):
            link = links.find(host, name)
            if link is not None:
                return link
    return None


def directory(wanted: Wanted) -> str:
    """Where /sys has the device. Raises `NotFound` when it has not, or the path is none of a device's."""
    root = {PATH: "", PCI: _PCI, AUXILIARY: _AUXILIARY}[wanted.by]
    found = os.path.join(root, wanted.value)
    if not os.path.isdir(found):
        kinds = {PATH: "device", PCI: "PCI device", AUXILIARY: "PCI or auxiliary device"}
        raise NotFound(
            f"this host has no {kinds[wanted.by]} {wanted.value}", hint=f"`ls {root or '/sys/devices'}` lists them"
        )
    return found


def real(wanted: Wanted) -> str:
    """The device's own path in the kernel."""
    return os.path.realpath(directory(wanted))


def names_at(device: str) -> list[str]:
    """The links that a device has on the host, of itself or of the virtio device that it carries."""
    found = []
    for below in ("", *_virtio(device)):
        try:
            found += os.listdir(os.path.join(device, below, "net"))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return sorted(found)


def _virtio(device: str) -> list[str]:
    return sorted(name for name in os.listdir(device) if name.startswith("virtio"))


def hardware(link: Link) -> Hardware:
    """Of a link of the host."""
    path = f"{_LINKS}/{link.name}/device"
    if not os.path.exists(path):
        return Hardware()
    path = os.path.realpath(path)
    for part in (path, os.path.dirname(path)):  # a virtio device lies below the PCI device that carries it
        if os.path.exists(os.path.join(_PCI, os.path.basename(part))):
            return Hardware(path=path, pci=os.path.basename(part))
    return Hardware(path=path)


def user_space_driver(wanted: Wanted) -> str:
    """The driver of a PCI device that gives it to programs, and so has no link of it; else empty."""
    if wanted.by != PCI:
        return ""
    driver = os.path.basename(os.path.realpath(os.path.join(directory(wanted), "driver")))
    return driver if driver in _USER_SPACE_DRIVERS else ""


def _by_mac(host: Netlink, mac: bytes) -> Link | None:
    """A link with that address, or else the one that was made with it: a VLAN's link has its master's address."""
    there = links.dump(host)
    made_with = [link for link in there if link.permanent_mac == mac]
    return next(iter([*made_with, *[link for link in there if link.mac == mac]]), None)
