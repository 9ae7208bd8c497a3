"""Host ports of the reference's portmap: a chain of iptables for each pod and the rules that lead to it, or rules in
two nft tables of its own, whose comments know the container and not the network.
"""

from __future__ import annotations

from nodeplug.cni.filter import flows
from nodeplug.cni.filter.plan import PORTS, Flow, Share
from nodeplug.cni.reference import known, names, tables
from nodeplug.cni.reference.names import ENTRIES, NAT, PORTS_CHAINS, PORTS_TABLE
from nodeplug.cni.reference.tables import NOTHING, Change
from nodeplug.core import company
from nodeplug.core.errors import Refused, doing
from nodeplug.core.inet import Ip
from nodeplug.core.record import Record
from nodeplug.core.steps import Steps
from nodeplug.kernel.netlink import netfilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from nodeplug.cni.contract import Attachment
    from nodeplug.cni.reference.rules import Rule
    from nodeplug.cni.reference.tables import Table

_FAMILIES = (4, 6)
_ANYWHERE = ("0.0.0.0", "::")


def remove(attachment: Attachment) -> None:
    """Remove the attachment's host ports, and forget the flows that used them; none there is success."""
    chains = tuple(names.chain(attachment.network, attachment.container, kind) for kind in ENTRIES)
    translated: set[Rule] = set()

    def plan(table: Table) -> Change:
        there = tuple(chain for chain in chains if table.has(chain))
        return _without(table, there, translated)

    with doing(f"cannot remove the reference plugin's host ports of {attachment}"):
        steps = Steps()
        steps.run(lambda: tables.change_iptables(NAT, plan, hints=[chain.encode() for chain in chains]))
        steps.run(lambda: _in_nft(lambda rule: rule.comment == attachment.container, translated))
        steps.run(lambda: _forget(translated))
        steps.close()


def collect(network: str, valid: Collection[Attachment]) -> None:
    """Remove the host ports of the network that belong to no attachment of `valid`.

    Rules of nft's tables name no network. Those of a container go that no runtime knows of in any network.
    """
    whole = names.ports_comments(network)
    kept = {names.ports_comment(network, attachment.container) for attachment in valid}
    translated: set[Rule] = set()

    def plan(table: Table) -> Change:
        stale = {
            rule.target
            for entry in ENTRIES.values()
            for rule in table.rules(entry)
            if rule.comment.startswith(whole) and rule.comment not in kept and _is_pods(rule.target)
        }
        return _without(table, tuple(sorted(stale)), translated)

    containers = known.containers()
    living = {attachment.container for attachment in valid}

    def is_stale(rule: Rule) -> bool:
        return containers is not None and bool(rule.comment) and rule.comment not in containers | living

    with doing(f"cannot remove the reference plugins' host ports of network {network}"):
        steps = Steps()
        steps.run(lambda: tables.change_iptables(NAT, plan))
        steps.run(lambda: _in_nft(is_stale, translated))
        steps.run(lambda: _forget(translated))
        steps.close()


def free(addresses: Collection[bytes]) -> None:
    """Remove every host port that leads to one of these addresses, which have been given to a new pod."""
    translated: set[Rule] = set()

    def plan(table: Table) -> Change:
        stale = {mapping.chain for mapping in _mappings(table) if mapping.rule.to in addresses}
        return _without(table, tuple(sorted(stale)), translated)

    with doing("cannot remove the reference plugins' host ports of addresses that are given anew"):
        steps = Steps()
        steps.run(lambda: tables.change_iptables(NAT, plan, hints=addresses))
        steps.run(lambda: _in_nft(lambda rule: rule.to in addresses or rule.destination in addresses, translated))
        steps.run(lambda: _forget(translated))
        steps.close()


def contest(
    claims: Iterable[str], addresses: Collection[bytes], attachment: Attachment, warn: Callable[[str], None]
) -> None:
    """Take the host ports of `claims` (`tcp-8080/0.0.0.0`) from pods of the reference's that are gone, and from all
    others what leads to the attachment's own addresses.

    Raises `Refused` naming the holder where one lives.
    """
    wanted = [_claim(claim) for claim in claims]
    with doing(f"cannot see whether the reference plugins have host ports of {attachment}"):
        standing = mappings()
    for mapping in standing:
        mine = mapping.container == attachment.container or mapping.rule.to in addresses
        if not mine and not any(mapping.is_in_the_way(*claim) for claim in wanted):
            continue
        if not mine and known.lives(mapping.container):
            raise Refused(
                f"hostPort {mapping} is taken by container {mapping.container or 'unknown'}, which the reference plugin"
                " gave it to",
                hint="delete its pod, or choose another port",
            )
        with doing(f"cannot remove the reference plugin's host port {mapping}"):
            _remove_mapping(mapping)
        if mapping.container != attachment.container:
            warn(
                f"host port {mapping} still led to {Ip(packed=mapping.rule.to)}, by a rule of the reference plugin for"
                f" container {mapping.container or 'unknown'}, which is gone; it was removed"
            )


