"""Links that sit on another one, their master: macvlan, ipvlan, vlan.

Each `add` takes the master's index in the namespace of the socket; with `netns` the link appears in another one, and
its name must then be free in both. Without `mtu` it has its master's.
"""

from __future__ import annotations

from nodeplug.kernel.attributes import attr_u16, attr_u32, attrs, number
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

MACVLAN = "macvlan"
IPVLAN = "ipvlan"
VLAN = "vlan"

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}

_MACVLAN_MODE = 1
_MACVLAN_BC_QUEUE_LEN = 7
_IPVLAN_MODE = 1
_VLAN_ID = 1


def add_macvlan(
    name: str,
    master: int,
    mode: str,
    *,
    mac: bytes | None = None,
    mtu: int | None = None,
    broadcast_queue: int | None = None,
    netns: Netns | None = None,
) -> Message:
    """`mode` is one of `MACVLAN_MODES`; `broadcast_queue` is how many frames to all may wait (kernel 5.11)."""
    data = attr_u32(_MACVLAN_MODE, MACVLAN_MODES[mode])
    if broadcast_queue is not None:
        data += attr_u32(_MACVLAN_BC_QUEUE_LEN, broadcast_queue)
    return links.add(name, MACVLAN, data=data, parent=master, mac=mac, mtu=mtu, netns=netns)


def add_ipvlan(name: str, master: int, mode: str, *, mtu: int | None = None, netns: Netns | None = None) -> Message:
    """`mode` is one of `IPVLAN_MODES`, and from then on that of all ipvlans of the master."""
    data = attr_u16(_IPVLAN_MODE, IPVLAN_MODES[mode])
    return links.add(name, IPVLAN, data=data, parent=master, mtu=mtu, netns=netns)


def add_vlan(name: str, master: int, vid: int, *, mtu: int | None = None, netns: Netns | None = None) -> Message:
    """A master has each VLAN once, in whichever namespace: EEXIST for the second."""
    return links.add(name, VLAN, data=attr_u16(_VLAN_ID, vid), parent=master, mtu=mtu, netns=netns)


def macvlan_mode(link: Link) -> str:
    """One of `MACVLAN_MODES`; empty for another mode or kind."""
    return _name(MACVLAN_MODES, link, MACVLAN, _MACVLAN_MODE)


def ipvlan_mode(link: Link) -> str:
    """One of `IPVLAN_MODES`; empty for another mode or kind."""
    return _name(IPVLAN_MODES, link, IPVLAN, _IPVLAN_MODE)


def broadcast_queue(link: Link) -> int:
    """How many frames to all may wait, as this macvlan asked; its master grants the most that any asked. 0 for none."""
    return number(attrs(link.data).get(_MACVLAN_BC_QUEUE_LEN)) if link.kind == MACVLAN else 0


def vlan_id(link: Link) -> int | None:
    """None when it is no VLAN."""
    return number(attrs(link.data).get(_VLAN_ID)) if link.kind == VLAN else None


def _name(modes: dict[str, int], link: Link, kind: str, attribute: int) -> str:
    if link.kind != kind:
        return ""
    value = number(attrs(link.data).get(attribute))
    return next((name for name, mode in modes.items() if mode == value), "")
