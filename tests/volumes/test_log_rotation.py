"""Logs kept in bounds on real file systems: no line is lost uncounted, none is torn, whoever is killed when."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeplug.kernel import ranges
from nodeplug.volumes.log.look import look
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.logs import KIB, NOW, Logs, line

pytestmark = [needs("sandbox", "loop", "program:mkfs.ext4"), pytest.mark.timeout(300)]

Make = Callable[..., Logs]
KINDS = [("tmpfs", "8Mi"), ("loop", "8Mi"), pytest.param(("loop", "300Mi"), marks=needs("program:mkfs.xfs"))]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=["tmpfs", "ext4", "xfs"])


@pytest.fixture
def make(ledger: Ledger) -> Make:
    def logs(kind: tuple[str, str] = ("tmpfs", "8Mi"), **changes: object) -> Logs:
        return Logs(ledger, *kind, **changes)

    return logs


@every_kind
def test_a_writer_that_reopens_loses_nothing_but_what_is_counted(make: Make, kind: tuple[str, str]) -> None:
    logs = make(kind)
    for _ in range(40):
        logs.write(200)
        logs.keep()
        logs.check()
    rotations = logs.index.rotations
    assert rotations == 10
    assert logs.names() == [f"app.log.{number:06d}" for number in (rotations - 2, rotations - 1, rotations)]
    assert logs.index.dropped.files == logs.index.rotations - 3
    assert logs.index.windows.count == 0


@every_kind
@pytest.mark.parametrize("how", ["punch", "copytruncate"])
def test_a_writer_that_keeps_its_file_loses_nothing_but_what_is_counted(
    make: Make, ledger: Ledger, kind: tuple[str, str], how: str
) -> None:
    logs = make(kind, rotate=how)
    fd = logs.open(ledger)
    for _ in range(60):
        logs.write(200, to=fd)
        logs.keep()
        logs.check()
    assert logs.index.dropped.lines > 5000
    held = sum(path.stat().st_blocks * 512 for path in logs.top.glob("app.log*"))
    assert held < 5 * 64 * KIB + 64 * KIB


def test_the_space_of_a_punched_file_is_given_back_and_its_offsets_stay(make: Make, ledger: Ledger) -> None:
    logs = make(("loop", "8Mi"), rotate="punch")
    fd = logs.open(ledger)
    logs.write(10_000, to=fd)
    path = logs.top / "app.log"
    logs.keep()
    (entry,) = logs.index.files
    assert path.stat().st_size == 1_000_000
    assert path.stat().st_blocks * 512 < 300_000
    with path.open("rb") as file:
        file.seek(entry.start)
        assert file.readline() == line(entry.start // 100)
        file.seek(0)
        assert set(file.read(entry.start)) == {0}


def test_where_nothing_is_known_the_first_line_of_a_punched_file_is_found(make: Make, ledger: Ledger) -> None:
    """After a reboot the account may be gone."""
    logs = make(("loop", "8Mi"), rotate="punch")
    fd = logs.open(ledger)
    logs.write(10_000, to=fd)
    logs.keep()
    (before,) = logs.index.files
    logs.account.unlink()
    _, found = look(logs.fd, logs.rules, logs.index, NOW)
    assert found.files[0].start == before.start


@pytest.mark.parametrize("kind", [("loop", "8Mi"), pytest.param(("loop", "300Mi"), marks=needs("program:mkfs.xfs"))])
def test_copytruncate_has_no_window_where_blocks_can_be_collapsed(
    make: Make, ledger: Ledger, kind: tuple[str, str]
) -> None:
    logs = make(kind, rotate="copytruncate")
    fd = logs.open(ledger)
    for _ in range(20):
        logs.write(700, to=fd)
        logs.keep()
    logs.check()
    assert logs.index.rotations >= 15
    assert logs.index.windows.count == 0


def test_copytruncate_elsewhere_tells_how_long_its_windows_were(make: Make, ledger: Ledger) -> None:
    logs = make(rotate="copytruncate")
    fd = logs.open(ledger)
    for _ in range(5):
        logs.write(700, to=fd)
        logs.keep()
    windows = logs.index.windows
    assert windows.count == logs.index.rotations == 5
    assert 0 < windows.longest <= windows.total


def test_a_copy_belongs_to_whom_the_file_did(make: Make, ledger: Ledger) -> None:
    logs = make(rotate="copytruncate")
    fd = logs.open(ledger)
    os.fchown(fd, 1234, 5678)
    os.fchmod(fd, 0o640)
    logs.write(700, to=fd)
    logs.keep()
    status = (logs.top / "app.log.000001").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 5678, 0o640)


def test_a_renamed_file_that_is_still_written_is_not_dropped_and_its_writer_is_told_of(
    make: Make, ledger: Ledger
) -> None:
    logs = make(max_files=1)
    fd = logs.open(ledger)
    logs.write(700, to=fd)
    logs.keep()
    assert logs.names() == ["app.log.000001"]
    for _ in range(5):
        logs.write(700)  # another, who opens it anew
        logs.keep()
    assert "app.log.000001" in logs.names()
    logs.write(10, to=fd)
    os.utime(logs.top / "app.log.000001", (NOW + 100, NOW + 100))
    (trouble,) = logs.keep(after=100).troubles
    assert "app.log.000001" in trouble and "punch" in trouble
    assert len(set(logs.lines())) + logs.index.dropped.lines == logs.written


@pytest.mark.parametrize("kind", [("tmpfs", "8Mi"), ("loop", "8Mi")], ids=["tmpfs", "ext4"])
def test_above_the_mark_room_is_made_at_once(make: Make, ledger: Ledger, kind: tuple[str, str]) -> None:
    logs = make(kind, max_size=1 << 20, max_files=100, high_water=50)
    for _ in range(6):
        logs.write(10_486)
        logs.keep()
        logs.check()
    found = os.statvfs(logs.top)
    assert found.f_bavail >= found.f_blocks * (100 - logs.rules.high_water) // 100
    assert logs.index.dropped.files > 0


def test_a_single_file_above_the_mark_is_cut_from_the_front(make: Make, ledger: Ledger) -> None:
    logs = make(max_size=100 << 20, high_water=50)
    fd = logs.open(ledger)
    logs.write(70_000, to=fd)
    logs.keep()
    kept = logs.check()
    assert 30_000 < len(kept) < 42_000
    assert logs.index.dropped.files == 0


def test_what_is_no_log_is_told_of_when_it_leaves_no_room(make: Make) -> None:
    logs = make(high_water=50)
    (logs.top / "core").write_bytes(b"x" * (6 << 20))
    (trouble,) = logs.keep().troubles
    assert "no logs" in trouble
    (logs.top / "more").write_bytes(b"x" * (os.statvfs(logs.top).f_bavail * 4096))
    assert any("was full" in each for each in logs.keep().troubles)
    assert logs.index.full == 1
    (logs.top / "more").unlink()
    assert any("was full" in each for each in logs.keep(after=59).troubles)
    assert not any("was full" in each for each in logs.keep(after=61).troubles)


def test_old_files_go_by_age_and_old_lines_of_an_open_one(make: Make, ledger: Ledger) -> None:
    logs = make(max_size=1 << 20, max_age=3600.0, every=600.0)
    for minute in range(0, 180, 10):
        logs.write(100)
        os.utime(logs.top / "app.log", (NOW + minute * 60, NOW + minute * 60))
        logs.keep(after=minute * 60)
        logs.check()
    assert logs.index.dropped.files > 0
    ages = [NOW + 170 * 60 - path.stat().st_mtime for path in logs.top.glob("app.log.*")]
    assert max(ages) <= 3600 + 600


def test_age_cuts_an_open_file_where_it_was_that_old(make: Make, ledger: Ledger) -> None:
    logs = make(rotate="punch", max_size=1 << 20, max_age=3600.0)
    fd = logs.open(ledger)
    for minute in range(0, 180, 10):
        logs.write(100, to=fd)
        logs.keep(after=minute * 60)
        logs.check()
    assert 500 <= len(logs.lines()) <= 900


def test_directories_below_are_kept_too_and_other_names_are_not(make: Make) -> None:
    logs = make()
    (logs.top / "a" / "b").mkdir(parents=True)
    logs.write(700, "a/b/deep.log")
    (logs.top / "a" / "data.bin").write_bytes(b"x" * 200_000)
    logs.keep()
    assert sorted(path.name for path in (logs.top / "a").rglob("*.*")) == ["data.bin", "deep.log.000001"]


@pytest.mark.parametrize("harm", ["link", "fifo", "directory", "socket", "taken"])
def test_what_a_pod_puts_in_the_way_harms_only_itself(make: Make, ledger: Ledger, harm: str, directory: Path) -> None:
    outside = directory / "outside.log"
    outside.write_bytes(b"x" * 200_000)
    logs = make()
    way = logs.top / "evil.log"
    if harm == "link":
        way.symlink_to(outside)
    elif harm == "fifo":
        os.mkfifo(way)
    elif harm == "directory":
        way.mkdir()
    elif harm == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(way))
    else:
        (logs.top / "app.log.000001").mkdir()
    logs.write(700)
    assert logs.keep().space.total > 0
    logs.write(700, "good.log")
    logs.keep()
    assert (logs.top / "good.log.000001").exists()
    assert outside.stat().st_size == 200_000


def test_names_that_are_no_text_are_left_alone(make: Make) -> None:
    logs = make()
    Path(os.fsdecode(os.fsencode(logs.top) + b"/\xff.log")).write_bytes(b"x" * 100_000)
    logs.write(700)
    logs.keep()
    assert logs.index.rotations == 1


def test_a_file_that_its_writer_emptied_begins_anew(make: Make, ledger: Ledger) -> None:
    logs = make(("loop", "8Mi"), rotate="punch")
    fd = logs.open(ledger)
    logs.write(5000, to=fd)
    logs.keep()
    assert logs.index.files[0].start > 0
    os.ftruncate(fd, 0)
    logs.keep()
    assert logs.index.files[0].start == 0


def test_a_gap_in_the_numbers_is_a_file_that_was_dropped(make: Make) -> None:
    logs = make(max_files=2)
    for _ in range(6):
        logs.write(700)
        logs.keep()
    for path in logs.top.glob("app.log*"):
        path.unlink()
    logs.write(700)
    logs.keep()
    assert logs.names() == ["app.log.000007"]


ACTIONS = {
    "rename": {},
    "punch": {"rotate": "punch"},
    "copytruncate": {"rotate": "copytruncate"},
    "drop": {"max_files": 1},
    "high water": {"max_size": 100 << 20, "high_water": 20},
}


@pytest.mark.parametrize("kind", [("tmpfs", "8Mi"), ("loop", "8Mi")], ids=["tmpfs", "ext4"])
@pytest.mark.parametrize("what", ACTIONS)
def test_killed_at_any_system_call_no_line_is_lost_torn_or_counted_twice(
    ledger: Ledger, kind: tuple[str, str], what: str
) -> None:
    logs = Logs(ledger, *kind, **ACTIONS[what])
    keeps = what in ("punch", "copytruncate", "high water")
    fd = logs.open(ledger) if keeps else -1

    def write(count: int) -> None:
        logs.write(count, to=fd)

    batch = {"punch": 700, "high water": 3000}.get(what, 700)
    write(3000 if keeps else 1)
    for _ in range(4):
        write(batch)
        logs.keep()
    write(batch)
    count = len(faults.calls_of(logs.keep))
    logs.keep()
    for number in range(count):
        write(batch)
        faults.killed_at(number, logs.keep)
        write(7)
        logs.keep()
        logs.check()
    assert not [name for name in logs.names() if name.endswith("~")]


@pytest.mark.parametrize("what", ACTIONS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_system_call_loses_and_tears_nothing(ledger: Ledger, what: str, error: int) -> None:
    logs = Logs(ledger, "loop", "8Mi", **ACTIONS[what])
    keeps = what in ("punch", "copytruncate", "high water")
    fd = logs.open(ledger) if keeps else -1
    batch = {"punch": 700, "high water": 3000}.get(what, 700)

    def write(count: int) -> None:
        logs.write(count, to=fd)

    def keep() -> object:
        from nodeplug.core.errors import from_os

        try:
            return logs.keep()
        except OSError as failed:
            raise from_os(failed, "as nodeplugd would be told") from failed

    write(3000 if keeps else 1)
    write(batch)
    count = len(faults.calls_of(keep))
    for number in range(count):
        write(batch)
        faults.failing_at(number, error, keep)
        logs.keep()
        logs.check()


def test_collapse_and_punch_say_where_they_cannot(make: Make) -> None:
    logs = make()
    logs.write(100)
    fd = os.open(logs.top / "app.log", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="fallocate"):
            ranges.collapse(fd, 0, 4096)
        ranges.punch(fd, 0, 4096)
        assert ranges.first_data(fd) == 4096
        assert os.pread(fd, 4096, 0) == bytes(4096)
    finally:
        os.close(fd)
