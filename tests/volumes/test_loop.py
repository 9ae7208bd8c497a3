"""The volume loop: a quota that cannot be passed, images that live as long as they should, and none made over."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, Unavailable
from nodeplug.kernel import loop, mount
from nodeplug.volumes import images
from nodeplug.volumes.contract import Image
from nodeplug.volumes.service import Service
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.places import MIB, POD, Place, replaced, seen

pytestmark = needs("sandbox", "loop")
with_each = pytest.mark.parametrize(
    ("fs", "size"),
    [pytest.param("ext4", 32 * MIB), pytest.param("xfs", 300 * MIB, marks=needs("program:mkfs.xfs"))],
)


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def image_of(place: Place, target: str) -> Path:
    known = place.service.find(target)
    assert known is not None
    return place.images / "pod" / f"{known.id}.img"


def fill(at: Path) -> int:
    """Write until there is no more room, as a runaway pod does; returns the bytes that were written."""
    written = 0
    with open(at / "filler", "wb", buffering=0) as file:
        for piece in (256 * 1024, 4096):
            try:
                while True:
                    written += file.write(bytes(piece))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            os.fsync(file.fileno())
    return written


@with_each
def test_a_full_volume_says_so_at_its_quota_and_the_node_is_unharmed(place: Place, fs: str, size: int) -> None:
    """The image is sparse: its blocks are the node's, and never more of them than the quota."""
    request = place.request("loop", size=str(size), fs=fs)
    at = Path(place.service.publish(request).target)
    image = image_of(place, request.target)
    before = os.statvfs(place.images)
    said = place.service.stats(str(at)).available
    written = fill(at)
    assert said * 0.9 < written <= said <= size
    assert place.service.stats(str(at)).available < 128 * 1024, "what a file system keeps for its own tables"
    assert image.stat().st_size == size and image.stat().st_blocks * 512 <= size + 64 * 1024
    taken = (before.f_bavail - os.statvfs(place.images).f_bavail) * before.f_frsize
    assert taken <= size + MIB
    (place.top / "node").write_bytes(bytes(MIB))  # the node's own files are written as before
    (at / "filler").unlink()
    (at / "again").write_bytes(bytes(4 * MIB))
    place.service.unpublish(str(at))
    assert place.remains() == []
    assert os.statvfs(place.images).f_bavail >= before.f_bavail - 300, "the blocks are the node's again"


@with_each
def test_a_preallocated_image_has_all_its_blocks_at_once(place: Place, fs: str, size: int) -> None:
    request = place.request("loop", size=str(size), fs=fs, preallocate="full")
    at = place.service.publish(request).target
    assert image_of(place, at).stat().st_blocks * 512 >= size
    place.service.unpublish(at)
    at = place.service.publish(place.request("loop", size=str(size), fs=fs)).target
    assert image_of(place, at).stat().st_blocks * 512 < size / 3
    place.service.unpublish(at)


@with_each
def test_a_reboot_keeps_what_the_pod_has_written(place: Place, fs: str, size: int) -> None:
    """Nothing is unmounted at a power cut: the journal is replayed before the pod may write again."""
    request = place.request("loop", size=str(size), fs=fs)
    at = Path(place.service.publish(request).target)
    (at / "precious").write_text("data")
    os.sync()
    image = image_of(place, request.target)
    torn = image.read_bytes()  # as the disk has it, while it is mounted
    mount.unmount(str(at))
    image.write_bytes(torn)
    known = place.service.find(str(at))
    assert known is not None and not known.mounted
    assert place.service.collect(apply=True) == (), "its pod is there and may come back"
    place.service.publish(request)
    assert (at / "precious").read_text() == "data"
    (at / "more").write_text("more")
    place.service.unpublish(str(at))
    assert place.remains() == []


def test_a_pod_that_did_not_come_back_from_a_reboot_takes_its_image_along(place: Place) -> None:
    request = place.request("loop", size="8Mi")
    place.service.publish(request)
    mount.unmount(request.target)
    os.rmdir(request.target)
    place.service.unpublish(request.target)
    assert place.remains() == []


