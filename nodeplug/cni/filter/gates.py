"""Base chains of other tables that drop what the host forwards, and whether they let marked packets through. Read-only.

A packet passes only if no base chain of the hook drops it, whichever table that is in: iptables-nft's, one of
iptables-legacy (which nf_tables does not see), or one that somebody wrote for nft. `opening` opens those that are
closed.
"""

from __future__ import annotations

from nodeplug.cni.filter.layout import TABLE
from nodeplug.cni.filter.passage import MARK, PRIORITY
from nodeplug.core.record import Record
from nodeplug.kernel import xtables
from nodeplug.kernel.attributes import attrs, number, text
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import INET, IPV4, IPV6
from nodeplug.kernel.xtables import ACCEPT, DROP, GOTO, JUMP, OTHER, RETURN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.nft.expressions import Expression

NFT = "nft"
IPTABLES_NFT = "iptables-nft"
IPTABLES_LEGACY = "iptables-legacy"

CHAIN = "CNI-FORWARD"
"""Of iptables': the reference plugin's, so that both find what either made."""
ADMIN = "CNI-ADMIN"

_FORWARD = "FORWARD"
_IPTABLES = ("filter", "mangle", "security")
"""iptables' tables with a chain FORWARD."""

_NUMBERS = {4: IPV4, 6: IPV6}
_PASSIVE = ("counter", "log", "immediate", "reject", "objref", "notrack")
_REJECTING = ("REJECT", "DROP")


class Step(Record):
    """One rule as seen here; `target` and `chain` as in `xtables.Rule`."""

    unconditional: bool
    target: str
    chain: str = ""
    mark: tuple[int, int] | None = None
    handle: int = 0

    @property
    def admits(self) -> bool:
        """Whether it is the one that lets marked packets through."""
        return self.target == ACCEPT and self.mark == (MARK, MARK)


class Gate(Record):
    """A base chain that drops, or may come to."""

    backend: str
    """NFT, IPTABLES_NFT or IPTABLES_LEGACY."""
    family: int
    """4 or 6; 0 for both (inet)."""
    table: str
    chain: str
    is_open: bool
    obstacle: str = ""
    """Why it cannot be opened; empty where it can be tried."""
    before: int | None = None
    """NFT: the handle of the rule that drops everything; None for the policy."""
    lacks: tuple[str, ...] = ()
    """iptables': what of our fixed rules is missing, of `chain`, `jump`, `accept`, `admin chain`, `admin jump`."""

    def __str__(self) -> str:
        if self.backend == IPTABLES_LEGACY:
            return f"{'ip6tables' if self.family == 6 else 'iptables'}-legacy's {self.table} {self.chain}"
        names = {4: "ip", 6: "ip6", 0: "inet"}
        return f"the nft chain {names[self.family]} {self.table} {self.chain}"


def find(netlink: Netlink, families: Iterable[int], *, admin: str = "") -> list[Gate]:
    """Every base chain that drops what is forwarded in these families (4, 6), or may come to.

    iptables' filter FORWARD counts wherever there is one: container engines set its policy to DROP when they start, and
    pods would be cut off that were there before. Its mangle and security count when some rule of theirs drops anything;
    chains of others when a packet that none of their particular rules is about is dropped, because those rules are what
    somebody meant. Raises OSError.
    """
    wanted = sorted(families)
    found = []
    for family in wanted:
        found += [gate for gate in _nft(netlink, _NUMBERS[family], family, admin) if gate is not None]
        found += _legacy(family, admin)
    if wanted:
        found += [gate for gate in _nft(netlink, INET, 0, "") if gate is not None]
    return found


def _nft(netlink: Netlink, number: int, family: int, admin: str) -> Iterator[Gate | None]:
    names = {table.name: table for table in messages.tables(netlink, number)}
    if not names or (number == INET and set(names) == {TABLE}):
        return
    if family and set(names) <= {*_IPTABLES, "nat", "raw"}:
        # Chains of all tables would have to be listed, and kube-proxy has thousands of them.
        known = [(table, messages.chain(netlink, number, table, _FORWARD)) for table in names if table in _IPTABLES]
        bases = [(table, chain) for table, chain in known if chain is not None and chain.hook == messages.FORWARD]
    else:
        bases = messages.base_chains(netlink, number, messages.FORWARD)
    for table, chain in bases:
        if (number, table) == (INET, TABLE) or chain.type != "filter":
            continue
        policy = DROP if chain.policy == messages.POLICY_DROP else ACCEPT
        steps = _read(messages.rules(netlink, number, table))
        if family and table in _IPTABLES and chain.name == _FORWARD:
            yield _iptables(IPTABLES_NFT, family, table, steps, policy, admin)
            continue
        obstacle = ""
        if names[table].owned:
            obstacle = "its table belongs to a running program, which alone can change it"
        elif chain.priority is not None and chain.priority <= PRIORITY:
            obstacle = f"its priority {chain.priority} is before ours, {PRIORITY}, where pods' packets are marked"
        yield _native(family, table, chain.name, steps, policy, obstacle)


def _legacy(family: int, admin: str) -> list[Gate]:
    found = []
    for name in xtables.tables(family):
        table = xtables.read(family, name) if name in _IPTABLES else None
        if table is None or _FORWARD not in table.policies:
            continue
        steps = {chain: [_legacy_step(rule) for rule in rules] for chain, rules in table.chains.items()}
        gate = _iptables(IPTABLES_LEGACY, family, name, steps, table.policies[_FORWARD], admin)
        if gate is not None:
            found.append(gate)
    return found


