"""From values to what the table must hold for one attachment. Pure.

A `Share` is what one plugin wants: bridge and ptp have MASQUERADE, portmap has PORTS, firewall has PASSAGE; each adds
and removes its own.
"""

from __future__ import annotations

from nodeplug.cni.filter import layout
from nodeplug.cni.filter.layout import PROTOCOLS, Subnet
from nodeplug.core import inet
from nodeplug.core.inet import Ip
from nodeplug.core.record import Record
from nodeplug.kernel.nft.wire import concat, port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Mapping as Dictionary
    from typing import TypeVar

    from nodeplug.core.inet import Net

    T = TypeVar("T")
    PerProtocol = Dictionary[tuple[int, str], T]

MASQUERADE = "masquerade"
PORTS = "ports"
PASSAGE = "passage"


class Entry(Record):
    """One element of the table. `chain` is where a verdict map's leads; `claim` the host port it serves."""

    set: str
    key: bytes
    data: bytes = b""
    chain: str = ""
    claim: str = ""


class Flow(Record):
    """What a pod answers for its host ports: with it go the tracked flows when the pod goes."""

    address: Ip
    protocol: str
    ports: tuple[int, ...]  # the pod's


class Condition(Record):
    """Rules of a pod's own chain, in nft's words; `family` is 4 or 6."""

    family: int
    rules: tuple[str, ...]


