"""Mounts that are shown nowhere until they are ready."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from nodeplug.kernel import fsmount, libc, mount
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox")

SMALL: dict[str, str | None] = {"size": "65536", "mode": "0700", "source": "trial"}


@pytest.fixture
def made(ledger: Ledger) -> int:
    """A tmpfs that is mounted nowhere."""
    fd = fsmount.create("tmpfs", SMALL, attributes=fsmount.NOSUID)
    ledger.adopt("mount", lambda: os.close(fd))
    return fd


def shown(fd: int, at: Path) -> mount.Mount:
    directory = os.open(at, os.O_PATH)
    fsmount.show(fd, directory)
    os.close(directory)
    found = mount.find(str(at))
    assert found is not None
    return found


def test_a_mount_is_furnished_before_anybody_can_see_it(made: int, directory: Path) -> None:
    os.mkdir("inside", dir_fd=made)
    assert not mount.is_mounted(str(directory)) and os.listdir(directory) == []
    found = shown(made, directory)
    assert (found.fstype, found.source, found.root) == ("tmpfs", "trial", "/")
    assert "nosuid" in found.options and "mode=700" in found.super_options
    assert os.listdir(directory) == ["inside"]


def test_what_was_never_shown_ends_with_the_process(directory: Path) -> None:
    """So kill -9 leaves nothing."""
    before = mount.mounts()
    pid = os.fork()
    if pid == 0:
        fsmount.create("tmpfs", SMALL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert mount.mounts() == before


def test_its_device_is_known_before_it_is_shown(made: int, directory: Path) -> None:
    device = os.fstat(made).st_dev
    assert shown(made, directory).device == (os.major(device), os.minor(device))


def test_attributes_are_of_one_mount_and_not_of_the_file_system(made: int, directory: Path) -> None:
    fsmount.set_attributes(made, on=fsmount.RDONLY | fsmount.NOEXEC, off=fsmount.NOSUID)
    found = shown(made, directory)
    assert "ro" in found.options and "noexec" in found.options and "nosuid" not in found.options
    assert "rw" in found.super_options
    with pytest.raises(OSError, match="Read-only"):
        (directory / "file").touch()
    other = fsmount.clone(libc.AT_FDCWD, str(directory))
    fsmount.set_attributes(other, off=fsmount.RDONLY)
    os.mkdir("written", dir_fd=other)
    os.close(other)
    assert os.listdir(directory) == ["written"]


def test_a_clone_has_a_directory_for_its_root_and_nothing_mounted_below(ledger: Ledger, directory: Path) -> None:
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "hidden").touch()
    at = ledger.directory()
    (directory / "a" / "b" / "below").touch()
    mount.tmpfs(str(directory / "a" / "b"), size=65536)
    fd = os.open(directory / "a", os.O_PATH)
    for recursive, entries in ((False, ["below"]), (True, [])):
        copy = fsmount.clone(fd, recursive=recursive)
        shown(copy, at)
        assert sorted(os.listdir(at)) == ["b", "hidden"]
        assert os.listdir(at / "b") == entries
        os.close(copy)
        mount.unmount(str(at), detach=True)
    os.close(fd)


def test_a_private_clone_shares_no_later_mount_with_what_it_is_of(ledger: Ledger, directory: Path) -> None:
    mount.tmpfs(str(directory), size=1 << 20)
    libc.mount("", str(directory), "", mount.MS_SHARED)
    (directory / "below").mkdir()
    for private in (False, True):
        at = ledger.directory()
        copy = fsmount.clone(libc.AT_FDCWD, str(directory))
        fsmount.set_attributes(copy, private=private)
        shown(copy, at)
        os.close(copy)
        mount.tmpfs(str(directory / "below"), size=65536)
        assert mount.is_mounted(str(at / "below")) is not private
        mount.unmount(str(directory / "below"))


def test_a_file_system_is_changed_while_it_is_mounted(made: int, directory: Path) -> None:
    shown(made, directory)
    opened = fsmount.at(str(directory))
    fsmount.reconfigure(opened, {"size": "131072"})
    os.close(opened)
    assert os.statvfs(directory).f_blocks * os.statvfs(directory).f_frsize == 131072


def test_a_refused_option_is_named_with_the_kernels_words_and_without_its_value() -> None:
    with pytest.raises(OSError, match="Bad value for 'size'") as caught:
        fsmount.create("tmpfs", {"mode": "0700", "size": "precious"})
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "size")
    assert "precious" not in str(caught.value)


def test_an_unknown_file_system_or_a_missing_device_is_named(directory: Path) -> None:
    with pytest.raises(OSError, match="fsopen") as caught:
        fsmount.create("nosuchfs", {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "nosuchfs")
    with pytest.raises(OSError, match="fsconfig") as caught:
        fsmount.create("ext4", {"source": str(directory / "absent")})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "ext4")


def test_a_link_is_neither_followed_nor_mounted_on(ledger: Ledger, made: int, directory: Path) -> None:
    (directory / "to").mkdir()
    (directory / "link").symlink_to("to")
    link = fsmount.at(str(directory / "link"))
    ledger.adopt("link", lambda: os.close(link))
    with pytest.raises(OSError, match="move_mount: Invalid argument"):
        fsmount.show(made, link)
