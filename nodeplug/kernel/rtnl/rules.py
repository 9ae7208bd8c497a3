"""Routing rules: which table is asked for a packet, here by where it comes from. See ip-rule(8)."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, inet_ntop

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_u8, attr_u32, attrs, number, text
from nodeplug.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Netlink

TO_TABLE = 1
"""The action of a rule that leads to a table (FR_ACT_TO_TBL)."""

_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_SRC, _IIFNAME, _PRIORITY, _TABLE, _OIFNAME, _PROTOCOL = 2, 3, 6, 15, 17, 21

_HEADER = struct.Struct("=BBBBBxxBI")


class Rule(Record):
    """One rule: what `add` and `delete` take and `dump` gives."""

    family: int
    """AF_INET or AF_INET6."""
    table: int
    src: bytes = b""
    """Packed; empty with prefix 0 for every source."""
    prefix: int = 0
    priority: int | None = None
    """Least is asked first; for `add`, None is before all but the first, for `delete` any."""
    protocol: int = 0
    """Who made it, a number like that of a route; 0 where nobody said."""
    action: int = TO_TABLE
    iif: str = ""
    oif: str = ""


def add(rule: Rule) -> Message:
    """Add a rule; EEXIST for one that is equal in all."""
    return Message(_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _payload(rule), "rule add", _subject(rule))


def delete(rule: Rule) -> Message:
    """Delete the first rule that is as this one; ENOENT for none."""
    return Message(_DELRULE, 0, _payload(rule), "rule delete", _subject(rule))


def dump(route: Netlink, family: int) -> list[Rule]:
    """The rules of a family, in the order they are asked in."""
    message = Message(_GETRULE, 0, _HEADER.pack(family, 0, 0, 0, 0, 0, 0), "rule dump")
    return [parse(payload) for payload in route.dump(message)]


def parse(payload: bytes) -> Rule:
    """The rule in the payload of an RTM_NEWRULE message. Raises ValueError when it holds none."""
    if len(payload) < _HEADER.size:
        raise ValueError(f"a rule message of {len(payload)} bytes")
    family, _dst_len, src_len, _tos, table, action, _flags = _HEADER.unpack_from(payload)
    found = attrs(payload, _HEADER.size)
    return Rule(
        family=family,
        table=number(found[_TABLE]) if _TABLE in found else table,
        src=found.get(_SRC, b""),
        prefix=src_len,
        priority=number(found.get(_PRIORITY)),
        protocol=number(found.get(_PROTOCOL)),
        action=action,
        iif=text(found.get(_IIFNAME)),
        oif=text(found.get(_OIFNAME)),
    )


def _payload(rule: Rule) -> bytes:
    # The table goes into its attribute: the header has only 8 bits for it.
    parts = [_HEADER.pack(rule.family, 0, rule.prefix, 0, 0, rule.action, 0), attr_u32(_TABLE, rule.table)]
    if rule.src:
        parts.append(attr(_SRC, rule.src))
    if rule.priority is not None:
        parts.append(attr_u32(_PRIORITY, rule.priority))
    if rule.protocol:
        parts.append(attr_u8(_PROTOCOL, rule.protocol))
    return b"".join(parts)


def _subject(rule: Rule) -> str:
    source = f"{inet_ntop(rule.family, rule.src)}/{rule.prefix}" if rule.src else "all"
    return f"from {source} table {rule.table}"


def family_of(ip: bytes) -> int:
    """AF_INET for 4 bytes, AF_INET6 for 16."""
    return AF_INET if len(ip) == 4 else AF_INET6
