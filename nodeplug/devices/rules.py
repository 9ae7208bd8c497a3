"""What an operator writes to say which devices are meant, and the source each rule becomes.

Used by every door's settings (`match = [...]`) and by discovery.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any

from nodeplug.core import document
from nodeplug.core.document import Place, Wrong, expects
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key
from nodeplug.devices.contract import Inventory, Source
from nodeplug.devices.host import Host, number_list
from nodeplug.devices.sources.finders import literal_directory
from nodeplug.devices.sources.netdev import NetMatch, NetSource
from nodeplug.devices.sources.path import Member, PathSource
from nodeplug.devices.sources.pci import PciMatch, PciSource
from nodeplug.devices.sources.polled import CommandInventory, PolledSource
from nodeplug.devices.sources.udev import UdevMatch, UdevSource
from nodeplug.devices.sources.usb import UsbMatch, UsbSource
from nodeplug.devices.topology import Topology

_HEX4 = re.compile(r"[0-9a-fA-F]{4}\Z")
_CLASS = re.compile(r"[0-9a-f]{2}([0-9a-f]{2}){0,2}\Z")
_TYPE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,32}\Z")


@expects("four hexadecimal digits")
def hex4(value: Any, at: Place) -> str:
    """A vendor or product number; 0x before it is forgiven."""
    found = document.text(value, at).removeprefix("0x")
    if not _HEX4.match(found):
        raise Wrong('expected four hexadecimal digits, such as "0403"')
    return found.lower()


@expects("two, four or six hexadecimal digits")
def pci_class(value: Any, at: Place) -> str:
    found = document.text(value, at).removeprefix("0x").lower()
    if not _CLASS.match(found):
        raise Wrong('expected the first two, four or six digits of a PCI class, such as "0302"')
    return found


@expects("an absolute glob (`*`, `?`, `[...]`)")
def glob(value: Any, at: Place) -> str:
    found = document.absolute_path(value, at)
    if "**" in found:
        raise Wrong("** is not known; use regex for a whole tree")
    if "//" in found or found.endswith("/") or any(part in (".", "..") for part in found.split("/")):
        raise Wrong("expected a path without empty parts, . and ..")
    return found


@expects("a regular expression over whole paths, beginning with a directory")
def path_regex(value: Any, at: Place) -> str:
    found = document.text(value, at)
    try:
        re.compile(found)
    except re.error as error:
        raise Wrong(f"not a regular expression: {error}") from None
    if not literal_directory(found):
        raise Wrong("must begin with a directory in plain characters, such as /dev/, so that not all of / is walked")
    return found


@expects("a list of numbers (`0-7,9`)")
def numbers(value: Any, at: Place) -> str:
    found = document.text(value, at)
    if not number_list(found):
        raise Wrong('expected numbers such as "0-7,9"')
    return found


@expects("a word")
def word(value: Any, at: Place) -> str:
    found = document.text(value, at)
    if not _WORD.match(found):
        raise Wrong("expected a word of letters, digits, - and _")
    return found


@expects("`package.module:Class`")
def class_name(value: Any, at: Place) -> str:
    found = document.text(value, at)
    if not _TYPE.match(found):
        raise Wrong('expected "package.module:Class"')
    return found


class UsbRule(Record):
    """A USB device."""

    vendor: str = key(hex4, default="", help="idVendor")
    product: str = key(hex4, default="", help="idProduct")
    serial: str = key(document.name, default="", help="glob on the serial number")
    port: str = key(
        document.name,
        default="",
        help="glob on the port: `1-1.4`, or `0000:00:14.0-usbv2-1.4`, which is the same after a boot",
    )
    interface: str = key(document.name, default="", help="bInterfaceNumber of the nodes wanted (`00`)")
    subsystem: str = key(
        word,
        default="",
        help="the kind of nodes to give (`tty`, `video4linux`, `hidraw`, `input`, `block`), not its own",
    )
    each: str = key(document.choice("device", "node"), default="device", help="what counts as one device")
    id: str = key(
        document.choice("auto", "serial", "port"),
        default="auto",
        help="what names it; `auto`: the serial number, else the port",
    )


class PciRule(Record):
    """A PCI function."""

    vendor: str = key(hex4, default="", help="vendor number")
    device: str = key(hex4, default="", help="device number")
    pci_class: str = key(pci_class, default="", help="class, or how it begins", name="class")
    driver: str = key(word, default="", help="driver bound; with `vfio-pci` the container gets the VFIO group")
    address: str = key(document.name, default="", help="glob on the address (`0000:03:*`)")
    subsystem: str = key(word, default="", help="give the nodes of this kind (`drm`, `nvme`, `misc`)")
    node: str = key(document.name, default="", help="glob on the names of those nodes (`renderD*`)")


class NetRule(Record):
    """A network device, for the CNI plugins that take a `deviceID`."""

    name: str = key(document.name, default="", help="glob on the interface's name")
    kind: str = key(
        document.choice("any", "vf", "pf", "virtual"),
        default="any",
        help="virtual function, physical function, or no card behind it",
    )
    pf: str = key(document.name, default="", help="glob on the interface of the physical function")
    vfs: str = key(numbers, default="", help="which of its virtual functions (`0-7,9`)")
    driver: str = key(word, default="", help="driver bound")
    vendor: str = key(hex4, default="", help="vendor number")
    device: str = key(hex4, default="", help="device number")
    address: str = key(document.name, default="", help="glob on the PCI address")
    link: str = key(document.choice("any", "up"), default="any", help="`up`: healthy only with a carrier")


class UdevRule(Record):
    """A device by udev's properties."""

    properties: dict[str, str] = key(document.table(document.text), help="property names and globs on their values")
    id: str = key(document.name, default="", help="the property that names the device; else ID_SERIAL, else ID_PATH")


