"""Files that change together: readers see one generation or another, whenever the writer is killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.secret import Secret
from nodeplug.volumes import atomic
from nodeplug.volumes.atomic import File
from tests.ledger import Ledger
from tests.volumes.injection import failing_at, killed_at, steps_of


def of(**contents: str) -> dict[str, File]:
    return {name: File(content=Secret(text), mode=0o640) for name, text in contents.items()}


def shown(path: Path) -> dict[str, str]:
    """What a reader of the outer names finds."""
    return {name.name: name.read_bytes().decode() for name in path.iterdir() if not name.name.startswith("..")}


def generations(path: Path) -> list[str]:
    return sorted(name.name for name in path.iterdir() if name.is_dir() and not name.is_symlink())


@pytest.fixture
def fd(directory: Path) -> Iterator[int]:
    found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    yield found
    os.close(found)


def test_all_files_appear_under_their_names_with_rights_and_owner(directory: Path, fd: int) -> None:
    wanted = {"a": File(content=Secret("1"), mode=0o640, uid=7, gid=8), "b": File(content=Secret("2"), mode=0o4755)}
    assert atomic.write(fd, wanted)
    assert shown(directory) == {"a": "1", "b": "2"}
    status = (directory / "a").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 7, 8)
    assert (directory / "b").stat().st_mode & 0o7777 == 0o4755
    assert os.readlink(directory / "a") == "..data/a"


def test_the_same_again_changes_nothing(directory: Path, fd: int) -> None:
    atomic.write(fd, of(a="1"))
    before = generations(directory)
    assert not atomic.write(fd, of(a="1"))
    assert generations(directory) == before
    assert atomic.write(fd, {"a": File(content=Secret("1"), mode=0o600)}), "rights are part of it"


def test_names_come_and_go_with_the_generation(directory: Path, fd: int) -> None:
    atomic.write(fd, of(a="1", b="2"))
    atomic.write(fd, of(b="3", c="4"))
    assert shown(directory) == {"b": "3", "c": "4"}
    assert len(generations(directory)) == 1


def test_whoever_opened_data_once_still_finds_his_files_after_the_swap(directory: Path, fd: int) -> None:
    atomic.write(fd, of(key="old", certificate="old"), keep=1)
    data = os.open("..data", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    try:
        atomic.write(fd, of(key="new", certificate="new"), keep=1)
        for name in ("key", "certificate"):
            inner = os.open(name, os.O_RDONLY, dir_fd=data)
            assert os.read(inner, 10) == b"old"
            os.close(inner)
        atomic.write(fd, of(key="newer", certificate="newer"), keep=1)
        assert len(generations(directory)) == 2
    finally:
        os.close(data)


def test_a_clock_that_was_set_back_does_not_make_old_ones_new(directory: Path, fd: int) -> None:
    atomic.write(fd, of(a="1"))
    (only,) = generations(directory)
    future = directory / only.replace(only[2:6], "2999")
    (directory / only).rename(future)
    (directory / "..data").unlink()
    (directory / "..data").symlink_to(future.name)
    for text in ("2", "3"):
        atomic.write(fd, of(a=text), keep=1)
        assert shown(directory) == {"a": text}
    assert len(generations(directory)) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "..data", "..x", "a/b", "a\0b", "x" * 256])
def test_a_name_that_would_lead_elsewhere_is_refused_before_anything_is_written(
    directory: Path, fd: int, name: str
) -> None:
    with pytest.raises(ConfigInvalid):
        atomic.write(fd, {"good": File(content=Secret("1")), name: File(content=Secret("2"))})
    assert list(directory.iterdir()) == []


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.text(max_size=3)), max_size=5), st.integers(0, 2))
def test_after_any_row_of_writes_the_last_one_is_shown(rows: list[dict[str, str]], keep: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for row in rows:
                atomic.write(fd, of(**row), keep=keep)
                assert shown(Path(made)) == row
            assert len(generations(Path(made))) <= 1 + keep
            atomic.wipe(fd)
            assert os.listdir(made) == []
        finally:
            os.close(fd)


def _replace(fd: int) -> None:
    atomic.write(fd, of(key="new", certificate="new", third="new"), keep=1)


def test_killed_at_any_step_a_reader_sees_one_generation_whole_and_the_next_write_mends_it(ledger: Ledger) -> None:
    step = 0
    reached = True
    while reached:
        path = ledger.directory()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        atomic.write(fd, of(key="older", certificate="older"), keep=1)
        atomic.write(fd, of(key="old", certificate="old"), keep=1)
        reached = killed_at(step, lambda: _replace(fd))  # noqa: B023  # called at once
        found = {name: (path / "..data" / name).read_text() for name in ("key", "certificate")}
        assert found in ({"key": "old", "certificate": "old"}, {"key": "new", "certificate": "new"}), step
        _replace(fd)
        assert shown(path) == {"key": "new", "certificate": "new", "third": "new"}
        assert len(generations(path)) <= 2
        assert not (path / "..data_tmp").is_symlink()
        os.close(fd)
        step += 1
    assert step > 15


def test_a_full_file_system_leaves_what_was_shown(ledger: Ledger) -> None:
    path = ledger.directory()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    atomic.write(fd, of(key="old"))
    steps = len(steps_of(lambda: _replace(fd)))
    for step in range(steps):
        path = ledger.directory()
        os.close(fd)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        atomic.write(fd, of(key="old", certificate="old"))
        if failing_at(step, errno.ENOSPC, lambda: _replace(fd)):  # noqa: B023  # called at once
            found = {name: (path / "..data" / name).read_text() for name in ("key", "certificate")}
            assert len(set(found.values())) == 1, step
        _replace(fd)
        assert shown(path) == {"key": "new", "certificate": "new", "third": "new"}
    os.close(fd)


def test_wiping_overwrites_what_somebody_still_holds_open(directory: Path, fd: int) -> None:
    atomic.write(fd, of(key="secret"))
    with (directory / "key").open() as held:
        atomic.wipe(fd)
        assert held.read() == "\0" * 6
    assert list(directory.iterdir()) == []


def test_a_file_says_nothing_of_its_content() -> None:
    assert "secret-text" not in repr(File(content=Secret("secret-text")))
