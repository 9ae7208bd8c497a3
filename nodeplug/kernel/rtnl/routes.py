"""Routes of any table, both families, with one next hop or several."""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6, inet_ntop

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_u32, attrs, nest, number
from nodeplug.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink

TABLE_DEFAULT = 253
TABLE_MAIN = 254
TABLE_LOCAL = 255

SCOPE_UNIVERSE = 0
SCOPE_LINK = 253
SCOPE_HOST = 254
SCOPE_NOWHERE = 255

UNICAST = 1
LOCAL = 2
BROADCAST = 3
ANYCAST = 4
MULTICAST = 5
BLACKHOLE = 6
UNREACHABLE = 7
PROHIBIT = 8
THROW = 9

BY_KERNEL = 2
BY_BOOT = 3
BY_ADMIN = 4

DEAD = 0x1
ONLINK = 0x4
LINKDOWN = 0x10

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
_RTM_GETROUTE = 26
_RTM_F_LOOKUP_TABLE = 0x1000
_RTM_F_FIB_MATCH = 0x2000
_RTA_DST = 1
_RTA_SRC = 2
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_METRICS = 8
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_MARK = 16
_RTA_VIA = 18
_RTAX_MTU = 2
_RTAX_ADVMSS = 8

_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_FAMILY = struct.Struct("=H")
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH)


class Nexthop(Record):
    """One of several ways of a route."""

    oif: int = 0
    """Index of the link it leaves by; 0 lets the kernel find it from the gateway."""
    gateway: bytes | None = None
    weight: int = 1
    """1 to 256: its share of the flows."""
    flags: int = 0
    """ONLINK for `add`; the others are told by the kernel."""


class Route(Record):
    """One route: what `add` and `delete` take and `dump` and `find` give."""

    dst: bytes
    """Packed, 4 or 16 bytes; all zero with prefix 0 for the default route."""
    prefix: int
    oif: int = 0
    """Index of the link it leaves by; 0 where there is none or `nexthops` say."""
    gateway: bytes | None = None
    """Packed; of the other family too (IPv4 by an IPv6 neighbour)."""
    src: bytes | None = None
    """The address that packets without one get."""
    table: int = TABLE_MAIN
    priority: int = 0
    """The metric, least wins; IPv6's default is 1024."""
    scope: int | None = None
    """IPv4: a SCOPE_* value. None lets `add` choose: link without a gateway, else universe."""
    type: int = UNICAST
    protocol: int = BY_BOOT
    """Who made it. BY_BOOT is what `ip route add` leaves."""
    flags: int = 0
    """ONLINK (the gateway needs no route of its own) for `add`; the others are told by the kernel."""
    mtu: int = 0
    """Bytes; 0 for the link's."""
    advmss: int = 0
    """Bytes; 0 for what the MTU gives."""
    nexthops: tuple[Nexthop, ...] = ()

    def __str__(self) -> str:
        via = f" via {inet_ntop(_family(self.gateway), self.gateway)}" if self.gateway else ""
        by = f" by link {self.oif}" if self.oif else ""
        return f"{inet_ntop(_family(self.dst), self.dst)}/{self.prefix}{via}{by}"


def parse(payload: bytes) -> Route:
    """The route in the payload of an RTM_NEWROUTE or RTM_DELROUTE message. Raises ValueError when it holds none."""
    if len(payload) < _RTMSG.size:
        raise ValueError(f"a route message of {len(payload)} bytes")
    family, prefix, _src, _tos, table, protocol, scope, type, flags = _RTMSG.unpack_from(payload)
    found = attrs(payload, _RTMSG.size)
    metrics = attrs(found.get(_RTA_METRICS, b""))
    return Route(
        dst=found.get(_RTA_DST) or bytes(16 if family == AF_INET6 else 4),
        prefix=prefix,
        oif=number(found.get(_RTA_OIF)),
        gateway=_gateway(found),
        src=found.get(_RTA_PREFSRC),
        table=number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        priority=number(found.get(_RTA_PRIORITY)),
        scope=scope,
        type=type,
        protocol=protocol,
        flags=flags,
        mtu=number(metrics.get(_RTAX_MTU)),
        advmss=number(metrics.get(_RTAX_ADVMSS)),
        nexthops=_nexthops(found.get(_RTA_MULTIPATH, b"")),
    )


def add(route: Route, *, replace: bool = False, append: bool = False) -> Message:
    """Add a route; EEXIST for one of equal destination and metric, unless `replace` takes its place.

    `append` adds another way beside it: IPv6 makes one route with several next hops of them.
    """
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_APPEND if append else NLM_F_EXCL)
    scope = route.scope
    if scope is None:
        direct = route.gateway is None and not route.nexthops and route.type == UNICAST
        scope = SCOPE_LINK if direct else SCOPE_HOST if route.type == LOCAL else SCOPE_UNIVERSE
    payload = _payload(route, scope=scope, type=route.type, protocol=route.protocol)
    return Message(RTM_NEWROUTE, flags, payload, "route add", route)


