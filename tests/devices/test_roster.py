"""Who counts as a device over time: no id changes, none is doubled, what is gone is held as long as it should be."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from nodeplug.devices.contract import Device, Node
from nodeplug.devices.ids import LONGEST, base_of, device_id, replica_id
from nodeplug.devices.roster import Roster


def device(id: str, minor: int = 0, *, rule: int = 0, roams: bool = False) -> Device:
    return Device(id=id, nodes=(Node(f"/dev/{id}", number=("c", 250, minor)),), rule=rule, roams=roams)


def step(
    roster: Roster, found: list[Device], before: Mapping[str, Device], now: float, used: set[str] | None = None
) -> dict[str, Device]:
    roster.merge(found)
    return roster.settle(now, before, used if used is not None else set())


def test_what_is_gone_is_held_unhealthy_and_then_dropped() -> None:
    roster = Roster(60.0)
    first = step(roster, [device("a", 1), device("b", 2)], {}, 0.0)
    second = step(roster, [device("b", 2)], first, 10.0)
    assert (second["a"].healthy, second["a"].reason) == (False, "it is gone")
    assert roster.due == 70.0
    assert set(roster.settle(69.0, second, set())) == {"a", "b"}
    assert set(roster.settle(70.0, second, set())) == {"b"}


def test_what_a_pod_has_is_held_as_long_as_it_has_it() -> None:
    roster = Roster(1.0)
    first = step(roster, [device("a")], {}, 0.0)
    second = step(roster, [], first, 1.0, {"a"})
    third = roster.settle(1000.0, second, {"a"})
    assert not third["a"].healthy
    assert roster.settle(1001.0, third, set()) == {}


def test_an_interface_in_a_pod_is_well() -> None:
    roster = Roster(1.0)
    first = step(roster, [device("veth0", roams=True)], {}, 0.0)
    gone = step(roster, [], first, 1.0, None)
    assert not gone["veth0"].healthy
    assert roster.settle(1.5, gone, {"veth0"})["veth0"].healthy


def test_what_comes_back_is_well_at_once() -> None:
    roster = Roster(60.0)
    first = step(roster, [device("a", 1)], {}, 0.0)
    second = step(roster, [], first, 1.0)
    assert step(roster, [device("a", 9)], second, 2.0)["a"].healthy
    assert roster.due == 0.0


def test_a_name_that_is_published_keeps_the_device_against_an_earlier_rule() -> None:
    roster = Roster(60.0)
    first = step(roster, [device("by-port", 7, rule=1)], {}, 0.0)
    second = step(roster, [device("by-id", 7, rule=0), device("by-port", 7, rule=1)], first, 1.0)
    assert set(second) == {"by-port"}
    assert [(double.device.id, double.same_as) for double in roster.doubles] == [("by-id", "by-port")]


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=6), max_size=20))
def test_no_node_is_ever_two_healthy_devices(story: list[list[tuple[str, int]]]) -> None:
    roster = Roster(5.0)
    published: dict[str, Device] = {}
    for now, found in enumerate(story):
        published = step(roster, [device(id, minor) for id, minor in found], published, float(now))
        numbers = [entry.nodes[0].number for entry in published.values() if entry.healthy]
        assert len(numbers) == len(set(numbers))
        assert {id for id, _ in found} >= {id for id, entry in published.items() if entry.healthy}


@given(st.text(min_size=1, max_size=300))
def test_ids_are_short_plain_and_the_same_each_time(identity: str) -> None:
    id = device_id(identity)
    assert id == device_id(identity)
    assert len(replica_id(id, 999)) <= LONGEST
    assert base_of(replica_id(id, 3)) == id == base_of(id)
    assert id.isascii() and id[0].isalnum() and id[-1].isalnum()


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_different_things_have_different_ids(one: str, other: str) -> None:
    assert (device_id(one) == device_id(other)) == (one == other)
