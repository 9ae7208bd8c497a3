"""Tables, chains, rules and sets: messages that make and remove them, reads that list them, and the transaction.

A change is a list of messages given to `commit`, which takes effect whole or not at all:

    commit(netlink, [add_table(INET, "nodeplug"), add_set(INET, "nodeplug", "pods", (IPV4_ADDR,))])
"""

from __future__ import annotations

import errno

from nodeplug.core.record import Record
from nodeplug.kernel.attributes import attr, attr_text, attrs, nest, text
from nodeplug.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Message, NetlinkError
from nodeplug.kernel.nft import expressions
from nodeplug.kernel.nft.wire import (
    NFNL_SUBSYS_NFTABLES,
    be32,
    be64,
    comment_data,
    header,
    message,
    packed_size,
    packed_type,
    read_be32,
    read_be64,
    read_comment,
    subject,
    user_data,
    user_number,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.nft.expressions import Expression
    from nodeplug.kernel.nft.wire import Field

PREROUTING = 0
INPUT = 1
FORWARD = 2
OUTPUT = 3
POSTROUTING = 4

POLICY_DROP = 0
POLICY_ACCEPT = 1

VERDICT = 0xFFFFFF00
"""The data type of a verdict map."""

_BATCH_BEGIN = 0x10
_BATCH_END = 0x11
_BATCH_GENID = 1

_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NEWSET, _GETSET, _DELSET = 9, 10, 11
_GETGEN = 16

_OWNED = 0x2  # NFT_TABLE_F_OWNER
_SET_MAP = 0x8
_KEY_ORDER, _DATA_ORDER, _SET_COMMENT = 0, 1, 7


class Table(Record):
    """A table as listed. One that is `owned` is changed by nobody but the process that made it."""

    name: str
    comment: str
    owned: bool = False


class Chain(Record):
    """A chain as listed; `type` is "" and `hook`, `priority`, `policy` are None for a chain that is only jumped to."""

    name: str
    type: str
    hook: int | None
    priority: int | None
    policy: int | None


class Rule(Record):
    """A rule as listed."""

    chain: str
    handle: int
    comment: str
    expressions: tuple[Expression, ...]


class Set(Record):
    """A set or map as listed. `count` is the number of its elements, None on kernels before 6.16."""

    name: str
    is_map: bool
    key_type: int
    data_type: int
    comment: str
    count: int | None


def commit(netlink: Netlink, messages: Iterable[Message], *, generation: int | None = None) -> None:
    """Send all in one transaction, which takes effect whole or not at all. Raises `NetlinkError` for the first refusal.

    With `generation` (from `generation()`) it takes effect only if no transaction of anybody came between, else the
    error is ERESTART with index -1.
    """
    for error in attempt(netlink, messages, generation=generation):
        raise error


def attempt(netlink: Netlink, messages: Iterable[Message], *, generation: int | None = None) -> list[NetlinkError]:
    """Like `commit`, but returns every refusal, in the order of the messages; empty when all took effect.

    Raises `NetlinkError` with index -1 when the transaction as a whole was refused.
    """
    condition = b"" if generation is None else be32(_BATCH_GENID, generation)
    frame = header(0, resource=NFNL_SUBSYS_NFTABLES)
    begin = Message(_BATCH_BEGIN, 0, frame + condition, "nft transaction")
    return netlink.attempt_transaction(begin, messages, Message(_BATCH_END, 0, frame))


def generation(netlink: Netlink) -> int:
    """The number of the ruleset's state in this namespace; every transaction makes a new one."""
    (answer,) = netlink.request(message(_GETGEN, 0, 0, b"", "get generation", "", asks=True))
    return read_be32(attrs(answer or b"", 4).get(1))


def add_table(family: int, name: str, *, exclusive: bool = False, comment: str = "") -> Message:
    """A table; with `exclusive` EEXIST if it is there."""
    body = attr_text(1, name) + be32(2, 0) + _comment(6, comment)
    return message(_NEWTABLE, _creation(exclusive), family, body, "add table", subject(family, name))


def delete_table(family: int, name: str) -> Message:
    """The table with all that is in it. ENOENT if it is not there."""
    return message(_DELTABLE, 0, family, attr_text(1, name), "delete table", subject(family, name))


def add_chain(family: int, table: str, name: str, *, exclusive: bool = False) -> Message:
    """A chain that other rules jump to."""
    body = attr_text(1, table) + attr_text(3, name)
    return message(_NEWCHAIN, _creation(exclusive), family, body, "add chain", subject(family, table, name))


def add_base_chain(
    family: int, table: str, name: str, *, type: str, hook: int, priority: int, policy: int = POLICY_ACCEPT
) -> Message:
    """A chain that the kernel itself runs: `type` is "nat", "filter" or "route"."""
    body = (
        attr_text(1, table)
        + attr_text(3, name)
        + nest(4, be32(1, hook), be32(2, priority))
        + be32(5, policy)
        + attr_text(7, type)
    )
    return message(_NEWCHAIN, NLM_F_CREATE, family, body, "add chain", subject(family, table, name))


def delete_chain(family: int, table: str, name: str) -> Message:
    """A chain with the rules in it. EBUSY while a rule or element jumps to it."""
    body = attr_text(1, table) + attr_text(3, name)
    return message(_DELCHAIN, 0, family, body, "delete chain", subject(family, table, name))


def add_rule(family: int, table: str, chain: str, *parts: bytes, comment: str = "") -> Message:
    """A rule of these expressions at the end of the chain."""
    body = attr_text(1, table) + attr_text(2, chain) + nest(4, *parts) + _comment(7, comment)
    return message(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, body, "add rule", subject(family, table, chain))


def insert_rule(
    family: int, table: str, chain: str, *parts: bytes, before: int | None = None, comment: str = ""
) -> Message:
    """A rule of these expressions before the one with that handle, or at the chain's begin.

    ENOENT when there is no such rule any more.
    """
    place = b"" if before is None else be64(6, before)
    body = attr_text(1, table) + attr_text(2, chain) + nest(4, *parts) + place + _comment(7, comment)
    return message(_NEWRULE, NLM_F_CREATE, family, body, "insert rule", subject(family, table, chain))


def delete_rule(family: int, table: str, chain: str, handle: int | None = None) -> Message:
    """One rule by its handle, or every rule of the chain."""
    body = attr_text(1, table) + attr_text(2, chain) + (b"" if handle is None else be64(3, handle))
    return message(_DELRULE, 0, family, body, "delete rule", subject(family, table, chain))


def add_set(
    family: int,
    table: str,
    name: str,
    key: tuple[Field, ...],
    *,
    data: tuple[Field, ...] = (),
    verdicts: bool = False,
    size: int = 0,
    comment: str = "",
    exclusive: bool = False,
    number: int = 1,
) -> Message:
    """A hash set of `key`; a map when it has `data` or `verdicts`. `size` bounds it (0: it grows as needed).

    `number` tells sets apart that one transaction makes and uses by number; names serve as well.
    """
    items = [user_number(_KEY_ORDER, key[0].order if len(key) == 1 else 0)]
    flags = 0
    mapped = b""
    if data:
        flags = _SET_MAP
        mapped = be32(6, packed_type(data)) + be32(7, packed_size(data))
        items.append(user_number(_DATA_ORDER, data[0].order if len(data) == 1 else 0))
    elif verdicts:
        flags = _SET_MAP
        mapped = be32(6, VERDICT) + be32(7, 0)
    if comment:
        items.append(comment_data(_SET_COMMENT, comment))
    body = (
        attr_text(1, table)
        + attr_text(2, name)
        + be32(3, flags)
        + be32(4, packed_type(key))
        + be32(5, packed_size(key))
        + mapped
        + be32(10, number)
        + (nest(9, be32(1, size)) if size else b"")
        + attr(13, user_data(*items))
    )
    return message(_NEWSET, _creation(exclusive), family, body, "add set", subject(family, table, name))


def delete_set(family: int, table: str, name: str) -> Message:
    """A set with its elements. EBUSY while a rule looks into it."""
    body = attr_text(1, table) + attr_text(2, name)
    return message(_DELSET, 0, family, body, "delete set", subject(family, table, name))


def tables(netlink: Netlink, family: int) -> list[Table]:
    """All tables of the family."""
    found = (attrs(item, 4) for item in netlink.dump(message(_GETTABLE, 0, family, b"", "list tables", "")))
    return [
        Table(name=text(item.get(1)), comment=read_comment(item.get(6)), owned=bool(read_be32(item.get(2)) & _OWNED))
        for item in found
    ]


def chain(netlink: Netlink, family: int, table: str, name: str) -> Chain | None:
    """One chain, None when it or its table is not there."""
    body = attr_text(1, table) + attr_text(3, name)
    request = message(_GETCHAIN, 0, family, body, "get chain", subject(family, table, name), asks=True)
    answer = _get(netlink, request)
    return None if answer is None else read_chain(answer)


def chains(netlink: Netlink, family: int, table: str) -> list[Chain]:
    """All chains of the table; none when it is not there."""
    # The kernel's dump of chains knows no table, so others are left out here.
    found = netlink.dump(message(_GETCHAIN, 0, family, b"", "list chains", subject(family, table)))
    return [read_chain(item) for item in found if text(attrs(item, 4).get(1)) == table]


def base_chains(netlink: Netlink, family: int, hook: int) -> list[tuple[str, Chain]]:
    """The chains of that family that the kernel runs at the hook, each with its table's name."""
    found = netlink.dump(message(_GETCHAIN, 0, family, b"", "list chains", subject(family)))
    chains = [(text(attrs(item, 4).get(1)), read_chain(item)) for item in found]
    return [(table, chain) for table, chain in chains if chain.hook == hook]


def rules(netlink: Netlink, family: int, table: str, chain: str = "") -> list[Rule]:
    """The rules of the table, or of one chain, in order; none when it is not there."""
    body = attr_text(1, table) + (attr_text(2, chain) if chain else b"")
    found = netlink.dump(message(_GETRULE, 0, family, body, "list rules", subject(family, table, chain)))
    return [read_rule(item) for item in found]


def sets(netlink: Netlink, family: int, table: str) -> list[Set]:
    """All sets and maps of the table, without their elements; none when it is not there."""
    body = attr_text(1, table)
    try:
        found = netlink.dump(message(_GETSET, 0, family, body, "list sets", subject(family, table)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return [read_set(item) for item in found]


def read_chain(payload: bytes) -> Chain:
    """A chain from an nf_tables message."""
    item = attrs(payload, 4)
    hook = attrs(item[4]) if 4 in item else {}
    priority = read_be32(hook.get(2))
    return Chain(
        name=text(item.get(3)),
        type=text(item.get(7)),
        hook=read_be32(hook.get(1)) if hook else None,
        priority=(priority - (1 << 32) if priority >> 31 else priority) if hook else None,
        policy=read_be32(item[5]) if 5 in item else None,
    )


def read_rule(payload: bytes) -> Rule:
    """A rule from an nf_tables message."""
    item = attrs(payload, 4)
    return Rule(
        chain=text(item.get(2)),
        handle=read_be64(item.get(3)),
        comment=read_comment(item.get(7)),
        expressions=expressions.read(item.get(4, b"")),
    )


def read_set(payload: bytes) -> Set:
    """A set from an nf_tables message."""
    item = attrs(payload, 4)
    return Set(
        name=text(item.get(2)),
        is_map=bool(read_be32(item.get(3)) & _SET_MAP),
        key_type=read_be32(item.get(4)),
        data_type=read_be32(item.get(6)),
        comment=read_comment(item.get(13), _SET_COMMENT),
        count=read_be32(item[20]) if 20 in item else None,
    )


def _get(netlink: Netlink, request: Message) -> bytes | None:
    try:
        (answer,) = netlink.request(request)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return answer


def _creation(exclusive: bool) -> int:
    return NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0)


def _comment(type: int, comment: str) -> bytes:
    return attr(type, user_data(comment_data(0, comment))) if comment else b""
