"""Connection tracking over ctnetlink: listing flows by a pattern, deleting single ones.

A new NAT rule does not touch a flow that is tracked already: a UDP client that keeps sending keeps its old destination,
or none, for ever. So whoever changes a translation deletes the flows it is about, and no others. See the kernel's
uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_u8, attr_u32, attrs, nest
from nodeplug.kernel.netlink import Message, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nodeplug.kernel.netlink import Netlink

_CTNETLINK = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET = 1
_DELETE = 2

_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_BY_SRC, _BY_DST, _BY_PROTO, _BY_SRC_PORT, _BY_DST_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5

_PORTS_ONE_BY_ONE = 8

_BE16 = struct.Struct(">H")


class Tuple(Record):
    """One direction of a flow, as its packets look. Addresses are packed; ports are 0 for protocols without any."""

    src: bytes
    dst: bytes
    proto: int
    src_port: int
    dst_port: int


class Pattern(Record):
    """What a direction must look like; None matches everything. A port needs the protocol beside it."""

    src: bytes | None = None
    dst: bytes | None = None
    proto: int | None = None
    src_port: int | None = None
    dst_port: int | None = None

    def matches(self, tuple: Tuple) -> bool:
        return all(wanted is None or wanted == getattr(tuple, name) for name, wanted in self.__dict__.items())


ANY = Pattern()


class Flow(Record):
    """A tracked flow: what its first packet looked like, what answers look like, and the kernel's number for it."""

    original: Tuple
    reply: Tuple
    id: bytes
    zone: bytes


def dump(netlink: Netlink, family: int, *, original: Pattern = ANY, reply: Pattern = ANY) -> list[Flow]:
    """The flows of AF_INET or AF_INET6 that match. The kernel selects them (since 5.8), else this does.

    `netlink` is a NETLINK_NETFILTER socket of the namespace in question. Raises `NetlinkError`.
    """
    selection = b""
    if original != ANY or reply != ANY:
        forward, forward_flags = _pattern(original)
        backward, backward_flags = _pattern(reply)
        selection = (
            (nest(_TUPLE_ORIG, forward) if forward else b"")
            + (nest(_TUPLE_REPLY, backward) if backward else b"")
            + nest(_FILTER, attr_u32(1, forward_flags), attr_u32(2, backward_flags))
        )
    try:
        found = netlink.dump(_message(_GET, family, selection, "list flows"))
    except NetlinkError as error:
        if not selection or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        found = netlink.dump(_message(_GET, family, b"", "list flows"))
    # A kernel before 5.8 passes over the filter and lists all.
    flows = [flow for flow in map(read, found) if flow is not None]
    return [flow for flow in flows if original.matches(flow.original) and reply.matches(flow.reply)]


def delete(netlink: Netlink, flows: Iterable[Flow]) -> int:
    """Forget these flows; returns how many were still there. One that ended meanwhile, or whose tuple another flow
    has taken since, is passed over.
    """
    requests = []
    for flow in flows:
        zone = attr(_ZONE, flow.zone) if flow.zone else b""
        body = nest(_TUPLE_ORIG, _tuple(flow.original)) + attr(_ID, flow.id) + zone
        requests.append(_message(_DELETE, _family(flow.original.src), body, "delete flow"))
    deleted = 0
    for outcome in netlink.attempt(*requests):
        if isinstance(outcome, NetlinkError):
            if outcome.errno != errno.ENOENT:
                raise outcome
        else:
            deleted += 1
    return deleted


def delete_to(netlink: Netlink, family: int, proto: int, ports: Iterable[int], *, to: Callable[[bytes], bool]) -> int:
    """Forget the flows of a protocol that were first sent to one of these ports at an address for which `to` says so.

    Each address is asked about once. Returns how many there were.
    """
    answers: dict[bytes, bool] = {}
    chosen = []
    for flow in _to_ports(netlink, family, proto, set(ports)):
        address = flow.original.dst
        if address not in answers:
            answers[address] = to(address)
        if answers[address]:
            chosen.append(flow)
    return delete(netlink, chosen)