def _legacy_step(rule: xtables.Rule) -> Step:
    target = DROP if rule.target == OTHER and rule.chain in _REJECTING else rule.target
    return Step(unconditional=rule.unconditional, target=target, chain=rule.chain, mark=rule.mark)


def _iptables(
    backend: str, family: int, table: str, steps: Mapping[str, Sequence[Step]], policy: str, admin: str
) -> Gate | None:
    """The gate of one of iptables' FORWARD chains; None for one that drops nothing."""
    if table != "filter" and not may_drop(steps, _FORWARD, policy):
        return None
    named, admin = bool(admin) and table == "filter", admin or ADMIN
    lacks = []
    if CHAIN not in steps:
        lacks.append("chain")
    if not _leads(steps, _FORWARD, CHAIN):
        lacks.append("jump")
    if not any(step.admits for step in steps.get(CHAIN, ())):
        lacks.append("accept")
    # Where there was no iptables to ask, the rule for the mark stands in FORWARD itself.
    is_open = not lacks or any(step.admits for step in steps.get(_FORWARD, ()))
    if table == "filter" and admin not in steps:
        lacks.append("admin chain")
    if table == "filter" and not _leads(steps, CHAIN, admin):
        lacks.append("admin jump")
    return Gate(
        backend=backend,
        family=family,
        table=table,
        chain=_FORWARD,
        is_open=is_open and not (named and lacks),
        lacks=tuple(lacks),
    )


def _leads(steps: Mapping[str, Sequence[Step]], chain: str, to: str) -> bool:
    """Whether every packet of the chain goes on to the other."""
    return any(step.unconditional and (step.target, step.chain) == (JUMP, to) for step in steps.get(chain, ()))


def _native(
    family: int, table: str, chain: str, steps: Mapping[str, Sequence[Step]], policy: str, obstacle: str
) -> Gate | None:
    """The gate of somebody's own chain; None when it does not drop by default."""
    before: int | None = None
    admitted = False
    for step in steps.get(chain, ()):
        if step.admits:
            admitted = True
        outcome = _outcome(steps, step, frozenset({chain}))
        if outcome == DROP:
            before = step.handle
            break
        if outcome == ACCEPT:
            return None
    else:
        if policy != DROP:
            return None
    return Gate(
        backend=NFT, family=family, table=table, chain=chain, is_open=admitted, obstacle=obstacle, before=before
    )


def _outcome(steps: Mapping[str, Sequence[Step]], step: Step, above: frozenset[str]) -> str:
    """DROP or ACCEPT for a rule by which every packet ends so; "" for one that leaves some to those behind it."""
    if not step.unconditional:
        return ""
    if step.target in (DROP, ACCEPT):
        return step.target
    if step.target not in (JUMP, GOTO) or step.chain in above:
        return ""
    for inner in steps.get(step.chain, ()):
        if inner.unconditional and inner.target == RETURN:
            return ""
        outcome = _outcome(steps, inner, above | {step.chain})
        if outcome:
            return outcome
    return ""


def may_drop(steps: Mapping[str, Sequence[Step]], chain: str, policy: str) -> bool:
    """Whether some rule that a packet of the chain may come to drops it, or the policy does."""
    if policy == DROP:
        return True
    seen, waiting = set[str](), [chain]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for step in steps.get(name, ()):
            if step.target == DROP:
                return True
            if step.target in (JUMP, GOTO):
                waiting.append(step.chain)
    return False


def _read(rules: Iterable[messages.Rule]) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for rule in rules:
        found.setdefault(rule.chain, []).append(_step(rule))
    return found


_TARGETS = {x.ACCEPT: ACCEPT, x.DROP: DROP, x.RETURN: RETURN, x.JUMP: JUMP, x.GOTO: GOTO}


def _step(rule: messages.Rule) -> Step:
    unconditional, target, chain = True, OTHER, ""
    for part in rule.expressions:
        verdict = x.read_verdict(part)
        if verdict is not None:
            target, chain = _TARGETS.get(verdict[0], OTHER), verdict[1]
        elif part.name == "reject" or (part.name == "target" and _named(part) in _REJECTING):
            target = DROP
        elif part.name not in _PASSIVE and not (part.name == "match" and _named(part) == "comment"):
            unconditional = unconditional and part.name == "target"
    return Step(
        unconditional=unconditional, target=target, chain=chain, mark=_mark(rule.expressions), handle=rule.handle
    )


def _named(part: Expression) -> str:
    return text(dict(part.attributes).get(1))


def _mark(parts: Sequence[Expression]) -> tuple[int, int] | None:
    """(value, mask) of a rule that matches the packet's mark and nothing else; in nft's own words, or iptables'."""
    matching = [part for part in parts if part.name not in _PASSIVE and _named_comment(part) is False]
    if [part.name for part in matching] == ["match"] and _named(matching[0]) == "mark":
        info = dict(matching[0].attributes).get(3, b"")
        return xtables.mark(info)
    if [part.name for part in matching] != ["meta", "bitwise", "cmp"] or matching[0].number(2) != x.META_MARK:
        return None
    mask, value = (_data(part, type) for part, type in ((matching[1], 4), (matching[2], 3)))
    xor = _data(matching[1], 5)
    if matching[2].number(2) != x.EQ or any(xor) or len(mask) != 4 or len(value) != 4:
        return None
    return _host(value), _host(mask)


def _named_comment(part: Expression) -> bool:
    return part.name == "match" and _named(part) == "comment"


def _data(part: Expression, type: int) -> bytes:

    return attrs(dict(part.attributes).get(type, b"")).get(1, b"")


def _host(value: bytes) -> int:

    return number(value)
