"""Links of every kind: messages to add, set and delete them, and what the kernel says of them.

Used by plugins and by the modules for single kinds, which add the attributes only they know.
"""

from __future__ import annotations

import errno
import struct
from sys import byteorder

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_list, attr_text, attr_u32, attrs, nest, number, text
from nodeplug.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.netns import Netns

IFF_UP = 0x1
IFF_BROADCAST = 0x2
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40
IFF_PROMISC = 0x100
IFF_ALLMULTI = 0x200
IFF_MULTICAST = 0x1000
IFF_LOWER_UP = 0x10000

OPER_UNKNOWN = 0
OPER_NOTPRESENT = 1
OPER_DOWN = 2
OPER_LOWERLAYERDOWN = 3
OPER_TESTING = 4
OPER_DORMANT = 5
OPER_UP = 6

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_TXQLEN = 13
_IFLA_OPERSTATE = 16
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_AF_SPEC = 26
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_IFLA_PROMISCUITY = 30
_IFLA_LINK_NETNSID = 37
_IFLA_PROP_LIST = 52
_IFLA_ALT_IFNAME = 53
_IFLA_PERM_ADDRESS = 54
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_SLAVE_KIND = 4
_INFO_SLAVE_DATA = 5
_AF_INET = 2
_IFLA_INET_CONF = 1
_ARP_NOTIFY = 22
_SKIP_STATISTICS = attr_u32(_IFLA_EXT_MASK, 8)
_NAME_BYTES = 15

_IFINFO = struct.Struct("=BxHiII")
_ATTR = struct.Struct("=HH")


class Link(Record):
    """A link as the kernel describes it."""

    index: int
    name: str
    flags: int
    """IFF_* bits."""
    kind: str = ""
    """"veth", "bridge" ...; empty for hardware and lo."""
    mtu: int = 0
    mac: bytes = b""
    permanent_mac: bytes = b""
    """What the hardware was made with; empty for most virtual links."""
    operstate: int = OPER_UNKNOWN
    """An OPER_* value."""
    master: int = 0
    """Index of the bridge, VRF or bond it belongs to; 0 for none."""
    parent: int = 0
    """Index of the veth's other end, or of the link a VLAN or macvlan sits on; 0 for none."""
    parent_netnsid: int | None = None
    """In which namespace `parent` counts: None for this one, else its id as seen from here (-1: not visible)."""
    group: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    txqlen: int = 0
    promiscuity: int = 0
    """How many users hold it in promiscuous mode; `flags` tells only the first."""
    data: bytes = b""
    """The kind's own attributes, for the module of that kind."""
    port_kind: str = ""
    """The kind of the master."""
    port_data: bytes = b""
    """The master kind's attributes of this port."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


def parse(payload: bytes, *only: str) -> Link:
    """The link in the payload of an RTM_NEWLINK or RTM_DELLINK message. Raises ValueError when it holds none.

    With names of fields it is read no further than until it has those; others may be missing then, but for the index
    and the flags.
    """
    end = len(payload)
    if end < _IFINFO.size:
        raise ValueError(f"a link message of {end} bytes")
    _family, _type, index, flags, _change = _IFINFO.unpack_from(payload)
    values: dict[str, object] = {"name": ""}
    offset = _IFINFO.size
    missing = len(only)
    # Of some forty attributes a dozen matter: the others are passed over without being taken out.
    while offset + 4 <= end:
        length, type = _ATTR.unpack_from(payload, offset)
        if length < 4 or offset + length > end:
            break
        reader = _READERS.get(type & 0x3FFF)
        if reader is not None:
            values[reader[0]] = reader[1](payload[offset + 4 : offset + length])
            if missing and reader[0] in only:
                missing -= 1
                if not missing:
                    break
        offset += (length + 3) & -4
    values.update(values.pop("", ()))  # type: ignore[call-overload]  # what is nested in one
    return Link(index=index, flags=flags, **values)  # type: ignore[arg-type]  # as _READERS has them


def _info(value: bytes) -> dict[str, object]:
    found = attrs(value)
    return {
        "kind": text(found.get(_INFO_KIND)),
        "data": found.get(_INFO_DATA, b""),
        "port_kind": text(found.get(_INFO_SLAVE_KIND)),
        "port_data": found.get(_INFO_SLAVE_DATA, b""),
    }


def _altnames(value: bytes) -> tuple[str, ...]:
    return tuple([text(name) for type, name in attr_list(value) if type == _IFLA_ALT_IFNAME])


def _signed(value: bytes) -> int:
    return int.from_bytes(value, byteorder, signed=True)


_READERS: dict[int, tuple[str, Callable[[bytes], object]]] = {
    _IFLA_IFNAME: ("name", text),
    _IFLA_MTU: ("mtu", number),
    _IFLA_ADDRESS: ("mac", bytes),
    _IFLA_PERM_ADDRESS: ("permanent_mac", bytes),
    _IFLA_OPERSTATE: ("operstate", number),
    _IFLA_MASTER: ("master", number),
    _IFLA_LINK: ("parent", number),
    _IFLA_LINK_NETNSID: ("parent_netnsid", _signed),
    _IFLA_GROUP: ("group", number),
    _IFLA_IFALIAS: ("alias", text),
    _IFLA_PROP_LIST: ("altnames", _altnames),
    _IFLA_TXQLEN: ("txqlen", number),
    _IFLA_PROMISCUITY: ("promiscuity", number),
    _IFLA_LINKINFO: ("", _info),
}
"""Which field of `Link` an attribute is, and how it is read; "" for several."""


def description(
    *,
    name: str | None = None,
    index: int = 0,
    up: bool | None = None,
    promisc: bool | None = None,
    allmulti: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    group: int | None = None,
    alias: str | None = None,
    txqlen: int | None = None,
    parent: int | None = None,
    netns: Netns | None = None,
) -> bytes:
    """The header and attributes that `add`, `set` and a veth's far end share; None leaves a thing as it is."""
    flags = change = 0
    for wanted, bit in ((up, IFF_UP), (promisc, IFF_PROMISC), (allmulti, IFF_ALLMULTI)):
        if wanted is not None:
            change |= bit
            flags |= bit if wanted else 0
    parts = [_IFINFO.pack(0, 0, index, flags, change)]
    if name is not None:
        parts.append(attr_text(_IFLA_IFNAME, name))
    if mac is not None:
        parts.append(attr(_IFLA_ADDRESS, mac))
    if alias is not None:
        # Without a NUL, which the kernel would keep; the empty one removes.
        parts.append(attr(_IFLA_IFALIAS, alias.encode("utf-8", "surrogateescape")))
    for type, value in (
        (_IFLA_MTU, mtu),
        (_IFLA_MASTER, master),
        (_IFLA_GROUP, group),
        (_IFLA_TXQLEN, txqlen),
        (_IFLA_LINK, parent),
        (_IFLA_NET_NS_FD, None if netns is None else netns.fd),
    ):
        if value is not None:
            parts.append(attr_u32(type, value))
    return b"".join(parts)


