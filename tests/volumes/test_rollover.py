"""Authorities and roots are replaced without a moment in which a pod is refused that should not be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeplug.core.errors import NotFound, Refused, TryAgain
from nodeplug.volumes.identity import certificates, node
from nodeplug.volumes.identity.authority import LONGEST_TTL, SKEW, Authority
from nodeplug.volumes.identity.issuing import Ask, issue_here
from nodeplug.volumes.identity.layouts import Credential
from nodeplug.volumes.identity.operator import Operator
from nodeplug.volumes.identity.store import Store
from tests.ledger import Ledger
from tests.volumes.authorities import DAY, DOMAIN, HOUR, Domain
from tests.volumes.injection import killed_at

START = 1_700_000_000


def alone(directory: Path, *, root_days: int = 3650, node_days: int = 30) -> Store:
    store = Store(str(directory / "ca"))
    node.init(store, DOMAIN, now=START, root_days=root_days, node_days=node_days, constrained=True)
    return store


def credential(store: Store, now: int, *, ttl: int = LONGEST_TTL) -> Credential:
    ask = Ask(name=f"spiffe://{DOMAIN}/ns/shop/sa/web", ttl=ttl, key_type="ECDSAP256")
    return issue_here(store, ask, now=now, log=f"{os.path.dirname(store.directory)}/log")


def root_of(made: Credential) -> str:
    """The root that the chain ends in, by the name its last certificate gives."""
    last = certificates.read(made.chain)[-1]
    return next(each.id for each in certificates.read(made.roots) if certificates.is_signed_by(last, each))


def test_alone_a_node_replaces_root_and_authority_for_ever_and_nobody_is_refused(directory: Path) -> None:
    """Three roots' lives, hour by hour: what is signed is known everywhere before, and for as long as it is valid."""
    store = alone(directory, root_days=12, node_days=3)
    shown: dict[str, tuple[int, int]] = {}  # root -> first and last hour in the bundle
    leaves: list[tuple[str, int, int]] = []
    hours = 24 * 30
    for hour in range(hours):
        now = START + hour * HOUR
        found = node.maintain(store, now=now, node_days=3, overlap=DAY)
        assert found.trouble == ""
        authority = store.load()
        for root in authority.roots:
            first, _last = shown.get(root.id, (now, now))
            shown[root.id] = (first, now)
        if hour % 6 == 0:
            made = credential(store, now)
            assert made.not_after - now >= LONGEST_TTL // 2
            leaves.append((root_of(made), now, made.not_after))
        assert len(authority.roots) <= 2
        assert len(list(Path(store.directory).glob("*.key"))) <= 2
    assert len(shown) >= 4
    first_root = leaves[0][0]
    for root, signed, ends in leaves:
        since, last = shown[root]
        assert root == first_root or since <= signed - DAY, "every pod has had it for a day"
        assert last >= min(ends, START + (hours - 1) * HOUR) - HOUR, "and has it until it is of no use"
    gone = set(shown) - {root.id for root in store.load().roots}
    kept = {path.name.removesuffix(".key") for path in (directory / "ca" / "root").glob("*.key")}
    assert gone and not gone & kept, "keys of roots that are gone are gone"


def test_what_is_not_due_is_not_done(directory: Path) -> None:
    store = alone(directory)
    before = store.load()
    stamp = os.stat(f"{store.directory}/authority.json").st_mtime_ns
    for day in range(19):
        assert node.maintain(store, now=START + day * DAY, node_days=30, overlap=DAY).done == ()
    assert store.load() == before
    assert os.stat(f"{store.directory}/authority.json").st_mtime_ns == stamp


def test_a_node_below_a_shared_root_asks_its_operator_in_time(directory: Path) -> None:
    domain = Domain(directory)
    store = domain.node("a", days=90)
    assert node.maintain(store, now=domain.now + 59 * DAY, node_days=30, overlap=DAY).trouble == ""
    trouble = node.maintain(store, now=domain.now + 61 * DAY, node_days=30, overlap=DAY).trouble
    assert "expires in 29 days" in trouble
    assert "nodeplug identity request" in trouble
    domain.now += 61 * DAY
    domain.accept(store, days=90)
    assert node.maintain(store, now=domain.now, node_days=30, overlap=DAY).trouble == ""