class Share(Record):
    """All that one plugin wants in the table for one attachment."""

    part: str  # MASQUERADE, PORTS or PASSAGE
    subnets: tuple[Subnet, ...] = ()
    entries: tuple[Entry, ...] = ()
    flows: tuple[Flow, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def claims(self) -> tuple[str, ...]:
        """Host ports this share must have for itself, e.g. `tcp-8080/0.0.0.0`."""
        return tuple(dict.fromkeys(entry.claim for entry in self.entries if entry.claim))

    @property
    def families(self) -> tuple[int, ...]:
        """4 and 6, as its elements have them."""
        return tuple(sorted({4 if ":" not in entry.claim else 6 for entry in self.entries if entry.claim}))

    @property
    def is_masqueraded(self) -> bool:
        """Whether connections to its host ports may come from the pod itself, its neighbours, or 127.0.0.1."""
        return any(entry.set.startswith(("snat", "all")) for entry in self.entries)

    @property
    def reached_by_loopback(self) -> tuple[bytes, ...]:
        """The pod's IPv4 addresses that a connection to the host's 127.0.0.1 may lead to."""
        return tuple(
            dict.fromkeys(
                entry.key[:4]
                for entry in self.entries
                if entry.set in ("snat4", "all4") and entry.claim.partition("/")[2].startswith(("0.0.0.0", "127."))
            )
        )


class Mapping(Record):
    """One host port. `host_ip` None or unspecified takes all of the host's addresses."""

    protocol: str  # tcp, udp, sctp
    host_port: int
    container_port: int
    host_ip: Ip | None = None


def masquerade(network: str, addresses: Iterable[Net]) -> Share:
    """The pod's traffic to beyond each address's own subnet, multicast apart, leaves with the host's address."""
    subnets, entries = [], []
    for address in addresses:
        subnet = Subnet(kind=layout.MASQUERADE, network=network, net=address.network)
        subnets.append(subnet)
        entries.append(Entry(set=subnet.set_name, key=address.ip.packed))
    return Share(part=MASQUERADE, subnets=tuple(dict.fromkeys(subnets)), entries=tuple(dict.fromkeys(entries)))


def ports(
    network: str,
    addresses: Sequence[Net],
    mappings: Sequence[Mapping],
    *,
    snat: bool = True,
    masq_all: bool = False,
    conditions: PerProtocol[tuple[str, ...]] | None = None,
    chain: str = "",
) -> Share:
    """The host's ports that lead to the pod; `addresses` has at most one of each family.

    A mapping whose host_ip is of the other family is passed over. `snat` masquerades the pod's neighbours, itself and
    the host's 127.0.0.1; `masq_all` with it everybody. `conditions` by family and protocol are matches in nft's words,
    of which a connection has to meet one, checked in `chain`, the attachment's own.
    """
    subnets: list[Subnet] = []
    entries: list[Entry] = []
    flows: dict[tuple[Ip, str], list[int]] = {}
    written: dict[int, list[str]] = {}
    for address in addresses:
        fitting = [mapping for mapping in mappings if mapping.host_ip is None or _fits(mapping.host_ip, address)]
        for mapping in fitting:
            only = (conditions or {}).get((address.family, mapping.protocol), ())
            entries.append(_entry(address, mapping, chain=chain if only else ""))
            if snat:
                entries.append(_snat(address, mapping, everybody=masq_all))
            written.setdefault(address.family, []).extend(_rule(address, mapping, text) for text in only)
            flows.setdefault((address.ip, mapping.protocol), []).append(mapping.container_port)
        if fitting and snat and not masq_all:
            subnet = Subnet(kind=layout.HAIRPIN, network=network, net=address.network)
            subnets.append(subnet)
            entries.append(Entry(set=subnet.set_name, key=address.ip.packed))
    return Share(
        part=PORTS,
        subnets=tuple(subnets),
        entries=tuple(dict.fromkeys(entries)),
        flows=tuple(
            Flow(address=address, protocol=protocol, ports=tuple(dict.fromkeys(found)))
            for (address, protocol), found in flows.items()
        ),
        conditions=tuple(Condition(family=family, rules=tuple(found)) for family, found in written.items() if found),
    )


def forwarded(addresses: Iterable[Ip], *, guarded: bool = False, bridge: str = "") -> Share:
    """The pod's traffic passes wherever the host forwards.

    With `guarded` no other pod may open a connection to it; of those, the ones that come by the host's link `bridge`
    may after all. Answers to its own connections pass, and so does what comes from outside as far as the host's own
    rules let it, which host ports always do.
    """
    from nodeplug.cni.filter import passage

    subnets, entries = [], []
    for ip in addresses:
        family = ip.family
        subnets.append(layout.Subnet(kind=layout.FORWARD, network="", net=inet.default(family)))
        entries.append(Entry(set=f"pods{family}", key=ip.packed))
        if guarded:
            entries.append(Entry(set=f"ingress{family}", key=ip.packed))
        if guarded and bridge:
            entries.append(Entry(set=f"near{family}", key=ip.packed + passage.bridge_key(bridge)))
    return Share(part=PASSAGE, subnets=tuple(dict.fromkeys(subnets)), entries=tuple(dict.fromkeys(entries)))


def forwarded_addresses(share: Share) -> list[Ip]:
    """The pod's addresses in a share of `forwarded`."""
    return [Ip(packed=entry.key) for entry in share.entries if entry.set in ("pods4", "pods6")]


def _fits(host_ip: Ip, address: Net) -> bool:
    return host_ip.family == address.family


def _claim(mapping: Mapping, family: int) -> str:
    anywhere = "0.0.0.0" if family == 4 else "::"
    return f"{mapping.protocol}-{mapping.host_port}/{mapping.host_ip or anywhere}"


def _entry(address: Net, mapping: Mapping, *, chain: str) -> Entry:
    claim = _claim(mapping, address.family)
    key = concat(bytes((PROTOCOLS[mapping.protocol],)), port(mapping.host_port))
    named = mapping.host_ip is not None and not mapping.host_ip.is_unspecified
    if mapping.host_ip is not None and named:
        key = mapping.host_ip.packed + key
    if chain:
        name = f"{'whenip' if named else 'when'}{address.family}"
        return Entry(set=name, key=key, chain=chain, claim=claim)
    name = f"{'hostip' if named else 'ports'}{address.family}"
    return Entry(set=name, key=key, data=concat(address.ip.packed, port(mapping.container_port)), claim=claim)


def _snat(address: Net, mapping: Mapping, *, everybody: bool) -> Entry:
    key = concat(
        address.ip.packed, bytes((PROTOCOLS[mapping.protocol],)), port(mapping.container_port), port(mapping.host_port)
    )
    name = f"{'all' if everybody else 'snat'}{address.family}"
    return Entry(set=name, key=key, claim=_claim(mapping, address.family))


def _rule(address: Net, mapping: Mapping, only: str) -> str:
    family = "ip" if address.family == 4 else "ip6"
    to = str(address.ip) if address.family == 4 else f"[{address.ip}]"
    named = mapping.host_ip is not None and not mapping.host_ip.is_unspecified
    where = f"{family} daddr {mapping.host_ip} " if named else ""
    return f"{where}{mapping.protocol} dport {mapping.host_port} {only} dnat {family} to {to}:{mapping.container_port}"