@pytest.mark.parametrize(
    ("options", "group", "expected"),
    [
        ({}, None, (0o777, 0, 0)),
        ({"mode": "0700", "uid": "7", "gid": "8"}, None, (0o700, 7, 8)),
        ({"mode": "0700", "uid": "7", "gid": "8"}, 2000, (0o2770, 7, 2000)),
    ],
)
def test_owner_and_rights_are_those_asked_for(
    place: Place, options: dict[str, str], group: int | None, expected: tuple[int, int, int]
) -> None:
    at = place.service.publish(place.request("loop", size="8Mi", fs_group=group, **options)).target
    found = os.stat(at)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == expected
    assert {"nosuid", "nodev"} <= set(seen(at).options) and "noexec" not in seen(at).options
    place.service.unpublish(at)


def test_a_read_only_one_is(place: Place) -> None:
    at = place.service.publish(place.request("loop", size="8Mi", read_only=True, exec="false")).target
    with pytest.raises(OSError, match="Read-only"):
        (Path(at) / "new").touch()
    assert "noexec" in seen(at).options
    place.service.unpublish(at)


def test_the_pods_fs_type_is_taken_and_others_than_ours_are_refused(place: Place) -> None:
    with pytest.raises(ConfigInvalid, match="cannot have the file system 'btrfs'; ext4, xfs can be"):
        place.service.publish(place.request("loop", size="300Mi", fs_type="btrfs"))
    at = place.service.publish(place.request("loop", size="300Mi", fs_type="xfs")).target
    assert seen(at).fstype == "xfs"
    place.service.unpublish(at)


def test_the_device_goes_with_the_volume_and_is_of_the_image(place: Place) -> None:
    at = place.service.publish(place.request("loop", size="8Mi")).target
    (device,) = [each for each in loop.devices() if each.backing == str(image_of(place, at))]
    assert seen(at).source == device.path
    fd = os.open(device.path, os.O_RDONLY)
    flags = loop.flags_of(fd)
    os.close(fd)
    assert flags & loop.AUTOCLEAR and not flags & loop.READ_ONLY
    place.service.unpublish(at)
    assert [each for each in loop.devices() if each.backing.startswith(str(place.images))] == []