def test_a_signer_under_a_new_root_waits_until_every_pod_has_the_root(directory: Path) -> None:
    domain = Domain(directory)
    store = domain.node("a")
    domain.operator.prepare(now=domain.now)
    domain.operator.activate(now=domain.now + DAY, overlap=DAY)  # nobody took the bundle to the nodes
    domain.accept(store)
    waiting = store.load()
    assert waiting.coming is not None
    assert waiting.coming.since == domain.now + DAY
    assert domain.credential(store).signer == waiting.signer.id  # type: ignore[union-attr]  # it has one
    half = node.maintain(store, now=domain.now + DAY - 60, node_days=30, overlap=DAY)
    assert (half.done, half.after) == ((), 60)
    later = node.maintain(store, now=domain.now + DAY, node_days=30, overlap=DAY)
    assert "signs from now on" in later.done[0]
    domain.now += DAY
    assert domain.credential(store).signer == waiting.coming.id


def test_issuing_does_not_wait_for_somebody_to_write_down_that_the_time_has_come(directory: Path) -> None:
    domain = Domain(directory)
    store = domain.node("a")
    domain.operator.prepare(now=domain.now)
    domain.operator.activate(now=domain.now + DAY, overlap=DAY)
    domain.accept(store)
    coming = store.load().coming
    assert coming is not None
    domain.now += DAY
    assert domain.credential(store).signer == coming.id


class TestDropping:
    """A root goes by command, and not before what this node signed under it is over."""

    def test_the_root_of_the_signer_cannot_go(self, directory: Path) -> None:
        store = Domain(directory).node("a")
        with pytest.raises(Refused, match="nodeplug identity request"):
            node.drop_root(store, store.load().roots[0].id, now=START)

    def test_the_old_one_goes_when_its_last_leaf_is_over(self, directory: Path) -> None:
        domain, store, old = self._changed(directory)
        after = node.drop_root(store, old, now=domain.now)
        assert after.find(old) is not None
        ends = domain.now + LONGEST_TTL + SKEW
        assert after.find(old).until == ends  # type: ignore[union-attr]  # as above
        assert node.maintain(store, now=ends - 1, node_days=1, overlap=DAY).done == ()
        assert node.maintain(store, now=ends, node_days=1, overlap=DAY).done == (f"root {old} has left the bundles",)
        assert store.load().find(old) is None

    def test_without_a_command_it_stays_for_other_nodes_may_sign_under_it(self, directory: Path) -> None:
        domain, store, old = self._changed(directory)
        node.maintain(store, now=domain.now + 300 * DAY, node_days=1, overlap=DAY)
        assert store.load().find(old) is not None

    def test_one_that_is_not_there_is_named(self, directory: Path) -> None:
        store = Domain(directory).node("a")
        with pytest.raises(NotFound, match=store.load().roots[0].id):
            node.drop_root(store, "another", now=START)

    def _changed(self, directory: Path) -> tuple[Domain, Store, str]:
        domain = Domain(directory)
        store = domain.node("a")
        old = store.load().roots[0].id
        domain.operator.prepare(now=domain.now)
        node.accept(store, domain.roots(), now=domain.now, overlap=DAY)
        domain.now += DAY
        domain.operator.activate(now=domain.now, overlap=DAY)
        domain.accept(store)
        return domain, store, old


