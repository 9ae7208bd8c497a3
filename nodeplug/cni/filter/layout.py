"""The table `inet nodeplug`: its chains, sets and rules, as messages. Pure.

    prerouting, output  destinations that are the host's own go to hostports, and nothing else ever does: a rule that
                        looked at the port alone would catch traffic that pods send to other hosts (GHSA-jv3w-x3r3-g6rm)
    hostports           dnat by map: hostIP and port first, then the port alone; before them the pods with conditions
    postrouting         what was translated here and needs it is masqueraded (`mapped`); then each network's pods
    forward, unmark     what passes wherever the host forwards, once a pod wants that, see `passage`
    raw                 packets of 127.0.0.0/8 that did not come by lo are dropped: route_localnet, which lets the host
                        itself reach a pod by 127.0.0.1, would otherwise open the host's loopback to every pod

Rules grow with networks, never with pods: a pod is elements of hash sets. The rules of a network stand or fall with its
set, so that an ADD notices from one refused element (ENOENT) that they are missing.
"""

from __future__ import annotations

import struct

from nodeplug.cni.filter.families import FAMILIES, FOUR, SIX, Family, Rule, destination, is_family, source
from nodeplug.core.naming import digest
from nodeplug.core.record import Record
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.expressions import R0
from nodeplug.kernel.nft.wire import INET, INET_PROTO, INET_SERVICE, IPV4_ADDR, IPV6_ADDR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.inet import Net
    from nodeplug.kernel.netlink import Message

TABLE = "nodeplug"

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

RAW = "raw"

MASQUERADE = "masquerade"
HAIRPIN = "hairpin"
FORWARD = "forward"
"""Not of one network: the pods whose traffic passes wherever the host forwards, see `passage`."""

_LO_INDEX = 1  # of lo, in every network namespace
_LOOPBACK4 = 127
_LOOPBACK6 = bytes(15) + b"\x01"


class Subnet(Record):
    """The rules and the set of one network's pods in one subnet. `kind` is MASQUERADE or HAIRPIN.

    Or, with FORWARD, those of all pods of a family: then `network` is empty, and `net` all of the family.
    """

    kind: str
    network: str
    net: Net

    @property
    def set_name(self) -> str:
        if self.kind == FORWARD:
            return f"pods{self.net.family}"
        short = {MASQUERADE: "masq", HAIRPIN: "hairpin"}[self.kind]
        return f"{short}-{digest(f'{self.network}{chr(0)}{self.net.network}', 13)}"

    @property
    def set_names(self) -> tuple[str, ...]:
        """All sets that are made with it; `set_name` is the first, and stands for the others."""
        more = ("ingress", "near") if self.kind == FORWARD else ()
        return self.set_name, *(f"{name}{self.net.family}" for name in more)

    @property
    def title(self) -> str:
        """What `nft list` shows beside the set and its rule."""
        return f"{self.network} {self.net.network}"


def table() -> list[Message]:
    """Everything but what belongs to a network; EEXIST when there is such a table."""
    made = [messages.add_table(INET, TABLE, exclusive=True)]
    for family in FAMILIES:
        made += _sets(family)
    for name in ("hostports", "mapped", "snat4", "snat6"):
        made.append(messages.add_chain(INET, TABLE, name))
    for name, type, hook, priority in (
        (RAW, "filter", messages.PREROUTING, -300),
        ("prerouting", "nat", messages.PREROUTING, -100),
        ("output", "nat", messages.OUTPUT, -100),
        ("postrouting", "nat", messages.POSTROUTING, 100),
    ):
        made.append(messages.add_base_chain(INET, TABLE, name, type=type, hook=hook, priority=priority))
    return made + [_message(rule) for rule in rules()]


SETS = frozenset(family.name(of) for family in FAMILIES for of in ("ports", "hostip", "when", "whenip", "snat", "all"))
"""The names of the sets that `table` makes."""