class TestOnTheNode:
    """Images of scope `node`."""

    def asked(self, place: Place, pod: str = "till-0", *, read_only: bool = False, **options: str):  # type: ignore[no-untyped-def]  # a Request
        given = {"size": "16Mi", "scope": "node", "name": "cache", **options}
        return place.request("loop", pod=POD.replace(name=pod, uid=f"uid-of-{pod}"), read_only=read_only, **given)

    def image(self, place: Place, namespace: str = "shop") -> Path:
        return place.images / "node" / namespace / "cache.img"

    def test_the_next_pod_finds_what_the_last_one_wrote(self, place: Place) -> None:
        first, second = self.asked(place), self.asked(place, "till-1")
        place.service.publish(first)
        (Path(first.target) / "cached").write_text("data")
        place.service.unpublish(first.target)
        assert self.image(place).exists()
        place.service.publish(second)
        assert (Path(second.target) / "cached").read_text() == "data"
        place.service.unpublish(second.target)
        assert place.remains(besides="image") == [] and place.service.collect(apply=True) == ()
        assert self.image(place).exists()

    def test_one_pod_writes_and_others_read(self, place: Place) -> None:
        writer, reader = self.asked(place), self.asked(place, "reader", read_only=True)
        second = self.asked(place, "till-1")
        place.service.publish(writer)
        with pytest.raises(Refused, match=r"shop/cache is written by till-0; one pod at a time may"):
            place.service.publish(second)
        place.service.publish(reader)
        (Path(writer.target) / "file").write_text("shared")
        assert (Path(reader.target) / "file").read_text() == "shared"
        with pytest.raises(OSError, match="Read-only"):
            (Path(reader.target) / "new").touch()
        place.service.unpublish(writer.target)
        place.service.publish(second)  # beside the reader
        (Path(second.target) / "file").write_text("new")
        assert (Path(reader.target) / "file").read_text() == "new"
        for request in (second, reader):
            place.service.unpublish(request.target)
        assert place.remains(besides="image") == []

    def test_of_many_pods_at_once_one_writes(self, place: Place) -> None:
        requests = [self.asked(place, f"till-{number}") for number in range(6)]
        pids = []
        for request in requests:
            pid = os.fork()
            if pid == 0:
                try:
                    place.service.publish(request)
                except Refused:
                    os._exit(1)
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        assert len([request for request in requests if mount.is_mounted(request.target)]) == 1
        for request in requests:
            place.service.unpublish(request.target)

    def test_another_namespace_has_another_image(self, place: Place) -> None:
        ours = self.asked(place)
        theirs = ours.replace(pod=POD.replace(namespace="other"), target=place.target("loop", "theirs"))
        for request in (ours, theirs):
            place.service.publish(request)
        (Path(ours.target) / "file").touch()
        assert not (Path(theirs.target) / "file").exists()
        for request in (ours, theirs):
            place.service.unpublish(request.target)
        assert self.image(place, "other").exists()

    def test_one_to_be_deleted_goes_with_its_last_pod(self, place: Place) -> None:
        first, second = self.asked(place, reclaim="delete"), self.asked(place, "r", read_only=True, reclaim="delete")
        for request in (first, second):
            place.service.publish(request)
        place.service.unpublish(first.target)
        assert self.image(place).exists()
        place.service.unpublish(second.target)
        assert place.remains() == []

    def test_a_reader_changes_nothing_also_for_its_group(self, place: Place) -> None:
        writer, reader = self.asked(place, mode="0700"), self.asked(place, "reader", read_only=True).replace(fs_group=7)
        place.service.publish(writer)
        before = os.stat(writer.target)
        place.service.publish(reader)
        assert os.stat(writer.target) == before
        for request in (writer, reader):
            place.service.unpublish(request.target)

    @with_each
    def test_it_grows_when_more_is_asked_for_and_never_shrinks(self, place: Place, fs: str, size: int) -> None:
        for asked, expected in ((size, size), (2 * size, 2 * size), (size, 2 * size)):
            request = self.asked(place, size=str(asked), fs=fs)
            at = Path(place.service.publish(request).target)
            if asked == expected == size:
                (at / "kept").write_text("data")
            assert (at / "kept").read_text() == "data"
            assert expected * 0.7 < place.service.stats(str(at)).total <= expected
            place.service.unpublish(str(at))
            assert self.image(place).stat().st_size == expected

    def test_no_policy_no_image_of_the_node(self, place: Place) -> None:
        with pytest.raises(PermissionRefused, match=r'scopes = \["node"\]'):
            Service().publish(self.asked(place))


def test_a_volume_that_is_made_larger_is_so_at_its_next_publish(place: Place) -> None:
    request = place.request("loop", size="16Mi")
    at = place.service.publish(request).target
    resized = place.service.resize(at, 64 * MIB)
    assert (resized.size, resized.pending) == (64 * MIB, True)
    assert place.service.stats(at).total < 16 * MIB
    with pytest.raises(Refused, match="has 64Mi, and images do not shrink"):
        place.service.resize(at, 32 * MIB)
    assert not place.service.resize(at, 64 * MIB).pending
    place.service.publish(request)  # the kubelet's repeat knows only the first size
    mount.unmount(at)
    place.service.publish(request)
    assert place.service.stats(at).total > 50 * MIB
    place.service.unpublish(at)


@pytest.mark.parametrize("content", ["xfs", "nothing", "text"])
def test_what_lies_in_an_images_place_is_never_made_over(place: Place, content: str) -> None:
    request = place.request("loop", size="300Mi")
    place.service.publish(request)
    image = image_of(place, request.target)
    mount.unmount(request.target)
    image.unlink()
    with open(image, "wb") as file:
        file.truncate(300 * MIB)
    if content == "xfs":
        run(["mkfs.xfs", "-q", image]).ok()
    elif content == "text":
        image.write_text("precious")
    before = image.stat()
    with pytest.raises(Refused, match="holds xfs, not ext4" if content == "xfs" else "holds no file system"):
        place.service.publish(request)
    after = image.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not mount.is_mounted(request.target)
    place.service.unpublish(request.target)


