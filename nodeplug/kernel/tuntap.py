"""Tap links: Ethernet whose other end is a program, such as a virtual machine. See the kernel's networking/tuntap.

Netlink tells of them and deletes them, and cannot make them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from nodeplug.core.record import Record
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.attributes import attrs, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

KIND = "tun"
"""As netlink calls them, and links without Ethernet likewise."""
DEVICE = "/dev/net/tun"

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_MULTI_QUEUE = 0x0100
IFF_TUN_EXCL = 0x8000

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE

_OWNER = 1
_GROUP = 2
_TYPE = 3
_PERSIST = 6
_MULTI_QUEUE = 7

_IFREQ = struct.Struct("=16sH22x")


class Tap(Record):
    """What only a tap has."""

    owner: int | None
    """The user who may attach to it; None for whoever has CAP_NET_ADMIN."""
    group: int | None
    """Likewise the group."""
    multi_queue: bool
    persistent: bool
    """It outlives the program that is attached."""


def open_device(netns: Netns) -> int:
    """A descriptor that makes links of `netns`, for `add`. FileNotFoundError or ENODEV where there is no driver."""

    def make() -> int:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)

    return namespaces.inside(netns, make)


def add(
    device: int, name: str, *, multi_queue: bool = False, owner: int | None = None, group: int | None = None
) -> None:
    """Make the tap `name`, persistent, by a descriptor of `open_device`. OSError(EBUSY) when the name is taken.

    Until it is persistent, which comes last, it ends with the descriptor: kill -9 leaves all of it or nothing.
    """
    _ioctl(device, *creation(name, multi_queue=multi_queue), "tap add", name)
    keep(device, name, owner=owner, group=group)


def creation(name: str, *, multi_queue: bool = False) -> tuple[int, bytes]:
    """The ioctl that makes the tap, for somebody else who has the descriptor: its number and its argument."""
    flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL | (IFF_MULTI_QUEUE if multi_queue else 0)
    return TUNSETIFF, _IFREQ.pack(name.encode(), flags)


def keep(device: int, name: str, *, owner: int | None = None, group: int | None = None) -> None:
    """Make the descriptor's tap persistent, for the use of that user and that group."""
    for what, request, value in (
        ("owner", TUNSETOWNER, owner),
        ("group", TUNSETGROUP, group),
        ("persist", TUNSETPERSIST, 1),
    ):
        if value is not None:
            _ioctl(device, request, _signed(value), f"tap {what}", name)


def tap_of(link: Link) -> Tap | None:
    """What is particular to a tap; None when the link is none."""
    found = attrs(link.data)
    if link.kind != KIND or number(found.get(_TYPE)) != IFF_TAP:
        return None
    return Tap(
        owner=number(found[_OWNER]) if _OWNER in found else None,
        group=number(found[_GROUP]) if _GROUP in found else None,
        multi_queue=bool(number(found.get(_MULTI_QUEUE))),
        persistent=bool(number(found.get(_PERSIST))),
    )


def _ioctl(device: int, request: int, argument: int | bytes, call: str, name: str) -> None:
    try:
        fcntl.ioctl(device, request, argument)
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"{call}: {os.strerror(number)}", name) from None


def _signed(value: int) -> int:
    """An unsigned 32-bit number as fcntl takes it."""
    return value - (1 << 32) if value >= 1 << 31 else value