def add(
    name: str,
    kind: str,
    *,
    data: bytes = b"",
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    group: int | None = None,
    txqlen: int | None = None,
    parent: int | None = None,
    netns: Netns | None = None,
) -> Message:
    """Add a link; EEXIST when the name is taken. `data` is the kind's own attributes, `netns` where it is to appear.

    An alias is not among them: the kernel ignores it in this message.
    """
    payload = description(
        name=name,
        up=up,
        mtu=mtu,
        mac=mac,
        master=master,
        group=group,
        txqlen=txqlen,
        parent=parent,
        netns=netns,
    )
    info = attr_text(_INFO_KIND, kind) + (nest(_INFO_DATA, data) if data else b"")
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Message(RTM_NEWLINK, flags, payload + nest(_IFLA_LINKINFO, info), f"{kind} add", name)


def set(
    which: int | str,
    *,
    name: str | None = None,
    up: bool | None = None,
    promisc: bool | None = None,
    allmulti: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    group: int | None = None,
    alias: str | None = None,
    txqlen: int | None = None,
    netns: Netns | None = None,
    arp_notify: bool | None = None,
) -> Message:
    """Change the link of that index or name; `master` 0 takes it out of its master, `netns` moves it there.

    With `name` and `netns` in one message it arrives under the new name. `name` needs `which` to be an index.
    `arp_notify` is net.ipv4.conf.LINK.arp_notify, set behind everything else: /proc/sys keeps the names of all
    namespaces in one place, and is the slower to find one the more there are.
    """
    if isinstance(which, str) and name is not None:
        raise ValueError(f"link {which}: renaming needs its index, because the message has room for one name")
    index, found_by = _selected(which)
    payload = description(
        name=name,
        index=index,
        up=up,
        promisc=promisc,
        allmulti=allmulti,
        mtu=mtu,
        mac=mac,
        master=master,
        group=group,
        alias=alias,
        txqlen=txqlen,
        netns=netns,
    )
    if arp_notify is not None:
        conf = nest(_IFLA_INET_CONF, attr_u32(_ARP_NOTIFY, arp_notify))
        payload += nest(_IFLA_AF_SPEC, nest(_AF_INET, conf))
    return Message(RTM_NEWLINK, 0, payload + found_by, "link set", which)