def _sets(family: Family) -> list[Message]:
    pod = (family.address, INET_SERVICE)
    port = (INET_PROTO, INET_SERVICE)
    address_port = (family.address, INET_PROTO, INET_SERVICE)
    mapped = (family.address, INET_PROTO, INET_SERVICE, INET_SERVICE)
    return [
        messages.add_set(INET, TABLE, family.name("ports"), port, data=pod, comment="hostPort to pod"),
        messages.add_set(INET, TABLE, family.name("hostip"), address_port, data=pod, comment="hostIP, hostPort to pod"),
        messages.add_set(INET, TABLE, family.name("when"), port, verdicts=True, comment="hostPort with conditions"),
        messages.add_set(
            INET, TABLE, family.name("whenip"), address_port, verdicts=True, comment="hostIP, hostPort with conditions"
        ),
        messages.add_set(
            INET, TABLE, family.name("snat"), mapped, comment="pod, port, hostPort: hairpin and loopback masqueraded"
        ),
        messages.add_set(
            INET, TABLE, family.name("all"), mapped, comment="pod, port, hostPort: every source masqueraded"
        ),
    ]


def rules() -> list[Rule]:
    """The rules that `table` makes, in order."""
    return [
        *(_drop_loopback(title, offset) for title, offset in (("to 127.0.0.0/8", 16), ("from 127.0.0.0/8", 12))),
        Rule(chain="prerouting", title="hostPorts of the host's own addresses", parts=(*_local(), _jump("hostports"))),
        Rule(chain="output", title="hostPorts, IPv4", parts=(*is_family(FOUR), *_local(), _jump("hostports"))),
        Rule(
            chain="output",
            title="hostPorts, IPv6; Linux cannot route out what came from ::1",
            parts=(*_local(), *is_family(SIX), destination(SIX), x.cmp(x.NEQ, _LOOPBACK6), _jump("hostports")),
        ),
        *(rule for family in FAMILIES for rule in _conditional(family)),
        *(rule for family in FAMILIES for rule in _translated(family)),
        Rule(
            chain="postrouting",
            title="hostPorts",
            parts=(
                x.ct(x.CT_STATUS),
                x.bitwise(struct.pack("=I", x.STATUS_DNAT)),
                x.cmp(x.NEQ, bytes(4)),
                _jump("mapped"),
            ),
        ),
        *(_mapped(family, name, "all", x.masquerade()) for family in FAMILIES for name in PROTOCOLS),
        *(_mapped(family, name, "snat", _jump(family.name("snat"))) for family in FAMILIES for name in PROTOCOLS),
        Rule(
            chain="snat4",
            title="the host by 127.0.0.1",
            parts=(*is_family(FOUR), x.payload(x.NETWORK, 12, 1), x.cmp(x.EQ, bytes((_LOOPBACK4,))), x.masquerade()),
        ),
    ]


def subnet_rules(subnet: Subnet) -> list[Rule]:
    """The rules of one network's pods in one subnet."""
    if subnet.kind == FORWARD:
        from nodeplug.cni.filter import passage  # most nodes have no such pods

        return passage.rules(subnet.net.family)
    family = FOUR if subnet.net.family == 4 else SIX
    src, dst = source(family), destination(family)
    network = subnet.net.network.ip.packed
    mask = _mask(subnet.net)
    if subnet.kind == HAIRPIN:
        # A pod that reaches itself or its neighbour by a hostPort: the answer would go straight to it, untranslated.
        parts = (
            *is_family(family),
            src,
            *_masked(mask),
            x.cmp(x.EQ, network),
            dst,
            x.lookup(subnet.set_name),
            x.masquerade(),
        )
        return [Rule(chain=family.name("snat"), title=subnet.title, parts=parts)]
    parts = (
        *is_family(family),
        src,
        x.lookup(subnet.set_name),
        dst,
        *_masked(mask),
        x.cmp(x.NEQ, network),
        dst,
        x.bitwise(family.multicast_mask),
        x.cmp(x.NEQ, family.multicast),
        x.masquerade(),
    )
    return [Rule(chain="postrouting", title=subnet.title, parts=parts)]