class MemberRule(Record):
    """A further node of a group."""

    path: str = key(document.name, help="glob; {1} is what the first wildcard of the leader took, {2} the second")
    optional: bool = key(document.boolean, default=False, help="whether the device counts without it")
    container: str = key(document.absolute_path, default="", help="path inside; {name} is the node's name")


class GroupRule(Record):
    """Several nodes as one device."""

    path: str = key(glob, help="glob on the leader: one device for each match")
    members: tuple[MemberRule, ...] = key(document.array(document.nested(MemberRule), most=64), help="what comes along")


class ExecRule(Record):
    """A command that prints devices as JSON."""

    command: tuple[str, ...] = key(
        document.array(document.name, most=64), help="argv, the program by its absolute path"
    )
    interval: float = key(document.duration, default=30.0, help="how often it is run")
    timeout: float = key(document.duration, default=10.0, help="when it is ended")
    limit: int = key(document.size, default=1 << 20, help="how much it may print")


class TypeRule(Record):
    """A class of Python."""

    name: str = key(class_name, help="`package.module:Class`", name="class")
    options: dict[str, Any] = key(document.table(document.anything), default=None, help="passed to it as keywords")


class Rule(Record):
    """One way to find devices. Exactly one key."""

    path: str = key(glob, default="", help="glob on the path of the node or of a link to it")
    regex: str = key(path_regex, default="", help="regular expression on the same")
    usb: UsbRule | None = key(document.nested(UsbRule), default=None, help="USB device")
    pci: PciRule | None = key(document.nested(PciRule), default=None, help="PCI function")
    netdev: NetRule | None = key(document.nested(NetRule), default=None, help="network device")
    udev: UdevRule | None = key(document.nested(UdevRule), default=None, help="device by udev's properties")
    group: GroupRule | None = key(document.nested(GroupRule), default=None, help="several nodes as one device")
    exec: ExecRule | None = key(document.nested(ExecRule), default=None, help="a command that prints devices")
    type: TypeRule | None = key(document.nested(TypeRule), default=None, help="a class of Python that lists devices")

    @property
    def shown(self) -> str:
        """The rule in a few words, for people."""
        kind, what = next((name, value) for name, value in self.__dict__.items() if value)
        if isinstance(what, str):
            return f"{kind} {what}"
        parts = [f"{name}={value}" for name, value in what.__dict__.items() if value and name != "members"]
        return f"{kind} {' '.join(parts)}"


