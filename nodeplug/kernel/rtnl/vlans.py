"""VLANs of bridge ports, and of a bridge itself. Needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING, 5.6 or later."""

from __future__ import annotations

import struct

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_list, attr_u16, attrs, nest, number
from nodeplug.kernel.netlink import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink

LOWEST = 1
HIGHEST = 4094

_AF_BRIDGE = 7
_RTM_DELLINK = 17
_RTM_SETLINK = 19
_RTM_GETVLAN = 114
_IFLA_AF_SPEC = 26
_BRIDGE_FLAGS = 0
_BRIDGE_FLAGS_SELF = 2
_BRIDGE_VLAN_INFO = 2
_PVID = 0x02
_UNTAGGED = 0x04
_RANGE_BEGIN = 0x08
_RANGE_END = 0x10
_VLANDB_ENTRY = 1
_ENTRY_INFO = 1
_ENTRY_RANGE = 2

_IFINFO = struct.Struct("=BxHiII")
_INFO = struct.Struct("=HH")
_VLANMSG = struct.Struct("=BxxxI")


class Vlans(Record):
    """A VLAN or a run of them with equal settings, and what a port does with its frames."""

    first: int
    last: int
    """Equal to `first` for one."""
    pvid: bool = False
    """Untagged frames that come in belong to it; only for a single VLAN."""
    untagged: bool = False
    """Its frames leave untagged."""


def add(index: int, vlans: Vlans, *, to_bridge: bool = False) -> Message:
    """Let a port carry them; with `to_bridge`, `index` is a bridge, which then takes part itself (a gateway address).

    EOPNOTSUPP where the kernel has no VLAN filtering or the link is no port.
    """
    return _message(_RTM_SETLINK, "bridge vlan add", index, vlans, to_bridge)


def delete(index: int, vlans: Vlans, *, to_bridge: bool = False) -> Message:
    """Take them from a port (or, with `to_bridge`, from the bridge itself). Those it has not are passed over."""
    return _message(_RTM_DELLINK, "bridge vlan delete", index, vlans, to_bridge)


def dump(route: Netlink, index: int) -> list[Vlans]:
    """What the port (or bridge) of that index carries, in runs, ascending.

    EINVAL when it is neither, EOPNOTSUPP where the kernel has no VLAN filtering.
    """
    message = Message(_RTM_GETVLAN, 0, _VLANMSG.pack(_AF_BRIDGE, index), "bridge vlan dump", f"link {index}")
    return [vlans for payload in route.dump(message) for vlans in parse(payload)]


def parse(payload: bytes) -> list[Vlans]:
    """The VLANs in the payload of an RTM_NEWVLAN message. Raises ValueError when it is none."""
    if len(payload) < _VLANMSG.size:
        raise ValueError(f"a VLAN message of {len(payload)} bytes")
    found = []
    for type, entry in attr_list(payload, _VLANMSG.size):
        parts = attrs(entry)
        if type != _VLANDB_ENTRY or len(parts.get(_ENTRY_INFO, b"")) < _INFO.size:
            continue
        flags, first = _INFO.unpack_from(parts[_ENTRY_INFO])
        last = number(parts.get(_ENTRY_RANGE)) or first
        found.append(Vlans(first=first, last=last, pvid=bool(flags & _PVID), untagged=bool(flags & _UNTAGGED)))
    return found


def _message(type: int, call: str, index: int, vlans: Vlans, to_bridge: bool) -> Message:
    first, last = vlans.first, vlans.last
    if not LOWEST <= first <= last <= HIGHEST:
        raise ValueError(f"VLANs {first} to {last}: they go from {LOWEST} to {HIGHEST}")
    flags = (_PVID if vlans.pvid else 0) | (_UNTAGGED if vlans.untagged else 0)
    parts = [attr_u16(_BRIDGE_FLAGS, _BRIDGE_FLAGS_SELF)] if to_bridge else []
    if first == last:
        parts.append(attr(_BRIDGE_VLAN_INFO, _INFO.pack(flags, first)))
    else:
        parts.append(attr(_BRIDGE_VLAN_INFO, _INFO.pack(flags | _RANGE_BEGIN, first)))
        parts.append(attr(_BRIDGE_VLAN_INFO, _INFO.pack(flags | _RANGE_END, last)))
    payload = _IFINFO.pack(_AF_BRIDGE, 0, index, 0, 0) + nest(_IFLA_AF_SPEC, *parts)
    subject = f"{first} on link {index}" if first == last else f"{first}-{last} on link {index}"
    return Message(type, 0, payload, call, subject)
