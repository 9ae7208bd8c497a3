"""Paths chosen by others: none leads out, also while it is being changed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.kernel.openat2 import open_beneath
from tests.needs import needs

pytestmark = needs("sandbox")


@pytest.fixture
def top(directory: Path) -> Iterator[int]:
    (directory / "in" / "deep").mkdir(parents=True)
    (directory / "in" / "deep" / "file").write_text("inside")
    fd = os.open(directory / "in", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def opened(top: int, path: str) -> str:
    fd = open_beneath(top, path, os.O_PATH)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_what_is_inside_is_opened(top: int, directory: Path) -> None:
    for path in ("", ".", "deep", "deep/file", "deep/..", "./deep//file", "deep/../deep/file"):
        expected = os.path.normpath(directory / "in" / path)
        assert opened(top, path) == expected
    fd = open_beneath(top, "deep", os.O_RDONLY)
    assert os.get_inheritable(fd) is False
    os.close(fd)


@pytest.mark.parametrize("path", ["..", "../in", "deep/../..", "/", "/etc", "deep/../../in/deep"])
def test_no_path_leads_out(top: int, path: str) -> None:
    with pytest.raises(OSError, match="openat2") as caught:
        opened(top, path)
    assert caught.value.errno == errno.EXDEV


@pytest.mark.parametrize("to", ["deep", "..", "/etc", "deep/file", "loop"])
@pytest.mark.parametrize("after", ["", "/file", "/.."])
def test_no_link_is_followed(top: int, directory: Path, to: str, after: str) -> None:
    (directory / "in" / "loop").symlink_to(to)
    with pytest.raises(OSError, match="openat2") as caught:
        opened(top, f"loop{after}")
    assert caught.value.errno == errno.ELOOP


def test_the_links_of_proc_are_not_followed() -> None:
    top = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    for path in ("root", "cwd", "fd/0"):
        with pytest.raises(OSError, match="openat2"):
            opened(top, path)
    os.close(top)


def test_a_directory_that_is_swapped_for_a_link_all_the_while_never_leads_out(top: int, directory: Path) -> None:
    outside = directory / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    inside, link = directory / "in" / "deep", directory / "in" / "link"
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        spare = directory / "in" / "spare"
        while not stop.is_set():
            inside.rename(spare)
            link.rename(inside)
            inside.rename(link)
            spare.rename(inside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(20_000):
            try:
                fd = open_beneath(top, "deep/file", os.O_RDONLY)
            except OSError as error:
                assert error.errno in (errno.ELOOP, errno.ENOENT, errno.EAGAIN)
                seen.add(error.errno)
                continue
            seen.add(0)
            assert os.read(fd, 10) == b"inside"
            os.close(fd)
    finally:
        stop.set()
        swapper.join()
    assert 0 in seen and len(seen) > 1, "the race was never met"