@expects("a rule", Rule)
def rule(value: Any, at: Place) -> Rule:
    """One `Rule` with exactly one key, whose parts fit together."""
    found: Rule | None = document.nested(Rule)(value, at)
    if found is None:
        return None  # type: ignore[return-value]  # its problems are noted: decode raises before anybody sees it
    given = [name for name, part in found.__dict__.items() if part]
    if len(given) != 1:
        raise Wrong(f"expected exactly one of {', '.join(Rule._keys)}, got {', '.join(given) or 'none'}")
    problem = _misfit(found)
    if problem:
        raise Wrong(problem)
    return found


def _misfit(found: Rule) -> str:
    if found.usb is not None and found.usb.interface and not found.usb.subsystem:
        return "interface selects among the nodes of a subsystem; name one"
    if found.usb is not None and found.usb.each == "node" and not found.usb.subsystem:
        return 'each = "node" needs a subsystem'
    if found.pci is not None and found.pci.node and not found.pci.subsystem:
        return "node selects among the nodes of a subsystem; name one"
    if found.udev is not None and not found.udev.properties:
        return "udev needs at least one property"
    if found.exec is not None:
        if not found.exec.command or not found.exec.command[0].startswith("/"):
            return "the command must begin with the absolute path of a program"
        if found.exec.timeout > 60 or found.exec.timeout <= 0 or found.exec.interval < 0.1:
            return "timeout must be within 60 s and interval at least 100 ms"
        if found.exec.limit > 64 << 20:
            return "limit must be within 64Mi"
    return ""


def build(
    rule: Rule, host: Host, topology: Topology, *, wake: Callable[[], None], note: Callable[[str], None]
) -> Source:
    """The source for a rule. Raises `ConfigInvalid` when a class cannot be had."""
    if rule.path:
        return PathSource(topology, glob=rule.path)
    if rule.regex:
        return PathSource(topology, regex=rule.regex)
    if rule.group is not None:
        members = tuple(Member(m.path, optional=m.optional, container=m.container) for m in rule.group.members)
        return PathSource(topology, glob=rule.group.path, members=members)
    if rule.usb is not None:
        return UsbSource(host, topology, UsbMatch(**rule.usb.__dict__))
    if rule.pci is not None:
        return PciSource(host, topology, PciMatch(**rule.pci.__dict__))
    if rule.netdev is not None:
        return NetSource(host, topology, NetMatch(**rule.netdev.__dict__))
    if rule.udev is not None:
        return UdevSource(host, topology, UdevMatch(**rule.udev.__dict__))
    if rule.exec is not None:
        e = rule.exec
        command = CommandInventory(e.command, interval=e.interval, timeout=e.timeout, limit=e.limit)
        return PolledSource(command, f"exec {e.command[0]}", wake=wake, note=note)
    assert rule.type is not None
    return PolledSource(load_inventory(rule.type), f"class {rule.type.name}", wake=wake, note=note)


def load_inventory(rule: TypeRule) -> Inventory:
    """The object of an author's class. Raises `ConfigInvalid` with what went wrong."""
    module, _, name = rule.name.partition(":")
    try:
        made: Inventory = getattr(importlib.import_module(module), name)(**(rule.options or {}))
    except Exception as error:  # importing somebody's module may raise anything
        raise ConfigInvalid(
            f"cannot make {rule.name}: {type(error).__name__}: {error}", hint="it must be importable from PYTHONPATH"
        ) from None
    if not callable(getattr(made, "devices", None)) or not isinstance(getattr(made, "interval", None), (int, float)):
        raise ConfigInvalid(f"{rule.name} has no `devices` method or no `interval`; subclass Source")
    return made