def test_a_link_in_an_images_place_is_not_followed(place: Place) -> None:
    request = place.request("loop", size="8Mi")
    (place.images / "pod").mkdir(parents=True)
    victim = place.top / "victim"
    victim.write_bytes(b"x" * MIB)
    Path(images.pod_image(str(place.images), request.id)).symlink_to(victim)
    with pytest.raises(Unavailable, match="symbolic links"):
        place.service.publish(request)
    assert victim.read_bytes() == b"x" * MIB
    os.unlink(images.pod_image(str(place.images), request.id))


def test_a_damaged_file_system_is_not_given_to_a_pod(place: Place) -> None:
    request = place.request("loop", size="16Mi")
    place.service.publish(request)
    image = image_of(place, request.target)
    mount.unmount(request.target)
    with open(image, "r+b") as file:  # the group descriptors, and the journal's inode with them
        file.seek(2048)
        file.write(b"\xff" * 512 * 1024)
    with pytest.raises(Unavailable, match=r"is damaged: .*save what is in it, then `e2fsck -f"):
        place.service.publish(request)
    assert not mount.is_mounted(request.target)
    assert image.exists(), "whoever wants to save what is in it can"
    place.service.unpublish(request.target)
    assert place.remains() == []


def test_an_image_that_somebody_still_checks_is_waited_for(place: Place, ledger: Ledger) -> None:
    """The child of a caller that was killed: it holds the image's lock until it has ended."""
    request = place.request("loop", size="8Mi")
    place.service.publish(request)
    image = image_of(place, request.target)
    mount.unmount(request.target)
    fd = os.open(image, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    orphan = subprocess.Popen(["sleep", "0.5"], pass_fds=[fd])
    ledger.adopt("orphan", orphan.wait)
    os.close(fd)
    place.service.publish(request)
    assert orphan.poll() == 0
    place.service.unpublish(request.target)


def test_the_node_gives_away_no_more_than_it_has(ledger: Ledger) -> None:
    place = Place(ledger, total=40 * MIB)
    for number in range(2):
        place.service.publish(place.request("loop", volume=f"v{number}", size="16Mi"))
    with pytest.raises(Unavailable, match="may have 40Mi in all; 32Mi are given away, so that 16Mi more do not fit"):
        place.service.publish(place.request("loop", volume="v2", size="16Mi"))
    with pytest.raises(Unavailable, match="may have 40Mi in all"):
        place.service.resize(place.target("loop", "v0"), 32 * MIB)
    place.service.publish(place.request("loop", volume="v3", size="8Mi"))
    for number in (0, 1, 3):
        place.service.unpublish(place.target("loop", f"v{number}"))
    assert place.remains() == []


def test_the_disk_keeps_what_it_is_to_keep_and_what_sparse_images_were_promised(ledger: Ledger) -> None:
    place = Place(ledger, floor=32 * MIB)
    place.images.mkdir()
    mount.tmpfs(str(place.images), size=100 * MIB)
    place.service.publish(place.request("loop", volume="one", size="48Mi"))
    with pytest.raises(Unavailable, match=r"are promised to sparse images and 32Mi stay free always: 32Mi more do not"):
        place.service.publish(place.request("loop", volume="two", size="32Mi"))
    place.service.publish(place.request("loop", volume="two", size="16Mi", preallocate="full"))
    for volume in ("one", "two"):
        fill(Path(place.target("loop", volume)))
        place.service.unpublish(place.target("loop", volume))
    assert place.remains() == []


def test_of_two_that_come_for_the_last_room_at_once_one_gets_it(ledger: Ledger) -> None:
    """Both find room when they begin: what counts is when the image gets its name."""
    place = Place(ledger, total=24 * MIB)
    replaced(ledger, "mkfs.ext4", '#!/bin/sh\nsleep 0.3\nexec ORIGINAL -t ext4 "$@"\n')
    requests = [place.request("loop", volume=f"v{number}", size="16Mi") for number in range(2)]
    pids = []
    for request in requests:
        pid = os.fork()
        if pid == 0:
            try:
                place.service.publish(request)
            except Unavailable:
                os._exit(1)
            finally:
                os._exit(0)
        pids.append(pid)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == [0, 1]
    for request in requests:
        place.service.unpublish(request.target)
    assert place.remains() == []


def test_a_real_full_disk_is_told_and_leaves_nothing(ledger: Ledger) -> None:
    place = Place(ledger, floor=0)
    place.images.mkdir()
    mount.tmpfs(str(place.images), size=20 * MIB)
    (place.images / "other").write_bytes(bytes(16 * MIB))
    with pytest.raises(Unavailable, match="do not fit"):
        place.service.publish(place.request("loop", size="16Mi", preallocate="full"))
    (place.images / "other").unlink()
    at = place.service.publish(place.request("loop", size="16Mi", preallocate="full")).target
    place.service.unpublish(at)
    assert place.remains() == []


def test_a_directory_that_cannot_hold_unnamed_files_is_told(place: Place) -> None:
    """On file systems without O_TMPFILE, none of which need be here: its open fails, and no other does."""
    request = place.request("loop", size="8Mi")
    told = place.top / "told"

    def publish() -> None:
        try:
            place.service.publish(request)
        except Unavailable as error:
            told.write_text(str(error))
            raise

    for number in range(len(faults.calls_of(publish))):
        place.service.unpublish(request.target)
        faults.failing_at(number, errno.EOPNOTSUPP, publish)
        if told.exists() and "O_TMPFILE" in told.read_text():
            break
    assert "set volumes.loop.directory to one that can: ext4, xfs, btrfs" in told.read_text()
    assert place.remains() == []


def test_an_image_that_was_removed_makes_the_volume_ill(place: Place) -> None:
    at = place.service.publish(place.request("loop", size="8Mi")).target
    assert place.service.health(at).ok
    image_of(place, at).unlink()
    assert "has been removed" in place.service.health(at).reason
    place.service.unpublish(at)


def test_a_file_system_that_can_only_be_read_after_an_error_makes_it_ill(place: Place) -> None:
    at = place.service.publish(place.request("loop", size="8Mi")).target
    run(["mount", "-o", "remount,ro", seen(at).source, at]).ok()
    run(["mount", "-o", "remount,bind,rw", at])
    assert place.service.health(at).reason == "after an error its file system can only be read"
    place.service.unpublish(at)


@given(st.binary(max_size=4096))
def test_any_bytes_are_a_file_system_or_none(head: bytes) -> None:
    name, size, granule = images.recognise(head)
    assert (name, size, granule) == ("", 0, 0) or (size >= 0 and granule >= 0)


@pytest.mark.parametrize("make", [["mkfs.ext4", "-F"], ["mkfs.ext4", "-F", "-O", "^64bit"], ["mkfs.xfs"], ["mkswap"]])
def test_a_file_system_is_recognised_with_its_size(directory: Path, make: list[str]) -> None:
    path = directory / "image"
    with open(path, "wb") as file:
        file.truncate(512 * MIB)
    run([*make, path]).ok()
    found = images.look(str(path))
    assert found is not None
    if make == ["mkswap"]:
        assert found.fs == ""
    else:
        assert found.fs in make[0] and 512 * MIB - found.granule < found.fs_size <= 512 * MIB
        assert found.granule < 4 * MIB


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=5), *[st.integers(0, 300)] * 4)
def test_room_is_given_when_all_promises_can_be_kept(
    there: list[tuple[int, int]], size: int, free: int, total: int, floor: int
) -> None:
    given_away = [Image(path="", size=size, used=min(used, size)) for size, used in there]
    try:
        images.ensure_room(size, given_away, free, total=total, floor=floor)
    except Unavailable:
        return
    assert sum(image.size for image in given_away) + size <= total
    # Every image filled to its size, this one too: the floor is still free.
    assert free - sum(image.size - image.used for image in given_away) - size >= floor
