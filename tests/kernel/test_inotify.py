"""Events of real files and directories, and buffers however they are cut."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel import inotify
from nodeplug.kernel.inotify import IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO, Event, Inotify

QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")


def test_a_file_in_a_watched_directory_is_told_by_name(directory: Path) -> None:
    with Inotify() as watches:
        watch = watches.add(str(directory), IN_CREATE | IN_CLOSE_WRITE | IN_DELETE)
        assert watches.read(0) == []
        (directory / "ä.json").write_text("{}")
        (directory / "ä.json").unlink()
        events = watches.read(5)
        assert [(event.watch, event.mask, event.name) for event in events] == [
            (watch, IN_CREATE, "ä.json"),
            (watch, IN_CLOSE_WRITE, "ä.json"),
            (watch, IN_DELETE, "ä.json"),
        ]


def test_a_new_directory_says_that_it_is_one(directory: Path) -> None:
    with Inotify() as watches:
        watches.add(str(directory), IN_CREATE)
        (directory / "sub").mkdir()
        (event,) = watches.read(5)
        assert event.mask == IN_CREATE | inotify.IN_ISDIR


def test_a_rename_is_two_events_with_one_cookie(directory: Path) -> None:
    (directory / "old").touch()
    with Inotify() as watches:
        watches.add(str(directory), IN_MOVED_FROM | IN_MOVED_TO)
        (directory / "old").rename(directory / "new")
        gone, come = watches.read(5)
        assert (gone.name, come.name) == ("old", "new")
        assert gone.cookie == come.cookie != 0


def test_a_watched_file_has_no_name_and_ends_with_the_file(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    with Inotify() as watches:
        watches.add(str(path), IN_CLOSE_WRITE | inotify.IN_DELETE_SELF)
        path.write_text("x")
        path.unlink()
        events = watches.read(5)
        assert [event.name for event in events] == [""] * len(events)
        assert [event.mask for event in events] == [IN_CLOSE_WRITE, inotify.IN_DELETE_SELF, inotify.IN_IGNORED]
        assert [event.ended for event in events] == [False, False, True]


def test_a_removed_watch_says_so_and_is_silent(directory: Path) -> None:
    with Inotify() as watches:
        watch = watches.add(str(directory), IN_CREATE)
        watches.remove(watch)
        (event,) = watches.read(5)
        assert (event.watch, event.ended) == (watch, True)
        (directory / "file").touch()
        assert watches.read(0) == []
        with pytest.raises(OSError, match=f"inotify_rm_watch: Invalid argument: 'watch {watch}'"):
            watches.remove(watch)


def test_a_watch_of_nothing_is_file_not_found(directory: Path) -> None:
    with Inotify() as watches:
        with pytest.raises(
            FileNotFoundError, match=f"inotify_add_watch: No such file or directory: '{directory}/absent'"
        ):
            watches.add(str(directory / "absent"), IN_CREATE)
        with pytest.raises(NotADirectoryError):
            watches.add(__file__, IN_CREATE | inotify.IN_ONLYDIR)


def test_it_can_be_polled_beside_others_and_closed_twice(directory: Path) -> None:
    watches = Inotify()
    watches.add(str(directory), IN_CREATE)
    assert select.select([watches], [], [], 0)[0] == []
    (directory / "file").touch()
    assert select.select([watches], [], [], 5)[0] == [watches]
    assert watches.read(None)
    watches.close()
    watches.close()


def test_a_wait_ends_with_the_change(directory: Path) -> None:
    with Inotify() as watches:
        watches.add(str(directory), IN_CREATE)
        later = threading.Timer(0.05, (directory / "file").touch)
        later.start()
        events = watches.read(10)
        later.join()
        assert [event.name for event in events] == ["file"]


def test_a_wait_without_a_change_ends_with_nothing(directory: Path) -> None:
    with Inotify() as watches:
        watches.add(str(directory), IN_CREATE)
        assert watches.read(0.02) == []


def test_an_overflow_is_told(directory: Path) -> None:
    limit = int(QUEUE.read_text())
    with Inotify() as watches:
        watches.add(str(directory), inotify.IN_ATTRIB)
        files = [os.open(directory / name, os.O_CREAT | os.O_WRONLY) for name in "ab"]
        # Equal neighbours are merged, so two take turns.
        for n in range(limit + 10):
            os.fchmod(files[n % 2], 0o600)
        for fd in files:
            os.close(fd)
        events = []
        while more := watches.read(0):
            events += more
        assert len(events) == limit + 1
        assert (events[-1].overflow, events[-1].watch) == (True, -1)
        assert not any(event.overflow for event in events[:-1])


names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(st.integers(-1, 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), names)))
def test_events_come_back_in_order(wanted: list[tuple[int, int, int, str]]) -> None:
    data = b""
    for watch, mask, cookie, name in wanted:
        padded = name.encode() + b"\0" * (16 - len(name.encode()) % 16) if name else b""
        data += inotify._EVENT.pack(watch, mask, cookie, len(padded)) + padded
    expected = [Event(watch=watch, mask=mask, cookie=cookie, name=name) for watch, mask, cookie, name in wanted]
    assert inotify.parse(data) == expected
    assert expected[: len(inotify.parse(data[:-1]))] == inotify.parse(data[:-1])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_going_past_their_end(data: bytes) -> None:
    assert sum(
        inotify._EVENT.size + len(event.name.encode("utf-8", "surrogateescape")) for event in inotify.parse(data)
    ) <= len(data)