def change(which: int | str, kind: str, data: bytes, *, port: bool = False) -> Message:
    """Change what only the link's kind knows, or with `port` what its master's kind knows of it."""
    index, found_by = _selected(which)
    info = (
        attr_text(_INFO_SLAVE_KIND, kind) + nest(_INFO_SLAVE_DATA, data)
        if port
        else attr_text(_INFO_KIND, kind) + nest(_INFO_DATA, data)
    )
    call = f"{kind} port set" if port else f"{kind} set"
    payload = _IFINFO.pack(0, 0, index, 0, 0) + found_by + nest(_IFLA_LINKINFO, info)
    return Message(RTM_NEWLINK, 0, payload, call, which)


def delete(which: int | str) -> Message:
    """Delete the link of that index or name; ENODEV when there is none. Deleting one end of a veth takes the other."""
    index, found_by = _selected(which)
    return Message(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + found_by, "link delete", which)


def delete_group(group: int) -> Message:
    """Delete all links of the group, foreign ones too; fails whole on one that cannot be deleted. ENODEV when empty."""
    if group == 0:
        raise ValueError("group 0 holds every link that was never given one")
    payload = _IFINFO.pack(0, 0, 0, 0, 0) + attr_u32(_IFLA_GROUP, group)
    return Message(RTM_DELLINK, 0, payload, "link delete", f"group {group}")


def query(which: int | str) -> Message:
    """Ask for one link: `request` answers with a payload for `parse`.

    Behind `add` in the same request it tells the new link's index, MAC and its peer's index.
    """
    index, found_by = _selected(which)
    payload = _IFINFO.pack(0, 0, index, 0, 0) + found_by + _SKIP_STATISTICS
    return Message(RTM_GETLINK, 0, payload, "link get", which, asks=True)


def trial(kind: str) -> Message:
    """Ask for a link of that kind which cannot be: its MAC address has one byte. It is always refused.

    EOPNOTSUPP where the kernel does not know the kind, whose module it looks for first. For kinds of Ethernet, and
    those that sit on another link.
    """
    payload = description(mac=b"\0") + nest(_IFLA_LINKINFO, attr_text(_INFO_KIND, kind))
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"{kind} trial", kind)


def find(route: Netlink, which: int | str) -> Link | None:
    """The link of that index or name, None when there is none. A name may also be an alternative name of the link."""
    return find_each(route, which)[0]


def find_each(route: Netlink, *which: int | str) -> list[Link | None]:
    """`find` for several, asked for in one send."""
    found: list[Link | None] = []
    for answer in route.attempt(*[query(one) for one in which]):
        if isinstance(answer, NetlinkError):
            if answer.errno not in (errno.ENODEV, errno.ERANGE):  # ERANGE: longer than any name can be
                raise answer
            found.append(None)
        else:
            found.append(None if answer is None else parse(answer))
    return found


def dump(route: Netlink, *, master: int = 0, kind: str = "") -> list[Link]:
    """All links, or where given those with that master and of that kind (the kernel filters)."""
    parts = [_IFINFO.pack(0, 0, 0, 0, 0), _SKIP_STATISTICS]
    if master:
        parts.append(attr_u32(_IFLA_MASTER, master))
    if kind:
        parts.append(nest(_IFLA_LINKINFO, attr_text(_INFO_KIND, kind)))
    return [parse(payload) for payload in dump_raw(route, b"".join(parts))]


def dump_raw(route: Netlink, request: bytes = b"") -> list[bytes]:
    """The payloads for `parse` of all links: for whoever looks for few among many."""
    wanted = request or _IFINFO.pack(0, 0, 0, 0, 0) + _SKIP_STATISTICS
    return route.dump(Message(RTM_GETLINK, 0, wanted, "link dump"))


def _selected(which: int | str) -> tuple[int, bytes]:
    """(index, attribute) by which the kernel finds the link."""
    if isinstance(which, int):
        if which <= 0:
            raise ValueError(f"a link's index is positive, not {which}")
        return which, b""
    if not which:
        raise ValueError("a link's name is not empty")
    alternative = len(which.encode("utf-8", "surrogateescape")) > _NAME_BYTES
    return 0, attr_text(_IFLA_ALT_IFNAME if alternative else _IFLA_IFNAME, which)
