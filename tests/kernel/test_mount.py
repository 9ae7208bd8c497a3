"""Mounts of the sandbox's own, and mountinfo however it is written."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel import mount
from nodeplug.kernel.mount import Mount
from tests.needs import needs

sandboxed = needs("sandbox")

LINE = b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue\n"


def test_every_field_of_a_line() -> None:
    assert mount.parse(LINE) == Mount(
        id=36,
        parent=35,
        device=(98, 0),
        root="/mnt1",
        point="/mnt2",
        options=("rw", "noatime"),
        propagation=("shared:7", "master:1"),
        fstype="ext3",
        source="/dev/root",
        super_options=("rw", "errors=continue"),
    )


def test_a_line_without_optional_fields_or_source() -> None:
    found = mount.parse(b"1 0 0:1 / / rw - tmpfs  rw")
    assert (found.propagation, found.source, found.fstype) == ((), "", "tmpfs")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b\012c\134d\043e", "/a\tb\nc\\d#e"),
        (rb"/a\\040", "/a\\ "),
        (rb"/a\04", "/a\\04"),
        (rb"/a\777", "/a\\777"),
        (rb"/a\9zz\\", "/a\\9zz\\\\"),
        ("/ä".encode(), "/ä"),
        (b"/\xff", "/\udcff"),
    ],
)
def test_escapes_are_read_and_what_is_none_stays(written: bytes, meant: str) -> None:
    assert mount.parse(b"1 0 0:1 / " + written + b" rw - tmpfs none rw").point == meant


@given(st.binary(max_size=200))
def test_any_line_is_a_mount_or_a_value_error(line: bytes) -> None:
    try:
        repr(mount.parse(line))
    except ValueError:
        pass


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_what_the_kernel_would_escape_is_read_back(name: str) -> None:
    written = mount._escaped(f"/{name}")
    assert not set(written) & set(b" \t\n")
    assert mount.parse(b"1 0 0:1 / " + written + b" rw - tmpfs none rw").point == f"/{name}"


@given(
    st.lists(st.sampled_from([b"1", b"0:1", b"/", b"/a", b"rw", b"-", b"shared:1", b"tmpfs", b"", b"x"]), max_size=14)
)
def test_any_fields_are_a_mount_or_a_value_error(fields: list[bytes]) -> None:
    try:
        repr(mount.parse(b" ".join(fields)))
    except ValueError:
        pass


@sandboxed
def test_a_tmpfs_is_mounted_as_asked_and_found(directory: Path) -> None:
    point = directory / "a b\tc\\d#ä"
    point.mkdir()
    assert mount.find(str(point)) is None
    mount.tmpfs(str(point), size=1 << 20, mode=0o700, inodes=100)
    found = mount.find(str(point))
    assert found is not None
    assert (found.point, found.fstype, found.source, found.root) == (str(point), "tmpfs", "tmpfs", "/")
    assert {"rw", "nosuid", "nodev"} <= set(found.options)
    assert {"size=1024k", "nr_inodes=100", "mode=700"} <= set(found.super_options)
    status = os.stat(point)
    assert found.device == (os.major(status.st_dev), os.minor(status.st_dev))
    assert found in mount.mounts()
    with pytest.raises(OSError) as caught:
        (point / "large").write_bytes(bytes(2 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert mount.unmount(str(point)) is True
    assert mount.unmount(str(point)) is False
    assert not mount.is_mounted(str(point))


@sandboxed
def test_a_bind_shows_a_directory_again_read_only_when_asked(directory: Path) -> None:
    source, target = directory / "source", directory / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("here")
    mount.bind(str(source), str(target), flags=mount.MS_RDONLY | mount.MS_NOEXEC)
    assert (target / "file").read_text() == "here"
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("there")
    (source / "file").write_text("there")
    found = mount.find(str(target))
    assert found is not None
    assert {"ro", "noexec"} <= set(found.options)
    assert found.root.endswith(f"/{directory.name}/source")
    mount.remount(str(target), 0)
    (target / "file").write_text("again")


@sandboxed
def test_a_file_is_bound_on_a_file(directory: Path) -> None:
    (directory / "a").write_text("a")
    (directory / "b").write_text("b")
    mount.bind(str(directory / "a"), str(directory / "b"))
    assert (directory / "b").read_text() == "a"
    assert mount.unmount(str(directory / "b")) is True
    assert (directory / "b").read_text() == "b"


@sandboxed
@pytest.mark.parametrize("recursive", [False, True])
def test_a_recursive_bind_takes_what_is_mounted_below(directory: Path, recursive: bool) -> None:
    source, target = directory / "source", directory / "target"
    (source / "below").mkdir(parents=True)
    target.mkdir()
    mount.tmpfs(str(source / "below"), size=1 << 16)
    mount.bind(str(source), str(target), recursive=recursive)
    assert mount.is_mounted(str(target / "below")) is recursive


@sandboxed
def test_the_topmost_of_several_is_found_and_unmounted_first(directory: Path) -> None:
    point = str(directory)
    mount.tmpfs(point, size=1 << 16)
    mount.tmpfs(point, size=1 << 17)
    found = mount.find(point)
    assert found is not None
    assert "size=128k" in found.super_options
    assert mount.unmount(point)
    found = mount.find(point)
    assert found is not None
    assert "size=64k" in found.super_options


@sandboxed
def test_a_path_through_a_symlink_is_found_but_a_symlink_is_not_followed(directory: Path) -> None:
    (directory / "real" / "point").mkdir(parents=True)
    (directory / "way").symlink_to("real")
    (directory / "link").symlink_to("real/point")
    mount.tmpfs(str(directory / "real" / "point"), size=1 << 16)
    assert mount.is_mounted(str(directory / "way" / "point"))
    assert mount.is_mounted(f"{directory}/real/../way//point/")
    assert mount.is_mounted(f"{directory}/link/.")
    assert not mount.is_mounted(str(directory / "link"))
    assert mount.unmount(str(directory / "link")) is False
    assert mount.is_mounted(str(directory / "real" / "point"))


@sandboxed
def test_a_path_may_go_up_through_a_symlink_as_the_kernel_goes(directory: Path) -> None:
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "way").symlink_to("a/b")
    mount.tmpfs(str(directory / "a"), size=1 << 16)
    (directory / "a" / "b").mkdir()
    assert mount.is_mounted(f"{directory}/way/..")
    assert mount.is_mounted("/")


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ValueError, match="'etc' is not an absolute path"):
        mount.find("etc")


@sandboxed
def test_a_busy_mount_stays_unless_it_is_detached(directory: Path) -> None:
    point = str(directory)
    mount.tmpfs(point, size=1 << 16)
    with open(directory / "file", "w"):
        with pytest.raises(OSError, match=f"umount2: Device or resource busy: '{point}'"):
            mount.unmount(point)
        assert mount.unmount(point, detach=True) is True
    assert not mount.is_mounted(point)


@sandboxed
def test_unmounting_what_is_absent_is_no_error(directory: Path) -> None:
    assert mount.unmount(str(directory / "absent")) is False


@sandboxed
def test_a_private_mount_keeps_what_is_mounted_below_to_itself(directory: Path) -> None:
    point = str(directory)
    mount.tmpfs(point, size=1 << 16)
    subprocess.run(["mount", "--make-shared", point], check=True)
    found = mount.find(point)
    assert found is not None
    assert found.propagation[0].startswith("shared:")
    mount.make_private(point)
    found = mount.find(point)
    assert found is not None
    assert found.propagation == ()


def test_a_tmpfs_without_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="without limit"):
        mount.tmpfs("/absent", size=0)


@sandboxed
def test_flags_the_kernel_refuses_undo_the_bind(directory: Path) -> None:
    source, target = directory / "source", directory / "target"
    source.mkdir()
    target.mkdir()
    ms_nouser = 1 << 31  # the kernel's own, refused from anybody else
    with pytest.raises(OSError, match="mount: Invalid argument"):
        mount.bind(str(source), str(target), flags=ms_nouser)
    assert not mount.is_mounted(str(target))


def test_a_table_without_end_is_refused() -> None:
    with pytest.raises(OSError, match="more than 32 MiB of mounts: '/dev/zero'") as caught:
        mount.mounts("/dev/zero")
    assert caught.value.errno == errno.EFBIG
