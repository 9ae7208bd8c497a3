"""host-device's configuration: every key of the reference plugin, and which device they come to."""

from __future__ import annotations

from nodeplug.cni.contract import NetConf
from nodeplug.cni.plugins.keys import link_name, mac
from nodeplug.core.document import Wrong, boolean, expects, nested, text
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place

NAME = "device"
MAC = "hwaddr"
PATH = "kernelpath"
PCI = "pciBusID"
AUXILIARY = "runtimeConfig.deviceID"

_DEVICES = "/sys/devices/"
_HEX = "0123456789abcdef"
_LONGEST = 255


@expects("the path of a device below /sys/devices")
def kernel_path(value: Any, at: Place) -> str:
    path = text(value, at)
    if path and (not path.startswith(_DEVICES) or ".." in path.split("/") or "\0" in path):
        raise Wrong(f"{path!r} is not the path of a device: it must lie below /sys/devices/")
    return path.rstrip("/")


@expects("the address of a PCI device (such as 0000:00:1f.6)")
def pci_address(value: Any, at: Place) -> str:
    given = text(value, at)
    if given and not is_pci_address(given):
        raise Wrong(f"{given!r} is not the address of a PCI device (such as 0000:00:1f.6)")
    return given.lower()


@expects("the address of a PCI device, or the name of an auxiliary one")
def device_id(value: Any, at: Place) -> str:
    """It becomes part of a path, so it must be one segment."""
    given = text(value, at)
    if given in (".", "..") or "/" in given or "\0" in given or len(given) > _LONGEST:
        raise Wrong(f"{given!r} is neither the address of a PCI device nor the name of an auxiliary one")
    return given


@expects(link_name.expects)
def device_name(value: Any, at: Place) -> str:
    return link_name(value, at) if value != "" else ""


def is_pci_address(given: str) -> bool:
    """Domain, bus, device and function: domains of more than four digits are those of virtual root complexes."""
    domain, _, rest = given.lower().partition(":")
    bus, _, rest = rest.partition(":")
    slot, _, function = rest.partition(".")
    parts = (domain, bus, slot, function)
    sizes = tuple([len(part) for part in parts])
    hexadecimal = all(part and all(c in _HEX for c in part) for part in parts)
    return hexadecimal and 4 <= sizes[0] <= 8 and sizes[1:] == (2, 2, 1) and int(slot, 16) < 32 and function < "8"


class RuntimeConfig(Record):
    """`runtimeConfig`."""

    device_id: str = key(
        device_id,
        default="",
        name="deviceID",
        help="the device that a device plugin gave the pod (capability `deviceID`); goes before all other keys",
    )


class HostDeviceConf(NetConf):
    device: str = key(device_name, default="", help="the device, by its name on the host")
    hwaddr: bytes | None = key(mac, default=None, help="the device, by its MAC address")
    kernelpath: str = key(
        kernel_path, default="", help="the device, by its path in the kernel: /sys/devices/pci0000:00/0000:00:1f.6"
    )
    pci_bus_id: str = key(pci_address, default="", name="pciBusID", help="the device, by its PCI address")
    dpdk_mode: bool = key(
        boolean,
        default=False,
        name="dpdkMode",
        help="the device is a user-space driver's, so no link is moved; found by itself for a PCI device that is",
    )
    runtime_config: RuntimeConfig = key(nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig")


class Wanted(Record):
    """A device by one of its names: `by` is the key that has `value`."""

    by: str
    value: str

    def __str__(self) -> str:
        return f"{self.by} {self.value}"


def wanted(config: HostDeviceConf) -> Wanted:
    """The device that the configuration names. Raises `ConfigInvalid` for none, and for two."""
    given = config.runtime_config.device_id
    if given:
        # Whether it is an auxiliary device's is seen on the node.
        return Wanted(by=PCI if is_pci_address(given) else AUXILIARY, value=given.lower() if ":" in given else given)
    named = [
        Wanted(by=by, value=value)
        for by, value in (
            (NAME, config.device),
            (MAC, config.hwaddr.hex(":") if config.hwaddr else ""),
            (PATH, config.kernelpath),
            (PCI, config.pci_bus_id),
        )
        if value
    ]
    if len(named) != 1:
        both = f" and not {' and '.join(found.by for found in named)}" if named else ""
        raise ConfigInvalid(
            "the network configuration is not valid",
            problems=[("$", f'specify one of "device", "hwaddr", "kernelpath" and "pciBusID"{both}')],
            hint="or let the runtime name it by the capability deviceID",
        )
    return named[0]