def delete(route: Route) -> Message:
    """Delete the route with this destination, table, and (where given) metric, link, gateway, scope; ESRCH for none."""
    scope = SCOPE_NOWHERE if route.scope is None else route.scope
    payload = _payload(route.replace(mtu=0, advmss=0), scope=scope, type=0, protocol=0)
    return Message(RTM_DELROUTE, 0, payload, "route delete", route)


def dump(route: Netlink, family: int, *, table: int = TABLE_MAIN, oif: int = 0) -> list[Route]:
    """The routes of a table (0: of all tables), or of those the ones by that link; the kernel filters.

    A table that was never used gives none; a link that is gone is ENODEV.
    """
    parts = [_RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)]
    if table:
        parts.append(attr_u32(_RTA_TABLE, table))
    if oif:
        parts.append(attr_u32(_RTA_OIF, oif))
    try:
        payloads = route.dump(Message(_RTM_GETROUTE, 0, b"".join(parts), "route dump", f"table {table}"))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return [parse(payload) for payload in payloads]


def find(route: Netlink, dst: bytes, *, oif: int = 0, src: bytes | None = None, mark: int = 0) -> Route | None:
    """The way a packet to `dst` would take from here, with `table` as found; None when there is none."""
    # IPv6 always tells the table, and refuses to be asked to.
    return _get(route, dst, _RTM_F_LOOKUP_TABLE if len(dst) == 4 else 0, oif=oif, src=src, mark=mark)


def match(route: Netlink, dst: bytes) -> Route | None:
    """The route itself that `find` follows, as somebody added it: with its own destination and all next hops."""
    return _get(route, dst, _RTM_F_FIB_MATCH)


def _get(
    route: Netlink, dst: bytes, flags: int, *, oif: int = 0, src: bytes | None = None, mark: int = 0
) -> Route | None:
    parts = [
        _RTMSG.pack(_family(dst), 8 * len(dst), 8 * len(src) if src else 0, 0, 0, 0, 0, 0, flags),
        attr(_RTA_DST, dst),
    ]
    if src:
        parts.append(attr(_RTA_SRC, src))
    if oif:
        parts.append(attr_u32(_RTA_OIF, oif))
    if mark:
        parts.append(attr_u32(_RTA_MARK, mark))
    (answer,) = route.attempt(
        Message(_RTM_GETROUTE, 0, b"".join(parts), "route get", inet_ntop(_family(dst), dst), asks=True)
    )
    if isinstance(answer, NetlinkError):
        if answer.errno in _NO_WAY:
            return None
        raise answer
    return None if answer is None else parse(answer)


def _payload(route: Route, *, scope: int, type: int, protocol: int) -> bytes:
    # The table goes into its attribute: the header has only 8 bits for it.
    flags = route.flags & ONLINK
    header = _RTMSG.pack(_family(route.dst), route.prefix, 0, 0, 0, protocol, scope, type, flags)
    parts = [header, attr_u32(_RTA_TABLE, route.table)]
    if route.prefix:
        parts.append(attr(_RTA_DST, route.dst))
    if route.oif:
        parts.append(attr_u32(_RTA_OIF, route.oif))
    if route.gateway is not None:
        parts.append(_via(route.gateway, len(route.dst)))
    if route.src is not None:
        parts.append(attr(_RTA_PREFSRC, route.src))
    if route.priority:
        parts.append(attr_u32(_RTA_PRIORITY, route.priority))
    metrics = [attr_u32(type, value) for type, value in ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss)) if value]
    if metrics:
        parts.append(nest(_RTA_METRICS, *metrics))
    if route.nexthops:
        hops = []
        for hop in route.nexthops:
            via = b"" if hop.gateway is None else _via(hop.gateway, len(route.dst))
            hops.append(_NEXTHOP.pack(_NEXTHOP.size + len(via), hop.flags & ONLINK, hop.weight - 1, hop.oif) + via)
        parts.append(attr(_RTA_MULTIPATH, b"".join(hops)))
    return b"".join(parts)


def _via(gateway: bytes, length: int) -> bytes:
    if len(gateway) == length:
        return attr(_RTA_GATEWAY, gateway)
    return attr(_RTA_VIA, _FAMILY.pack(_family(gateway)) + gateway)


def _gateway(found: dict[int, bytes]) -> bytes | None:
    via = found.get(_RTA_VIA)
    return found.get(_RTA_GATEWAY) if via is None else via[_FAMILY.size :]


def _nexthops(data: bytes) -> tuple[Nexthop, ...]:
    found = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, flags, hops, oif = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size or offset + length > len(data):
            break
        gateway = _gateway(attrs(data[offset + _NEXTHOP.size : offset + length]))
        found.append(Nexthop(oif=oif, gateway=gateway, weight=hops + 1, flags=flags))
        offset += (length + 3) & ~3
    return tuple(found)


def _family(ip: bytes) -> int:
    if len(ip) == 4:
        return AF_INET
    if len(ip) == 16:
        return AF_INET6
    raise ValueError(f"an IP address has 4 or 16 bytes, not {len(ip)}")
