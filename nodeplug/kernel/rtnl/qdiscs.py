"""Traffic control: how a link queues what it sends, and where what it receives is redirected. See tc(8), tc-tbf(8).

Rates are bytes a second, sizes bytes. The kernel keeps the bucket's depth as a time, in ticks of 64 ns.
"""

from __future__ import annotations

import errno
import struct

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_list, attr_text, attr_u32, attrs, nest, number, text
from nodeplug.kernel.netlink import NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, Message, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink

ROOT = 0xFFFFFFFF
"""What a link sends."""
INGRESS = 0xFFFFFFF1
"""What it receives."""

LONGEST = 0xFFFFFFFF
"""The largest size, in bytes, that a bucket and its queue may have."""

_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWTFILTER, _GETTFILTER = 44, 46

_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_KIND, _ACT_OPTIONS = 1, 2
_MIRRED_PARMS = 2

_TBF_HANDLE = 1 << 16  # 1:
_INGRESS_HANDLE = 0xFFFF << 16  # ffff:
_FLOW = 1 << 16 | 1  # 1:1
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel then needs no table of transmission times
_TERMINAL = 1
_STOLEN = 4  # TC_ACT_STOLEN
_EGRESS_REDIRECT = 1
_ALL_PROTOCOLS = b"\x00\x03"  # ETH_P_ALL
_TICK = 64  # ns

_TCMSG = struct.Struct("=BxxxiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_TBF = struct.Struct("=12s12sIII")
_U64 = struct.Struct("=Q")
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
_MIRRED = struct.Struct("=IIiiiiI")


class Bucket(Record):
    """A token bucket filter: packets pass at `rate`, after a pause up to `burst` bytes of them at once; up to `limit`
    bytes wait, and what comes beyond is dropped.
    """

    rate: int
    burst: int
    limit: int

    @property
    def ticks(self) -> int:
        """The depth of the bucket as the kernel tells it: a time in ticks, cut to 32 bits."""
        return self.burst * 1_000_000_000 // self.rate // _TICK & 0xFFFFFFFF


class Qdisc(Record):
    """What queues for a link; `bucket` has rate and limit where it is a token bucket filter, and `ticks` its depth."""

    kind: str
    handle: int
    bucket: Bucket | None = None
    ticks: int = 0


def shape(index: int, bucket: Bucket) -> Message:
    """Make a token bucket filter what the link sends by, in place of what it has.

    A packet longer than `burst` is never sent, so that must be one packet at least. EINVAL for a rate or burst of 0.
    """
    spec = _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, LONGEST))
    parts = [
        attr(_TBF_PARMS, _TBF.pack(spec, bytes(12), min(bucket.limit, LONGEST), bucket.ticks, 0)),
        attr_u32(_TBF_BURST, min(bucket.burst, LONGEST)),
    ]
    if bucket.rate > LONGEST:
        parts.append(attr(_TBF_RATE64, _U64.pack(bucket.rate)))
    body = attr_text(_KIND, "tbf") + nest(_OPTIONS, *parts)
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return _message(_NEWQDISC, flags, index, _TBF_HANDLE, ROOT, 0, body, "tbf add")


def receive(index: int) -> Message:
    """Let filters look at what the link receives. EEXIST when they do already."""
    body = attr_text(_KIND, "ingress") + attr(_OPTIONS, b"")
    flags = NLM_F_CREATE | NLM_F_EXCL
    return _message(_NEWQDISC, flags, index, _INGRESS_HANDLE, INGRESS, 0, body, "ingress qdisc add")


def delete(index: int, parent: int) -> Message:
    """Take away what is at ROOT or INGRESS, with its filters. ENOENT or EINVAL when only the default is there."""
    return _message(_DELQDISC, 0, index, 0, parent, 0, b"", "qdisc delete")