class TestOperator:
    """The operator's own directory."""

    def test_a_root_signs_only_after_it_was_shown_long_enough(self, directory: Path) -> None:
        domain = Domain(directory)
        first = domain.operator.load().active
        domain.operator.prepare(now=domain.now)
        with pytest.raises(TryAgain, match="less than 24 hours"):
            domain.operator.activate(now=domain.now + DAY - 1, overlap=DAY)
        assert domain.operator.load().active == first
        domain.operator.activate(now=domain.now + DAY, overlap=DAY)
        assert domain.operator.load().active != first

    def test_the_old_root_stays_while_an_authority_below_it_is_valid(self, directory: Path) -> None:
        domain = Domain(directory)
        domain.node("a", days=90)
        domain.operator.prepare(now=domain.now)
        domain.operator.activate(now=domain.now + DAY, overlap=DAY)
        with pytest.raises(TryAgain):
            domain.operator.drop(now=domain.now + 89 * DAY)
        assert len(domain.operator.drop(now=domain.now + 90 * DAY + 1).roots) == 1

    def test_or_until_the_operator_says_that_all_nodes_have_changed(self, directory: Path) -> None:
        domain = Domain(directory)
        domain.node("a", days=90)
        domain.operator.prepare(now=domain.now)
        domain.operator.activate(now=domain.now + DAY, overlap=DAY)
        now = domain.now + 3 * DAY
        assert len(domain.operator.drop(now=now, used=now).roots) == 1
        assert len(list((directory / "root").glob("*.key"))) == 1

    def test_there_is_one_first_root(self, directory: Path) -> None:
        domain = Domain(directory)
        with pytest.raises(Refused, match="roll-root"):
            domain.operator.init("other.org", now=START, days=9, key_type="ECDSAP256", constrained=True)


def test_a_node_has_one_authority(directory: Path) -> None:
    store = alone(directory)
    with pytest.raises(Refused, match="nodeplug identity status"):
        node.init(store, DOMAIN, now=START, root_days=9, node_days=9, constrained=True)


def test_a_node_that_was_alone_can_join_others(directory: Path) -> None:
    store = alone(directory)
    domain = Domain(directory / "shared")
    domain.now = START
    domain.accept(store)
    joined = store.load()
    assert not joined.alone
    assert len(joined.roots) == 2
    assert joined.coming is not None


def _whole(store: Store) -> Authority:
    """The authority, after making sure that it can sign and that no key lies about."""
    found = store.load()
    here = {path.name for path in Path(store.directory).glob("*.key")}
    assert here - {"request.key"} == {f"{key}.key" for key in found.keys}
    return found


def _to_be_rolled(directory: Path) -> tuple[Store, int]:
    """An alone node on the day when its next root may sign."""
    store = alone(directory, root_days=12, node_days=12)
    now = START + 8 * DAY
    node.maintain(store, now=now, node_days=12, overlap=DAY)
    assert len(store.load().roots) == 2
    return store, now + DAY


@pytest.mark.parametrize("what", ["init", "accept", "roll", "dropped"])
def test_killed_at_any_step_the_same_again_finishes_it(ledger: Ledger, what: str) -> None:
    step = 0
    reached = True
    while reached:
        store, work, now = _work(what, ledger.directory())
        reached = killed_at(step, work)
        if store.exists():
            store.load()
        if what in ("roll", "dropped"):
            credential(store, now, ttl=HOUR)
        work()
        if what == "roll":
            for later in (now, now + DAY, now + 2 * DAY + SKEW):
                node.maintain(store, now=later, node_days=12, overlap=DAY)
        found = _whole(store)
        assert found.signer is not None
        if what in ("roll", "dropped"):
            assert len(Operator(store.root).load().roots) == 1
            assert len(list(Path(store.root).glob("*.key"))) == 1
        assert root_of(credential(store, now + 3 * DAY, ttl=HOUR)) in {root.id for root in found.roots}
        step += 1
    assert step > 8


def _work(what: str, directory: Path) -> tuple[Store, Callable[[], object], int]:
    if what == "init":
        store = Store(str(directory / "ca"))

        def init() -> None:
            if not store.exists():
                node.init(store, DOMAIN, now=START, root_days=90, node_days=30, constrained=True)

        return store, init, START
    if what == "accept":
        domain = Domain(directory)
        domain.now = START
        store = domain.node("a")
        asked = node.request(store, name="a", key_type="ECDSAP256")
        file = domain.operator.sign(asked, now=START, days=90).pem.encode()
        return store, lambda: node.accept(store, file, now=START, overlap=DAY), START
    store, now = _to_be_rolled(directory)
    if what == "dropped":
        node.maintain(store, now=now, node_days=12, overlap=DAY)
        now += DAY + SKEW
    return store, lambda: node.maintain(store, now=now, node_days=12, overlap=DAY), now