def delete_from(netlink: Netlink, address: bytes, proto: int, ports: Iterable[int]) -> int:
    """Forget the flows that this address answers from one of these ports, however they were translated.

    Returns how many there were.
    """
    wanted = set(ports)
    flows = dump(netlink, _family(address), reply=Pattern(src=address, proto=proto)) if wanted else []
    return delete(netlink, [flow for flow in flows if flow.reply.src_port in wanted])


def _to_ports(netlink: Netlink, family: int, proto: int, ports: set[int]) -> list[Flow]:
    # One dump walks the whole hash table (3.5 ms for 262,144 buckets), one without the port may list every DNS query.
    if len(ports) > _PORTS_ONE_BY_ONE:
        found = dump(netlink, family, original=Pattern(proto=proto))
        return [flow for flow in found if flow.original.dst_port in ports]
    patterns = [Pattern(proto=proto, dst_port=port) for port in sorted(ports)]
    return [flow for pattern in patterns for flow in dump(netlink, family, original=pattern)]


def read(payload: bytes) -> Flow | None:
    """A flow from a ctnetlink message; None when it lacks a direction."""
    found = attrs(payload, 4)
    original, reply = _read_tuple(found.get(_TUPLE_ORIG)), _read_tuple(found.get(_TUPLE_REPLY))
    if original is None or reply is None:
        return None
    return Flow(original=original, reply=reply, id=found.get(_ID, b""), zone=found.get(_ZONE, b""))


def _message(kind: int, family: int, body: bytes, call: str) -> Message:
    return Message(_CTNETLINK | kind, 0, bytes((family, 0, 0, 0)) + body, call)


def _family(address: bytes) -> int:
    return AF_INET if len(address) == 4 else AF_INET6


def _tuple(wanted: Tuple) -> bytes:
    return _addresses(wanted.src, wanted.dst) + nest(
        2,
        attr_u8(1, wanted.proto),
        attr(2, _BE16.pack(wanted.src_port)),
        attr(3, _BE16.pack(wanted.dst_port)),
    )


def _addresses(src: bytes | None, dst: bytes | None) -> bytes:
    parts = [attr(n if len(ip) == 4 else n + 2, ip) for n, ip in ((1, src), (2, dst)) if ip is not None]
    return nest(1, *parts)


def _pattern(wanted: Pattern) -> tuple[bytes, int]:
    """A direction for the kernel's filter, and the flags that say which of its parts count."""
    flags = 0
    body = b""
    # Of IPv6 addresses the kernel's filter (seen in 6.18) keeps those that differ, so they are left to `dump`.
    src = wanted.src if wanted.src is not None and len(wanted.src) == 4 else None
    dst = wanted.dst if wanted.dst is not None and len(wanted.dst) == 4 else None
    if src is not None or dst is not None:
        body += _addresses(src, dst)
        flags |= (_BY_SRC if src is not None else 0) | (_BY_DST if dst is not None else 0)
    if wanted.proto is not None:
        ports = b""
        if wanted.src_port is not None:
            ports += attr(2, _BE16.pack(wanted.src_port))
            flags |= _BY_SRC_PORT
        if wanted.dst_port is not None:
            ports += attr(3, _BE16.pack(wanted.dst_port))
            flags |= _BY_DST_PORT
        body += nest(2, attr_u8(1, wanted.proto), ports)
        flags |= _BY_PROTO
    return body, flags


def _read_tuple(data: bytes | None) -> Tuple | None:
    found = attrs(data or b"")
    ip, proto = attrs(found.get(1, b"")), attrs(found.get(2, b""))
    src, dst = ip.get(1, ip.get(3)), ip.get(2, ip.get(4))
    if src is None or dst is None or not proto.get(1):
        return None
    return Tuple(src=src, dst=dst, proto=proto[1][0], src_port=_port(proto.get(2)), dst_port=_port(proto.get(3)))


def _port(value: bytes | None) -> int:
    return _BE16.unpack_from(value)[0] if value is not None and len(value) >= 2 else 0