def faults(share: Share, attachment: Attachment) -> list[str] | None:
    """What is missing of the share where the reference plugin made it, as sentences; None where it did not."""
    with doing(f"cannot read the reference plugin's host ports of {attachment}"):
        mine = [mapping for mapping in mappings() if mapping.container == attachment.container]
    if not mine:
        return None
    standing = {(str(mapping), mapping.rule.to, mapping.rule.to_port) for mapping in mine}
    missing = []
    for entry in share.entries:
        if not entry.claim or not entry.set.startswith(("ports", "hostip")):
            continue
        protocol, port, _ = _claim(entry.claim)
        to, to_port = entry.data[:-4], int.from_bytes(entry.data[-4:-2], "big")
        if (f"{port}/{protocol}", to, to_port) not in standing:
            missing.append(f"no rule leads from host port {port}/{protocol} to {Ip(packed=to)}:{to_port}")
    return missing


class Mapping(Record):
    """One host port as the reference has it. `chain` is its pod's, "" in nft's tables; an unknown `container` is ""."""

    family: int
    rule: Rule
    chain: str
    container: str
    network: str = ""

    def __str__(self) -> str:
        return f"{self.rule.port}/{self.rule.protocol}"

    def is_in_the_way(self, protocol: str, port: int, address: str) -> bool:
        """Whether it takes connections that a claim is to have."""
        if (self.rule.protocol, self.rule.port) != (protocol, port) or (":" in address) != (self.family == 6):
            return False
        mine = str(Ip(packed=self.rule.destination)) if self.rule.destination else ""
        return address in _ANYWHERE or mine in ("", address)


def _without(table: Table, chains: tuple[str, ...], translated: set[Rule]) -> Change:
    """What removes pods' chains and all that leads to them; `translated` is given what they translated."""
    if not chains:
        return NOTHING
    translated.update(rule for chain in chains for rule in table.rules(chain) if rule.to)
    leading = [rule for entry in ENTRIES.values() for rule in table.rules(entry) if rule.target in chains]
    return Change(rules=tuple(leading), chains=chains)


def _mappings(table: Table) -> Iterator[Mapping]:
    """Those in iptables' table nat."""
    seen = set()
    for entry in table.rules(ENTRIES["DN-"]):
        if entry.target in seen or not _is_pods(entry.target):
            continue
        seen.add(entry.target)
        network, _, container = entry.comment.removeprefix('dnat name: "').partition('" id: "')
        container = container.removesuffix('"')
        for rule in table.rules(entry.target):
            if rule.to:
                yield Mapping(family=table.family, rule=rule, chain=entry.target, container=container, network=network)


def mappings() -> list[Mapping]:
    """Every host port that the reference has. Raises OSError and errors of the house."""
    found: list[Mapping] = []

    def of_iptables(table: Table) -> Change:
        found.extend(_mappings(table))
        return NOTHING

    def of_nft(table: Table) -> Change:
        for chain in PORTS_CHAINS:
            for rule in table.rules(chain):
                if rule.to:
                    found.append(Mapping(family=table.family, rule=rule, chain="", container=rule.comment))
        return NOTHING

    tables.change_iptables(NAT, of_iptables, hints=(b"CNI-DN-",))
    for family in _FAMILIES:
        tables.change_nft(family, PORTS_TABLE, of_nft)
    return found


def _remove_mapping(mapping: Mapping) -> None:
    """With all of its pod's, which is gone."""
    translated: set[Rule] = set()
    if mapping.chain:
        tables.change_iptables(
            NAT,
            lambda table: _without(table, (mapping.chain,) if table.has(mapping.chain) else (), translated),
            hints=(mapping.chain.encode(),),
        )
    else:
        _in_nft(lambda rule: rule.comment == mapping.container, translated)
    _forget(translated)


def _in_nft(chosen: Callable[[Rule], bool], translated: set[Rule]) -> None:
    """Remove these rules from the reference's own tables."""

    def plan(table: Table) -> Change:
        found = [rule for chain in PORTS_CHAINS for rule in table.rules(chain) if chosen(rule)]
        translated.update(rule for rule in found if rule.to)
        return Change(rules=tuple(found))

    for family in _FAMILIES:
        tables.change_nft(family, PORTS_TABLE, plan)


def _forget(translated: set[Rule]) -> None:
    """The flows of before would keep their way for ever, and lead to whoever has the address then."""
    found = [
        Flow(address=Ip(packed=rule.to), protocol=rule.protocol, ports=(rule.to_port,))
        for rule in translated
        if rule.protocol in flows.STICKY
    ]
    if found:
        with company.present().lend(netfilter) as netlink:
            flows.left(netlink, Share(part=PORTS, flows=tuple(found)))


def _is_pods(chain: str) -> bool:
    return chain.startswith(tuple(f"CNI-{kind}" for kind in ENTRIES))


def _claim(text: str) -> tuple[str, int, str]:
    port, _, address = text.partition("/")
    protocol, _, number = port.partition("-")
    return protocol, int(number), address
