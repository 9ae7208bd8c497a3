"""Whether somebody writes a file, and giving back its front, as the kernel answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeplug.kernel import lease, ranges


def test_a_file_is_written_exactly_while_somebody_has_it_open_for_that(directory: Path) -> None:
    path = directory / "file"
    path.write_text("content")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert lease.is_written(fd) is False
        with path.open("a"):
            assert lease.is_written(fd) is True
        with path.open():
            assert lease.is_written(fd) is False, "readers do not count"
        assert lease.is_written(fd) is False
        with path.open("a") as file:
            file.write("the lease was given up")
    finally:
        os.close(fd)


def test_what_no_lease_is_to_be_had_of_is_not_known() -> None:
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        assert lease.is_written(fd) in (None, False)
    finally:
        os.close(fd)


def test_a_range_is_given_back_and_offsets_stay(directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"x" * 100_000)
    fd = os.open(path, os.O_RDWR)
    try:
        before = os.fstat(fd).st_blocks
        ranges.punch(fd, 0, 50_000)
        assert os.fstat(fd).st_size == 100_000
        assert os.fstat(fd).st_blocks < before
        assert os.pread(fd, 2, 49_999) == b"\0x"
        assert ranges.first_data(fd) == 50_000 // 4096 * 4096
        ranges.punch(fd, 0, 200_000)
        assert ranges.first_data(fd) == 100_000, "nothing but a hole"
        with pytest.raises(OSError, match="fallocate"):
            ranges.punch(fd, -1, 10)
    finally:
        os.close(fd)