def redirect(index: int, to: int) -> Message:
    """Let all that the link receives leave by the link `to` instead. It needs `receive` first."""
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to)
    action = nest(1, attr_text(_ACT_KIND, "mirred"), nest(_ACT_OPTIONS, attr(_MIRRED_PARMS, mirred)))
    selector = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    options = (attr_u32(_U32_CLASSID, _FLOW), attr(_U32_SEL, selector), nest(_U32_ACT, action))
    body = attr_text(_KIND, "u32") + nest(_OPTIONS, *options)
    # Priority 1 in the upper half, the protocol in network order in the lower.
    info = 1 << 16 | struct.unpack("=H", _ALL_PROTOCOLS)[0]
    flags = NLM_F_CREATE | NLM_F_EXCL
    return _message(_NEWTFILTER, flags, index, 0, _INGRESS_HANDLE, info, body, "redirect add")


def find(route: Netlink, index: int, parent: int = ROOT) -> Qdisc | None:
    """What the link sends by, or what is at INGRESS; None when that is nothing, or the link is gone."""
    # The kernel answers a GET to whoever asks for an echo.
    (answer,) = route.attempt(_message(_GETQDISC, NLM_F_ECHO, index, 0, parent, 0, b"", "qdisc get"))
    if isinstance(answer, NetlinkError):
        if answer.errno in (errno.ENODEV, errno.ENOENT):
            return None
        raise answer
    return None if answer is None else parse(answer)


class Filter(Record):
    """What is done to what a link receives: `kind` of the filter, and where it redirects to (0 for nowhere, also when
    that link is gone).
    """

    kind: str
    to: int


def filters(route: Netlink, index: int) -> list[Filter]:
    """The filters of what the link receives, those that only lead to others left out; ENODEV when it is gone."""
    found = []
    for payload in route.dump(_message(_GETTFILTER, 0, index, 0, _INGRESS_HANDLE, 0, b"", "filter dump")):
        parts = attrs(payload, _TCMSG.size)
        kind, options = text(parts.get(_KIND)), attrs(parts.get(_OPTIONS, b""))
        # The kernel lists each filter's head as well, and of u32 its hash tables: those have no selector.
        if not options or (kind == "u32" and _U32_SEL not in options):
            continue
        found.append(Filter(kind=kind, to=_target(options)))
    return found


def _target(options: dict[int, bytes]) -> int:
    for _, item in attr_list(options.get(_U32_ACT, b"")):
        action = attrs(item)
        parms = attrs(action.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS, b"")
        if text(action.get(_ACT_KIND)) == "mirred" and len(parms) >= _MIRRED.size:
            return int(_MIRRED.unpack_from(parms)[6])
    return 0


def parse(payload: bytes) -> Qdisc:
    """The qdisc in the payload of an RTM_NEWQDISC message. Raises ValueError when it holds none."""
    if len(payload) < _TCMSG.size:
        raise ValueError(f"a qdisc message of {len(payload)} bytes")
    _family, _index, handle, _parent, _info = _TCMSG.unpack_from(payload)
    found = attrs(payload, _TCMSG.size)
    kind = text(found.get(_KIND))
    options = attrs(found.get(_OPTIONS, b"")) if kind == "tbf" else {}
    parms = options.get(_TBF_PARMS, b"")
    if len(parms) < _TBF.size:
        return Qdisc(kind=kind, handle=handle)
    spec, _peak, limit, ticks, _mtu = _TBF.unpack_from(parms)
    rate = number(options.get(_TBF_RATE64)) or _RATESPEC.unpack(spec)[5]
    burst = ticks * _TICK * rate // 1_000_000_000
    return Qdisc(kind=kind, handle=handle, bucket=Bucket(rate=rate, burst=burst, limit=limit), ticks=ticks)


def _message(type: int, flags: int, index: int, handle: int, parent: int, info: int, body: bytes, call: str) -> Message:
    payload = _TCMSG.pack(0, index, handle, parent, info) + body
    return Message(type, flags, payload, call, f"link {index}")
