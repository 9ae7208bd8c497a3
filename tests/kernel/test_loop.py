"""Loop devices: real ones, of files that are this test's own."""

from __future__ import annotations

import errno
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.kernel import fsmount, loop
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "loop")


def image(directory: Path, name: str = "a.img") -> Path:
    path = directory / name
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    return path


def opened(ledger: Ledger, path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    ledger.adopt("file", lambda: os.close(fd))
    return fd


def of(directory: Path) -> list[loop.Device]:
    return [device for device in loop.devices() if device.backing.startswith(f"{directory}/")]


def test_a_device_reads_and_writes_its_file_and_is_found_by_it(ledger: Ledger, directory: Path) -> None:
    path = image(directory)
    file = opened(ledger, path)
    fd, device = loop.attach(file, str(path))
    os.pwrite(fd, b"x" * 512, 512)
    os.fsync(fd)
    assert path.read_bytes()[511:514] == b"\0xx"
    assert of(directory) == [device]
    assert device.path == os.readlink(f"/proc/self/fd/{fd}")
    assert loop.flags_of(fd) & loop.AUTOCLEAR
    ((found, same),) = loop.find(file, path.name)
    assert same == device
    os.close(found)
    os.close(fd)
    assert of(directory) == []


def test_a_device_without_a_user_is_gone_also_after_kill_9(directory: Path) -> None:
    path = image(directory)
    pid = os.fork()
    if pid == 0:
        loop.attach(os.open(path, os.O_RDWR), str(path))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    until = time.monotonic() + 5
    while of(directory) and time.monotonic() < until:
        time.sleep(0.01)
    assert of(directory) == []


def test_a_mounted_device_outlives_its_opener_and_ends_with_the_mount(ledger: Ledger, directory: Path) -> None:
    path = image(directory)
    run(["mkfs.ext4", "-q", "-F", path]).ok()
    fd, device = loop.attach(opened(ledger, path), str(path))
    mounted = fsmount.create("ext4", {"source": device.path})
    os.close(fd)
    assert of(directory) == [device]
    os.close(mounted)
    assert of(directory) == []


def test_a_read_only_device_cannot_be_written(ledger: Ledger, directory: Path) -> None:
    path = image(directory)
    file = os.open(path, os.O_RDONLY)
    fd, _ = loop.attach(file, str(path), flags=loop.AUTOCLEAR | loop.READ_ONLY)
    os.close(file)
    assert loop.flags_of(fd) & loop.READ_ONLY
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_a_deleted_file_is_told_and_still_found(ledger: Ledger, directory: Path) -> None:
    path = image(directory)
    file = opened(ledger, path)
    fd, device = loop.attach(file, str(path))
    path.unlink()
    assert of(directory) == [device.replace(deleted=True)]
    ((found, _),) = loop.find(file, path.name)
    os.close(found)
    assert loop.detach(device.path) is True  # it ends with its last user
    os.close(fd)
    assert of(directory) == []


def test_another_file_of_the_same_name_is_not_taken_for_it(ledger: Ledger, directory: Path) -> None:
    (directory / "other").mkdir()
    one, other = image(directory), image(directory / "other")
    fd, _ = loop.attach(opened(ledger, one), str(one))
    assert loop.find(opened(ledger, other), other.name) == []
    os.close(fd)


def test_a_file_that_has_grown_makes_its_device_grow(ledger: Ledger, directory: Path) -> None:
    path = image(directory)
    fd, _ = loop.attach(opened(ledger, path), str(path))
    os.truncate(path, 8 << 20)
    assert os.lseek(fd, 0, os.SEEK_END) == 4 << 20
    loop.update_size(fd)
    assert os.lseek(fd, 0, os.SEEK_END) == 8 << 20
    os.close(fd)


def test_many_at_once_get_a_device_each(ledger: Ledger, directory: Path) -> None:
    """The kernel says which is free and does not keep it for who asked."""
    paths = [image(directory, f"{n}.img") for n in range(32)]
    files = [opened(ledger, path) for path in paths]
    with ThreadPoolExecutor(16) as threads:
        attached = list(threads.map(lambda n: loop.attach(files[n], str(paths[n])), range(len(paths))))
    for fd, _ in attached:
        ledger.adopt("device", lambda fd=fd: os.close(fd))  # type: ignore[misc]  # bound now
    assert len({device.number for _, device in attached}) == 32
    assert {device.backing for device in of(directory)} == {str(path) for path in paths}


def test_what_is_free_or_absent_is_not_detached(directory: Path) -> None:
    assert loop.detach("/dev/loop-absent") is False
    with pytest.raises(OSError, match="LOOP_CLR_FD") as caught:
        loop.detach("/dev/null")
    assert caught.value.errno == errno.ENOTTY


def test_a_device_number_is_read_as_the_kernel_writes_it() -> None:
    for major, minor in ((0, 38), (254, 0), (8, 300), (259, 0xFFFFF)):
        written = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        assert loop._from_huge(written) == os.makedev(major, minor)
