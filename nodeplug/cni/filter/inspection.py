"""What CHECK asks: whether a share is in effect, element by element and rule by rule. Read-only."""

from __future__ import annotations

from nodeplug.cni.filter import layout
from nodeplug.cni.filter.claims import Claims
from nodeplug.cni.filter.layout import PROTOCOLS, TABLE
from nodeplug.core.inet import Ip
from nodeplug.kernel.nft import elements, messages
from nodeplug.kernel.nft.expressions import JUMP
from nodeplug.kernel.nft.wire import INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.filter.index import Holding, Index
    from nodeplug.cni.filter.plan import Entry
    from nodeplug.kernel.netlink import Netlink

_NAMES = {number: name for name, number in PROTOCOLS.items()}


def missing(netlink: Netlink, index: Index, holding: Holding) -> list[str]:
    """What of the holding's share is not in effect, as sentences. Raises OSError."""
    share, identity = holding.share, holding.identity
    found = []
    if index.read(identity, share.part) is None:
        found.append(f"there is no record {identity}.{share.part} in {index.directory}/filter")
    claims = Claims(index)
    found += [f"host port {claim} is not claimed for it" for claim in share.claims if not claims.held(identity, claim)]
    wanted = list({(entry.set, entry.key): entry for entry in share.entries}.values())
    standing = elements.get_elements(netlink, INET, [(TABLE, entry.set, entry.key) for entry in wanted])
    for entry, element in zip(wanted, standing, strict=True):
        if element is None:
            found.append(f"{_shown(entry)} is not in {entry.set} of the nft table inet {TABLE}")
        elif (element.data, element.verdict) != (entry.data, (JUMP, entry.chain) if entry.chain else None):
            found.append(f"{_shown(entry)} in {entry.set} of the nft table inet {TABLE} leads elsewhere")
        elif not element.comment.startswith(f"{identity} "):
            found.append(f"{_shown(entry)} in {entry.set} of the nft table inet {TABLE} is {element.comment!r}")
    return found + _rules(netlink, holding)


def whole(netlink: Netlink, index: Index) -> bool:
    """Whether every rule is there and no set lacks elements, counted: what a watcher asks after others' changes."""
    live = [holding for holding in index.holdings() if not holding.owner.gone()]
    if not live:
        return True
    wanted = [*layout.rules()]
    wanted += [
        rule
        for subnet in dict.fromkeys(subnet for holding in live for subnet in holding.share.subnets)
        for rule in layout.subnet_rules(subnet)
    ]
    standing = {(rule.chain, rule.comment) for rule in messages.rules(netlink, INET, TABLE)}
    if any((rule.chain, rule.title) not in standing for rule in wanted):
        return False
    expected: dict[str, set[bytes]] = {}
    for holding in live:
        for entry in holding.share.entries:
            expected.setdefault(entry.set, set()).add(entry.key)
    counted = {item.name: item.count for item in messages.sets(netlink, INET, TABLE)}
    for name, keys in expected.items():
        if name not in counted:
            return False
        count = counted[name]
        if count is None:
            count = len(elements.dump_elements(netlink, INET, TABLE, name))
        if count < len(keys):
            return False
    return True


def _rules(netlink: Netlink, holding: Holding) -> list[str]:
    wanted = [*layout.rules(), *(rule for subnet in holding.share.subnets for rule in layout.subnet_rules(subnet))]
    listed = messages.rules(netlink, INET, TABLE)
    standing = {(rule.chain, rule.comment) for rule in listed}
    found = [
        f"the rule {rule.title!r} is not in chain {rule.chain} of the nft table inet {TABLE}"
        for rule in wanted
        if (rule.chain, rule.title) not in standing
    ]
    own = sum(len(condition.rules) for condition in holding.share.conditions)
    if own > sum(rule.chain == holding.identity for rule in listed):
        found.append(f"chain {holding.identity} of the nft table inet {TABLE} does not have all conditions")
    return found


def _shown(entry: Entry) -> str:
    """ "tcp . 8080", as nft lists it."""
    name, key = entry.set, entry.key
    parts = []
    if name.startswith("near"):
        bridge = key[-16:].rstrip(b"\0").decode("utf-8", "replace")
        return f"{Ip(packed=key[:-16])} . {bridge}"
    if not name.startswith(("ports", "when4", "when6")):
        # One of a subnet, whose name ends with any letter or digit, holds addresses and nothing else.
        size = len(key) if "-" in name else 16 if name.endswith("6") else 4
        parts.append(str(Ip(packed=key[:size])))
        key = key[size:]
    if key:
        parts.append(_NAMES.get(key[0], str(key[0])))
        parts += [str(int.from_bytes(key[n : n + 2], "big")) for n in range(4, len(key), 4)]
    return " . ".join(parts)
