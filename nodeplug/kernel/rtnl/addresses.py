"""Addresses of links, both families."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC, inet_ntop

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_text, attr_u32, attrs, number, text
from nodeplug.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink

SCOPE_UNIVERSE = 0
SCOPE_SITE = 200
SCOPE_LINK = 253
SCOPE_HOST = 254

SECONDARY = 0x01
NODAD = 0x02
OPTIMISTIC = 0x04
DADFAILED = 0x08
DEPRECATED = 0x20
TENTATIVE = 0x40
PERMANENT = 0x80
NOPREFIXROUTE = 0x200

RTM_NEWADDR = 20
RTM_DELADDR = 21
_RTM_GETADDR = 22
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_LABEL = 3
_IFA_BROADCAST = 4
_IFA_FLAGS = 8
_IFA_RT_PRIORITY = 9

_IFADDR = struct.Struct("=BBBBI")


class Address(Record):
    """One address of one link: what `add` and `delete` take and `dump` gives."""

    index: int
    """The link's."""
    ip: bytes
    """Packed, 4 or 16 bytes."""
    prefix: int
    """Length in bits."""
    flags: int = 0
    """NODAD and NOPREFIXROUTE are for `add`; the others are told by the kernel."""
    scope: int = SCOPE_UNIVERSE
    """A SCOPE_* value; for IPv6 the kernel tells it from the address."""
    peer: bytes | None = None
    """The far end's address, where the prefix belongs to that (point to point)."""
    broadcast: bytes | None = None
    """IPv4 only; the kernel makes none up."""
    label: str = ""
    """IPv4 only; the kernel's default is the link's name."""
    priority: int | None = None
    """Metric of the prefix route that the kernel adds; None for its default."""

    def __str__(self) -> str:
        return f"{inet_ntop(_family(self.ip), self.ip)}/{self.prefix} on link {self.index}"

    @property
    def settled(self) -> bool:
        """IPv6: duplicate address detection is over, for good or bad (`flags & DADFAILED`)."""
        return not self.flags & TENTATIVE or bool(self.flags & (DADFAILED | OPTIMISTIC))


def parse(payload: bytes) -> Address:
    """The address in the payload of an RTM_NEWADDR or RTM_DELADDR message. Raises ValueError when it holds none."""
    if len(payload) < _IFADDR.size:
        raise ValueError(f"an address message of {len(payload)} bytes")
    _family, prefix, flags, scope, index = _IFADDR.unpack_from(payload)
    found = attrs(payload, _IFADDR.size)
    # IFA_LOCAL is this end where both are there; IPv6 sends it only with a peer.
    address = found.get(_IFA_ADDRESS, b"")
    ip = found.get(_IFA_LOCAL, address)
    return Address(
        index=index,
        ip=ip,
        prefix=prefix,
        flags=number(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags,
        scope=scope,
        peer=None if address == ip else address,
        broadcast=found.get(_IFA_BROADCAST),
        label=text(found.get(_IFA_LABEL)),
        priority=number(found[_IFA_RT_PRIORITY]) if _IFA_RT_PRIORITY in found else None,
    )


def add(address: Address, *, replace: bool = False) -> Message:
    """Give the link an address; EEXIST when it has it, unless `replace`, which changes that one's flags and metric."""
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Message(RTM_NEWADDR, flags, _payload(address, adding=True), "address add", address)


def delete(address: Address) -> Message:
    """Take an address from the link; EADDRNOTAVAIL when it has no such one. Its prefix length counts."""
    return Message(RTM_DELADDR, 0, _payload(address, adding=False), "address delete", address)


def dump(route: Netlink, *, index: int = 0, family: int = AF_UNSPEC) -> list[Address]:
    """The addresses of the link of that index (the kernel looks at no other), or of all; ENODEV when it is gone."""
    message = Message(
        _RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, index), "address dump", f"link {index}" if index else ""
    )
    return [parse(payload) for payload in route.dump(message)]


def _payload(address: Address, *, adding: bool) -> bytes:
    ip, flags = address.ip, address.flags
    parts = [
        _IFADDR.pack(_family(ip), address.prefix, flags & 0xFF, address.scope, address.index),
        attr(_IFA_LOCAL, ip),
        attr(_IFA_ADDRESS, ip if address.peer is None else address.peer),
    ]
    if adding:
        if address.broadcast is not None:
            parts.append(attr(_IFA_BROADCAST, address.broadcast))
        if flags > 0xFF:
            parts.append(attr_u32(_IFA_FLAGS, flags))
        if address.priority is not None:
            parts.append(attr_u32(_IFA_RT_PRIORITY, address.priority))
    if address.label:
        parts.append(attr_text(_IFA_LABEL, address.label))
    return b"".join(parts)


def _family(ip: bytes) -> int:
    if len(ip) == 4:
        return AF_INET
    if len(ip) == 16:
        return AF_INET6
    raise ValueError(f"an IP address has 4 or 16 bytes, not {len(ip)}")
