"""VRFs: links whose members are routed by a table of their own. See the kernel's networking/vrf documentation."""

from __future__ import annotations

from nodeplug.kernel.attributes import attr_u32, attrs, number
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

KIND = "vrf"

_TABLE = 1


def add(name: str, table: int) -> Message:
    """Add a VRF, up; EEXIST when the name is taken. Several may share a table. EOPNOTSUPP where the kernel has none."""
    return links.add(name, KIND, data=attr_u32(_TABLE, table), up=True)


def table_of(link: Link) -> int | None:
    """Its table; None when it is no VRF."""
    return number(attrs(link.data).get(_TABLE)) if link.kind == KIND else None
