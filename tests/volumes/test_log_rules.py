"""What is done with a directory of logs, for any that may be found: pure rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.volumes.log import rules as log
from nodeplug.volumes.log.look import classify
from nodeplug.volumes.log.rules import BLOCK, Copy, Cut, Remove, Rename, Seen, Space, next_action
from tests.volumes.logs import KIB, MIB, NOW, rules

ROOM = Space(total=8 * MIB, free=8 * MIB)


def live(size: int, path: str = "app.log", **more: object) -> Seen:
    found = Seen(path=path, inode=1, size=size, held=size, changed=NOW, base=path, since=NOW)
    return found.replace(**more)


def rotated(sequence: int, size: int = 64 * KIB, path: str = "app.log", **more: object) -> Seen:
    found = Seen(
        path=f"{path}.{sequence:06d}",
        inode=10 + sequence,
        size=size,
        held=size,
        changed=NOW - 1000 + sequence,
        base=path,
        sequence=sequence,
    )
    return found.replace(**more)


def test_nothing_is_done_while_all_is_small_and_there_is_room() -> None:
    assert next_action([live(64 * KIB - 1), rotated(1), rotated(2), rotated(3)], ROOM, rules(), NOW) is None


@pytest.mark.parametrize(("how", "action"), [("rename", Rename), ("copytruncate", Copy)])
def test_a_file_of_its_size_is_rotated(how: str, action: type) -> None:
    assert isinstance(next_action([live(64 * KIB)], ROOM, rules(rotate=how), NOW), action)


def test_a_punched_file_keeps_as_much_as_rotated_ones_would() -> None:
    window = 3 * 64 * KIB
    assert next_action([live(window + 64 * KIB - 1)], ROOM, rules(rotate="punch"), NOW) is None
    action = next_action([live(window + 64 * KIB)], ROOM, rules(rotate="punch"), NOW)
    assert action == Cut(path="app.log", inode=1, start=0, upto=64 * KIB, why="size")


def test_a_file_is_rotated_by_time_however_small() -> None:
    hourly = rules(every=3600.0)
    assert next_action([live(1, since=NOW - 3599)], ROOM, hourly, NOW) is None
    assert isinstance(next_action([live(1, since=NOW - 3600)], ROOM, hourly, NOW), Rename)
    assert next_action([live(0, since=NOW - 7200)], ROOM, hourly, NOW) is None


def test_the_oldest_of_too_many_goes_but_not_one_that_is_written() -> None:
    found = [rotated(number) for number in (5, 2, 3, 4)]
    action = next_action(found, ROOM, rules(), NOW)
    assert isinstance(action, Remove)
    assert (action.path, action.why) == ("app.log.000002", "count")
    found = [rotated(2, written=True), *(rotated(number) for number in (3, 4, 5))]
    assert next_action(found, ROOM, rules(), NOW) is None


def test_what_is_too_old_goes() -> None:
    daily = rules(max_age=86400.0)
    assert next_action([rotated(1, changed=NOW - 86399)], ROOM, daily, NOW) is None
    action = next_action([rotated(1, changed=NOW - 86401)], ROOM, daily, NOW)
    assert isinstance(action, Remove) and action.why == "age"
    punched = next_action([live(MIB, aged=40 * KIB, start=4 * KIB)], ROOM, daily.replace(rotate="punch"), NOW)
    assert punched == Cut(path="app.log", inode=1, start=4 * KIB, upto=40 * KIB, why="age")


def test_above_the_mark_the_oldest_of_all_files_goes_first() -> None:
    tight = Space(total=8 * MIB, free=MIB)
    found = [rotated(9, path="a.log", changed=NOW - 5), rotated(1, path="b.log", changed=NOW - 50), live(1000)]
    action = next_action(found, tight, rules(), NOW)
    assert isinstance(action, Remove)
    assert (action.path, action.why) == ("b.log.000001", "high water")


def test_then_the_front_of_the_largest_is_given_back() -> None:
    tight = Space(total=8 * MIB, free=MIB)
    found = [live(60 * KIB, "a.log"), live(62 * KIB, "b.log"), rotated(1, written=True)]
    action = next_action(found, tight, rules(), NOW)
    assert isinstance(action, Cut)
    assert action.path == "app.log.000001"
    assert next_action([live(BLOCK)], tight, rules(), NOW) is None, "the last block stays"


def test_what_is_no_log_is_left_alone() -> None:
    tight = Space(total=8 * MIB, free=0)
    other = Seen(path="core", inode=3, size=8 * MIB, held=8 * MIB, changed=0.0)
    assert next_action([other], tight, rules(max_age=1.0), NOW) is None
    assert log.others([other, live(5)]) == 8 * MIB


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app.log", ("app.log", 0)),
        ("a/b/app.log", ("a/b/app.log", 0)),
        ("app.log.000017", ("app.log", 17)),
        ("a/app.log.1234567", ("a/app.log", 1234567)),
        ("app.log.17", ("", 0)),
        ("app.txt", ("", 0)),
        ("app.txt.000017", ("", 0)),
        ("app.log.000017.gz", ("", 0)),
        ("app.log.٠٠٠٠١٧", ("", 0)),
        (".app.log.000017~", ("", 0)),
    ],
)
def test_names_tell_what_a_file_is(path: str, expected: tuple[str, int]) -> None:
    assert classify(path, ("*.log",)) == expected


files = st.builds(
    lambda size, start, number, age, written: (
        rotated(number, size, changed=NOW - age, start=min(start, size), written=written)
        if number
        else live(size, since=NOW - age, start=min(start, size))
    ),
    st.integers(0, 2 * MIB),
    st.integers(0, 2 * MIB),
    st.integers(0, 9),
    st.floats(0, 1e6),
    st.booleans(),
)


@settings(deadline=None)
@given(
    st.lists(files, max_size=12, unique_by=lambda each: each.path),
    st.sampled_from(["rename", "punch", "copytruncate"]),
    st.integers(0, 8 * MIB),
    st.sampled_from([0.0, 1000.0]),
)
def test_actions_end_and_touch_nothing_that_is_written_or_not_there(
    found: list[Seen], how: str, free: int, limit: float
) -> None:
    """Each action is done as it would be; after some of them there is none more."""
    chosen = rules(rotate=how, max_age=limit, every=limit)
    room = Space(total=8 * MIB, free=free)
    for _ in range(300):
        action = next_action(found, room, chosen, NOW)
        if action is None:
            return
        (subject,) = [each for each in found if each.path == action.path]
        others = [each for each in found if each.path != action.path]
        if isinstance(action, Remove):
            assert subject.sequence and not subject.written
            found = others
            room = room.replace(free=room.free + subject.held)
        elif isinstance(action, Cut):
            assert subject.start < action.upto <= subject.size
            found = [*others, subject.replace(start=action.upto, held=subject.size - action.upto)]
            room = room.replace(free=room.free + action.upto - subject.start)
        else:
            number = 1 + max([each.sequence for each in found])
            moved = rotated(number, subject.size, start=subject.start, changed=NOW)
            found = [*others, moved] if isinstance(action, Rename) else [*others, moved, live(0)]
            if isinstance(action, Copy):
                room = room.replace(free=room.free)
    raise AssertionError("there is always one more to do")