def subnet(wanted: Subnet) -> list[Message]:
    """The set and the rules of one network's pods in one subnet; EEXIST when the set is there."""
    if wanted.kind == FORWARD:
        from nodeplug.cni.filter import passage

        return [*passage.sets(wanted.net.family), *(_message(rule) for rule in passage.rules(wanted.net.family))]
    key = (IPV4_ADDR if wanted.net.family == 4 else IPV6_ADDR,)
    made = messages.add_set(INET, TABLE, wanted.set_name, key, comment=wanted.title, exclusive=True)
    return [made, *(_message(rule) for rule in subnet_rules(wanted))]


def _message(rule: Rule) -> Message:
    return messages.add_rule(INET, TABLE, rule.chain, *rule.parts, comment=rule.title)


def _drop_loopback(title: str, offset: int) -> Rule:
    parts = (
        x.meta(x.META_IIF),
        x.cmp(x.NEQ, struct.pack("=I", _LO_INDEX)),
        *is_family(FOUR),
        x.payload(x.NETWORK, offset, 1),
        x.cmp(x.EQ, bytes((_LOOPBACK4,))),
        x.verdict(x.DROP),
    )
    return Rule(chain=RAW, title=title, parts=parts)


def _conditional(family: Family) -> list[Rule]:
    return [
        Rule(
            chain="hostports",
            title=f"hostIP with conditions, IPv{family.number}",
            parts=(*is_family(family), *_address_port(family), x.lookup(family.name("whenip"), into=0)),
        ),
        Rule(
            chain="hostports",
            title=f"with conditions, IPv{family.number}",
            parts=(*is_family(family), *_port(R0), x.lookup(family.name("when"), into=0)),
        ),
    ]


def _translated(family: Family) -> list[Rule]:
    dnat = x.dnat(family.nfproto, R0, family.after)
    return [
        Rule(
            chain="hostports",
            title=f"hostIP, IPv{family.number}",
            parts=(*is_family(family), *_address_port(family), x.lookup(family.name("hostip"), into=R0), dnat),
        ),
        Rule(
            chain="hostports",
            title=f"any address, IPv{family.number}",
            parts=(*is_family(family), *_port(R0), x.lookup(family.name("ports"), into=R0), dnat),
        ),
    ]


def _mapped(family: Family, protocol: str, of: str, then: bytes) -> Rule:
    """A connection that one of our mappings translated: `ct original proto-dst` tells it from a Service's to that pod.

    One rule a protocol, because nft has a type for that port only where the protocol is known.
    """
    parts = (
        *is_family(family),
        x.meta(x.META_L4PROTO),
        x.cmp(x.EQ, bytes((PROTOCOLS[protocol],))),
        destination(family),
        *_port(family.after),
        x.ct(x.CT_PROTO_DST, family.after + 2, direction=x.DIR_ORIGINAL),
        x.lookup(family.name(of)),
        then,
    )
    return Rule(chain="mapped", title=f"{of} {protocol}, IPv{family.number}", parts=parts)


def _local() -> tuple[bytes, ...]:
    return x.fib(x.FIB_DADDR, x.FIB_ADDRTYPE), x.cmp(x.EQ, struct.pack("=I", x.RTN_LOCAL))


def _jump(chain: str) -> bytes:
    return x.verdict(x.JUMP, chain)


def _port(register: int) -> tuple[bytes, ...]:
    """meta l4proto . th dport"""
    return x.meta(x.META_L4PROTO, register), x.payload(x.TRANSPORT, 2, 2, register + 1)


def _address_port(family: Family) -> tuple[bytes, ...]:
    """ip daddr . meta l4proto . th dport"""
    return destination(family), *_port(family.after)


def _mask(net: Net) -> bytes:
    size = len(net.ip.packed)
    return ((1 << 8 * size) - (1 << 8 * size - net.prefix)).to_bytes(size, "big")


def _masked(mask: bytes) -> tuple[bytes, ...]:
    return () if mask == b"\xff" * len(mask) else (x.bitwise(mask),)
