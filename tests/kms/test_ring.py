"""The rules by which keys live, on values alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import NotFound, Refused
from nodeplug.kms.keyring.ring import DESTROY_AFTER, Entry, Export, Ring, Standing, State
from nodeplug.kms.keyring.store import new_entry, new_ring

DAY = 86400


def entry(generation: int) -> Entry:
    return Entry(generation, 1, f"{generation:08x}", b"wrapped")


def ring(*states: State) -> Ring:
    entries = tuple(entry(n + 1) for n in range(len(states)))
    standings = {n + 1: Standing(state, 1000) for n, state in enumerate(states)}
    return Ring("00" * 16, 1, entries, standings, highest=len(states))


def test_a_key_id_is_public_short_and_from_the_ring_alone() -> None:
    one, other = ring(State.ACTIVE), ring(State.DECRYPT_ONLY)
    assert one.key_id(one.entries[0]) == other.key_id(other.entries[0]) == "np1-374708fff771-1-00000001"


def test_activation_takes_over_from_the_active_key() -> None:
    found = ring(State.ACTIVE, State.PENDING)
    after = found.activate(found.entries[1], 5000)
    assert [after.state(item) for item in after.entries] == [State.DECRYPT_ONLY, State.ACTIVE]
    assert after.standings[1].since == 5000
    assert after.activate(after.entries[1], 6000) is after


@pytest.mark.parametrize("state", [State.DECRYPT_ONLY, State.RETIRED, State.DESTROYED])
def test_a_key_never_comes_back_into_use(state: State) -> None:
    found = ring(state, State.ACTIVE)
    with pytest.raises(Refused, match="never put to use twice"):
        found.activate(found.entries[0], 5000)


def test_an_older_pending_key_is_not_activated_over_a_newer_one() -> None:
    found = ring(State.PENDING, State.ACTIVE)
    with pytest.raises(Refused, match="older than the active"):
        found.activate(found.entries[0], 5000)


def test_a_second_key_waits_until_the_first_is_used() -> None:
    with pytest.raises(Refused, match="pending already"):
        ring(State.ACTIVE, State.PENDING).refuse_second_pending()


def test_the_active_key_is_not_retired() -> None:
    found = ring(State.ACTIVE)
    with pytest.raises(Refused, match="is active"):
        found.retire(found.entries[0], 5000)


def test_a_retired_key_decrypts_again_but_never_encrypts() -> None:
    found = ring(State.DECRYPT_ONLY, State.ACTIVE)
    retired = found.retire(found.entries[0], 5000)
    back = retired.reinstate(retired.entries[0], 6000)
    assert back.state(back.entries[0]) is State.DECRYPT_ONLY
    with pytest.raises(Refused):
        back.reinstate(back.entries[0], 7000)


def test_only_an_old_retired_and_exported_key_is_destroyed() -> None:
    found = ring(State.DECRYPT_ONLY, State.ACTIVE)
    first = found.entries[0]
    with pytest.raises(Refused, match="decrypt-only"):
        found.destroy(first, 5000)
    retired = found.retire(first, 5000)
    with pytest.raises(Refused, match="89 days; 90 are needed"):
        retired.destroy(first, 5000 + 89 * DAY)
    with pytest.raises(Refused, match="no export"):
        retired.destroy(first, 5000 + DESTROY_AFTER)
    exported = Ring(
        retired.ring_id, 1, retired.entries, retired.standings, retired.highest, exports=(Export(10, (1, 2)),)
    )
    after = exported.destroy(first, 5000 + DESTROY_AFTER)
    assert after.entries[0].wrapped == b""
    assert after.state(after.entries[0]) is State.DESTROYED
    assert after.highest == 2


def test_a_clock_that_went_back_does_not_make_a_key_older() -> None:
    found = ring(State.DECRYPT_ONLY, State.ACTIVE)
    retired = found.retire(found.entries[0], 10**9)
    with pytest.raises(Refused, match="0 days"):
        retired.destroy(found.entries[0], 1000)


def test_the_fingerprint_is_about_keys_held_not_about_states() -> None:
    found = ring(State.ACTIVE, State.PENDING)
    assert found.fingerprint == found.activate(found.entries[1], 1).fingerprint
    assert found.fingerprint != ring(State.ACTIVE).fingerprint


def test_a_merge_brings_what_is_missing_and_changes_no_state() -> None:
    here, there = ring(State.ACTIVE), ring(State.DECRYPT_ONLY, State.RETIRED, State.ACTIVE)
    after = here.merge(there, 5000)
    assert [after.state(item) for item in after.entries] == [State.ACTIVE, State.RETIRED, State.PENDING]
    assert after.fingerprint == there.fingerprint
    assert after.merge(there, 6000) == after


def test_a_merge_of_two_keys_of_one_generation_is_refused() -> None:
    here, there = ring(State.ACTIVE, State.PENDING), ring(State.ACTIVE)
    there = there.add(Entry(2, 1, "ffffffff", b"wrapped"), State.PENDING, 1)
    with pytest.raises(Refused, match="different keys of generation 2"):
        here.merge(there, 5000)


def test_a_merge_brings_a_destroyed_key_back_as_a_retired_one() -> None:
    there = ring(State.RETIRED, State.ACTIVE)
    gone = Entry(1, 1, "00000001", b"")
    here = Ring(
        there.ring_id,
        1,
        (gone, there.entries[1]),
        {1: Standing(State.DESTROYED, 1), 2: Standing(State.ACTIVE, 1)},
        highest=2,
    )
    after = here.merge(there, 5000)
    assert after.entries[0].wrapped
    assert after.state(after.entries[0]) is State.RETIRED


def test_another_ring_is_not_merged() -> None:
    with pytest.raises(Refused, match="another ring"):
        ring(State.ACTIVE).merge(Ring("11" * 16, 1, (), {}, 0), 1)


def test_an_unknown_key_is_named_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="np1-374708fff771-1-00000001"):
        ring(State.ACTIVE).find("np1-other")


VERBS = ("add", "activate", "retire", "reinstate", "destroy")


@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 6), st.integers(0, 200 * DAY)), max_size=40))
def test_whatever_is_done_no_key_id_is_used_twice_and_at_most_one_is_active(
    steps: list[tuple[str, int, int]],
) -> None:
    opened = new_ring(nodes=1, now=0)
    found, key = opened.ring, opened.ring_key
    seen = {found.key_id(found.entries[0])}
    was_active: list[int] = [1]
    now = 0
    for verb, which, later in steps:
        now += later
        target = found.entries[which % len(found.entries)]
        try:
            if verb == "add":
                fresh = new_entry(found.ring_id, key, found.highest + 1, now)
                name = found.key_id(fresh)
                assert name not in seen
                seen.add(name)
                found = found.add(fresh, State.PENDING, now)
            elif verb == "activate":
                found = found.activate(target, now)
            elif verb == "retire":
                found = found.retire(target, now)
            elif verb == "reinstate":
                found = found.reinstate(target, now)
            else:
                found = found.destroy(target, now)
        except Refused:
            continue
        active = [item.generation for item in found.entries if found.state(item) is State.ACTIVE]
        assert len(active) == 1
        if active[0] != was_active[-1]:
            assert active[0] > max(was_active)
            was_active.append(active[0])
        assert all(item.wrapped for item in found.entries if found.state(item) is not State.DESTROYED)
