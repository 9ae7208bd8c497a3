"""Bridges and their ports. The VLANs of a port are in `vlans`."""

from __future__ import annotations

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr_u8, attr_u16, attrs, number
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

KIND = "bridge"

STATE_DISABLED = 0
STATE_LISTENING = 1
STATE_LEARNING = 2
STATE_FORWARDING = 3
STATE_BLOCKING = 4

_BR_STP_STATE = 5
_BR_VLAN_FILTERING = 7
_BR_MCAST_SNOOPING = 23
_BR_VLAN_DEFAULT_PVID = 39
_BRPORT_STATE = 1
_BRPORT_MODE = 4
_BRPORT_GUARD = 5
_BRPORT_LEARNING = 8
_BRPORT_UNICAST_FLOOD = 9
_BRPORT_MCAST_FLOOD = 27
_BRPORT_BCAST_FLOOD = 30
_BRPORT_NEIGH_SUPPRESS = 32
_BRPORT_ISOLATED = 33


class Bridge(Record):
    """What only a bridge has."""

    vlan_filtering: bool
    vlan_default_pvid: int
    """The VLAN a new port gets as its untagged one; 0 for none. Also 0 where the kernel has no VLAN filtering."""
    stp: bool
    multicast_snooping: bool


class Port(Record):
    """What a bridge knows of one of its ports."""

    state: int
    """A STATE_* value."""
    hairpin: bool
    """Frames may leave by the port they came in by."""
    isolated: bool
    """No frames to or from other isolated ports."""
    learning: bool
    guard: bool
    flood_unicast: bool
    flood_multicast: bool
    flood_broadcast: bool
    neighbour_suppression: bool


def add(
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    vlan_filtering: bool | None = None,
    vlan_default_pvid: int | None = None,
    multicast_snooping: bool | None = None,
    txqlen: int | None = None,
) -> Message:
    """Add a bridge; EEXIST when the name is taken.

    With `mac` its address stays; without, it becomes the lowest of its ports' and changes as they come and go.
    EOPNOTSUPP for the VLAN settings where the kernel was built without CONFIG_BRIDGE_VLAN_FILTERING.
    """
    data = _settings(vlan_filtering, vlan_default_pvid, multicast_snooping)
    return links.add(name, KIND, data=data, up=up, mtu=mtu, mac=mac, txqlen=txqlen)


def set(
    which: int | str,
    *,
    vlan_filtering: bool | None = None,
    vlan_default_pvid: int | None = None,
    multicast_snooping: bool | None = None,
) -> Message:
    """Change a bridge's own settings; what is None stays."""
    return links.change(which, KIND, _settings(vlan_filtering, vlan_default_pvid, multicast_snooping))


def set_port(
    which: int | str,
    *,
    hairpin: bool | None = None,
    isolated: bool | None = None,
    learning: bool | None = None,
    guard: bool | None = None,
    flood_unicast: bool | None = None,
    flood_multicast: bool | None = None,
    flood_broadcast: bool | None = None,
    neighbour_suppression: bool | None = None,
) -> Message:
    """Change a port; what is None stays. The link must have its master before: an earlier message of the request does.

    EOPNOTSUPP when it is no bridge's port.
    """
    wanted = (
        (_BRPORT_MODE, hairpin),
        (_BRPORT_ISOLATED, isolated),
        (_BRPORT_LEARNING, learning),
        (_BRPORT_GUARD, guard),
        (_BRPORT_UNICAST_FLOOD, flood_unicast),
        (_BRPORT_MCAST_FLOOD, flood_multicast),
        (_BRPORT_BCAST_FLOOD, flood_broadcast),
        (_BRPORT_NEIGH_SUPPRESS, neighbour_suppression),
    )
    data = b"".join([attr_u8(type, value) for type, value in wanted if value is not None])
    return links.change(which, KIND, data, port=True)


def bridge_of(link: Link) -> Bridge | None:
    """The bridge settings of a link; None when it is not a bridge."""
    if link.kind != KIND:
        return None
    found = attrs(link.data)
    return Bridge(
        vlan_filtering=bool(number(found.get(_BR_VLAN_FILTERING))),
        vlan_default_pvid=number(found.get(_BR_VLAN_DEFAULT_PVID)),
        stp=bool(number(found.get(_BR_STP_STATE))),
        multicast_snooping=bool(number(found.get(_BR_MCAST_SNOOPING))),
    )


def port_of(link: Link) -> Port | None:
    """The port settings of a link; None when it is no bridge's port."""
    if link.port_kind != KIND:
        return None
    found = attrs(link.port_data)
    return Port(
        state=number(found.get(_BRPORT_STATE)),
        hairpin=bool(number(found.get(_BRPORT_MODE))),
        isolated=bool(number(found.get(_BRPORT_ISOLATED))),
        learning=bool(number(found.get(_BRPORT_LEARNING))),
        guard=bool(number(found.get(_BRPORT_GUARD))),
        flood_unicast=bool(number(found.get(_BRPORT_UNICAST_FLOOD))),
        flood_multicast=bool(number(found.get(_BRPORT_MCAST_FLOOD))),
        flood_broadcast=bool(number(found.get(_BRPORT_BCAST_FLOOD))),
        neighbour_suppression=bool(number(found.get(_BRPORT_NEIGH_SUPPRESS))),
    )


def _settings(vlan_filtering: bool | None, vlan_default_pvid: int | None, multicast_snooping: bool | None) -> bytes:
    parts = []
    if vlan_filtering is not None:
        parts.append(attr_u8(_BR_VLAN_FILTERING, vlan_filtering))
    if vlan_default_pvid is not None:
        parts.append(attr_u16(_BR_VLAN_DEFAULT_PVID, vlan_default_pvid))
    if multicast_snooping is not None:
        parts.append(attr_u8(_BR_MCAST_SNOOPING, multicast_snooping))
    return b"".join(parts)
