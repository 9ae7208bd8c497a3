"""What passes between pods and others wherever the host forwards: chains, sets and rules of `inet nodeplug`. Pure.

A packet passes when no base chain drops it, so no rule here can save one that another table drops. What is here comes
first: `forward` drops what a pod's ingress policy forbids, and puts a mark on what may pass; the tables that drop let
the mark through (`gates`); `unmark` takes it away again, before anybody behind could mistake it.

    podsN      addresses whose packets are marked, from them and to them
    ingressN   those of them that not everybody may reach
    nearN      of those, address and bridge by which its neighbours come

What conntrack calls invalid is never marked: it is the host's own rules' business (kubernetes/kubernetes#74839).
"""

from __future__ import annotations

import struct

from nodeplug.cni.filter.families import FOUR, SIX, Rule, destination, is_family, source
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import IFNAME, INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.filter.families import Family
    from nodeplug.kernel.netlink import Message

MARK = 0x1000
"""The bit. kube-proxy has 0x4000 and 0x8000, the reference portmap 0x2000, Calico all above 0xffff."""

FORWARD = "forward"
UNMARK = "unmark"
PRIORITY = -250
"""Of `forward`: behind raw and conntrack, before every chain of iptables'."""

_TABLE = "nodeplug"
_ANSWERS = x.STATE_ESTABLISHED | x.STATE_RELATED


def bridge_key(name: str) -> bytes:
    """A link's name as the kernel compares it."""
    return name.encode("utf-8", "surrogateescape").ljust(IFNAME.size, b"\0")


def sets(family: int) -> list[Message]:
    """The sets and chains of one family; EEXIST when its first set is there."""
    of = _family(family)
    near = (of.address, IFNAME)
    return [
        messages.add_set(INET, _TABLE, of.name("pods"), (of.address,), comment="pods", exclusive=True),
        messages.add_set(INET, _TABLE, of.name("ingress"), (of.address,), comment="pods with an ingress policy"),
        messages.add_set(INET, _TABLE, of.name("near"), near, comment="pod, bridge of those that may reach it"),
        messages.add_base_chain(INET, _TABLE, FORWARD, type="filter", hook=messages.FORWARD, priority=PRIORITY),
        messages.add_base_chain(INET, _TABLE, UNMARK, type="filter", hook=messages.POSTROUTING, priority=-300),
    ]


def rules(family: int) -> list[Rule]:
    """The rules of one family, in order."""
    of = _family(family)
    name = f"IPv{family}"
    pods, ingress = x.lookup(of.name("pods")), x.lookup(of.name("ingress"))
    outside = x.lookup(of.name("near"), inverted=True)
    open_to_all = x.lookup(of.name("ingress"), inverted=True)
    src, dst = source(of), destination(of)
    return [
        Rule(
            chain=FORWARD,
            title=f"from other pods to one with an ingress policy, {name}",
            parts=(
                *is_family(of),
                *_state(_ANSWERS, x.EQ),
                dst,
                ingress,
                src,
                pods,
                dst,
                x.meta(x.META_IIFNAME, of.after),
                outside,
                x.verdict(x.DROP),
            ),
        ),
        Rule(
            chain=FORWARD,
            title=f"from pods, {name}",
            parts=(*is_family(of), *_state(x.STATE_INVALID, x.EQ), src, pods, *_marked()),
        ),
        Rule(
            chain=FORWARD,
            title=f"to pods, {name}",
            parts=(*is_family(of), *_state(x.STATE_INVALID, x.EQ), dst, pods, open_to_all, *_marked()),
        ),
        Rule(
            chain=FORWARD,
            title=f"answers to pods, {name}",
            parts=(*is_family(of), *_state(_ANSWERS, x.NEQ), dst, pods, *_marked()),
        ),
        Rule(
            chain=FORWARD,
            title=f"to host ports of pods, {name}",
            parts=(
                *is_family(of),
                *_state(x.STATE_INVALID, x.EQ),
                x.ct(x.CT_STATUS),
                x.bitwise(_word(x.STATUS_DNAT)),
                x.cmp(x.NEQ, bytes(4)),
                dst,
                pods,
                *_marked(),
            ),
        ),
        Rule(
            chain=UNMARK,
            title=f"the mark has served, {name}",
            parts=(*is_family(of), *has_mark(), x.meta(x.META_MARK), x.bitwise(_word(~MARK)), x.set_meta(x.META_MARK)),
        ),
    ]


def has_mark() -> tuple[bytes, ...]:
    """`meta mark & MARK == MARK`, which iptables-nft reads as `-m mark --mark MARK/MARK`."""
    return x.meta(x.META_MARK), x.bitwise(_word(MARK)), x.cmp(x.EQ, _word(MARK))


def _marked() -> tuple[bytes, ...]:
    """meta mark set meta mark | MARK"""
    return (
        x.meta(x.META_MARK),
        x.bitwise(_word(~MARK), xor=_word(MARK)),
        x.set_meta(x.META_MARK),
        x.verdict(x.ACCEPT),
    )


def _state(bits: int, operation: int) -> tuple[bytes, ...]:
    """Go on only if none (EQ) or one (NEQ) of these states is the connection's."""
    return x.ct(x.CT_STATE), x.bitwise(_word(bits)), x.cmp(operation, bytes(4))


def _word(value: int) -> bytes:
    return struct.pack("=I", value & 0xFFFFFFFF)


def _family(number: int) -> Family:
    return FOUR if number == 4 else SIX
