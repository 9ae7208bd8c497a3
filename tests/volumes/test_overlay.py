"""The volume overlay: a writable copy, of what a rule allows and nothing else, that stays within its size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, NotFound, PermissionRefused, Refused, Unavailable
from nodeplug.kernel import loop, mount
from nodeplug.volumes.service import Service
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import MIB, POD, Place, seen

pytestmark = needs("sandbox", "overlay", "loop")
on_each = pytest.mark.parametrize("upper", ["tmpfs", "loop"])


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def image(place: Place, make: list[str], name: str = "base.img", **files: str) -> Path:
    """An image file of the host with these files in it."""
    content = place.directory(f"content-of-{name}", **files)
    path = place.host / name
    run([part.replace("CONTENT", str(content)).replace("IMAGE", str(path)) for part in make]).ok()
    return path


EXT4 = ["mkfs.ext4", "-q", "-d", "CONTENT", "IMAGE", "8M"]


@on_each
def test_the_copy_is_written_and_the_lower_one_stays_as_it_was(place: Place, upper: str) -> None:
    lower = place.directory("lower", old="lower's", gone="lower's")
    at = Path(place.service.publish(place.request("overlay", lower=str(lower), size="8Mi", upper=upper)).target)
    (at / "old").write_text("pod's")
    (at / "gone").unlink()
    (at / "new").write_text("pod's")
    assert sorted(os.listdir(at)) == ["new", "old"]
    assert sorted(os.listdir(lower)) == ["gone", "old"] and (lower / "old").read_text() == "lower's"
    found = seen(str(at))
    assert found.fstype == "overlay" and {"nosuid", "nodev", "noexec"} <= set(found.options)
    assert "redirect_dir=nofollow" in found.super_options and "metacopy=on" not in found.super_options
    place.service.unpublish(str(at))
    assert place.remains() == []


@on_each
def test_what_is_changed_stays_within_its_size(place: Place, upper: str) -> None:
    lower = place.directory("lower", large="x" * 2 * MIB)
    at = Path(place.service.publish(place.request("overlay", lower=str(lower), size="8Mi", upper=upper)).target)
    with open(at / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            file.write(bytes(256 * 1024))
    assert 4 * MIB < (at / "filler").stat().st_size <= 8 * MIB
    with pytest.raises(OSError, match="No space left") as caught, open(at / "large", "ab") as file:
        file.write(b"a copy of it would not fit")
    assert caught.value.errno == errno.ENOSPC
    assert place.service.stats(str(at)).total <= 8 * MIB
    place.service.unpublish(str(at))


def test_several_directories_lie_on_each_other_the_first_uppermost(place: Place) -> None:
    one, two, three = (place.directory(name, common=name, **{name: name}) for name in ("one", "two", "three"))
    request = place.request("overlay", lower=f"{one}, {two},{three}", size="1Mi")
    at = Path(place.service.publish(request).target)
    assert sorted(os.listdir(at)) == ["common", "one", "three", "two"]
    assert (at / "common").read_text() == "one"
    place.service.unpublish(str(at))


@pytest.mark.parametrize(
    "name", ["a,b", "a:b", "a\\b", "a\\:b,c", "a b", 'a"b', "a\\", "é", "a#b", "a=b;c", "upperdir=x"]
)
def test_any_name_can_be_copied(place: Place, name: str) -> None:
    lower = place.directory(name, file=name)
    written = str(lower).replace("\\", "\\\\").replace(",", "\\,")
    request = place.request("overlay", lower=f"{place.directory('upper')},{written}", size="1Mi")
    at = Path(place.service.publish(request).target)
    assert (at / "file").read_text() == name
    place.service.unpublish(str(at))


@pytest.mark.parametrize(
    "make",
    [
        EXT4,
        ["sh", "-c", "truncate -s 300M IMAGE && mkfs.xfs -q IMAGE"],
        pytest.param(["mksquashfs", "CONTENT", "IMAGE"], marks=needs("program:mksquashfs")),
    ],
    ids=["ext4", "xfs", "squashfs"],
)
def test_an_image_is_copied_and_not_written_to(place: Place, make: list[str]) -> None:
    path = image(place, make, old="image's")
    before = path.read_bytes()
    at = Path(place.service.publish(place.request("overlay", image=str(path), size="1Mi")).target)
    if make[0] != "sh":
        assert (at / "old").read_text() == "image's"
        (at / "old").write_text("pod's")
    (at / "new").write_text("pod's")
    (device,) = [each for each in loop.devices() if each.backing == str(path)]
    fd = os.open(device.path, os.O_RDONLY)
    assert loop.flags_of(fd) & loop.READ_ONLY
    os.close(fd)
    place.service.unpublish(str(at))
    assert path.read_bytes() == before and place.remains() == []
    assert [each for each in loop.devices() if each.backing == str(path)] == []


def test_two_pods_may_have_copies_of_one_image(place: Place) -> None:
    path = image(place, EXT4, old="image's")
    requests = [
        place.request("overlay", image=str(path), size="1Mi", pod=POD.replace(uid=f"uid-{number}"))
        for number in range(3)
    ]
    for request in requests:
        place.service.publish(request)
    assert len([each for each in loop.devices() if each.backing == str(path)]) == 1
    (Path(requests[0].target) / "old").write_text("mine")
    assert (Path(requests[1].target) / "old").read_text() == "image's"
    for request in requests:
        place.service.unpublish(request.target)
    assert place.remains() == []


def test_an_image_that_holds_nothing_known_is_refused(place: Place) -> None:
    path = place.host / "junk.img"
    path.write_bytes(bytes(MIB))
    with pytest.raises(Refused, match="holds no file system that nodeplug knows"):
        place.service.publish(place.request("overlay", image=str(path), size="1Mi"))
    os.mkfifo(place.host / "fifo")
    with pytest.raises((Refused, Unavailable)):
        place.service.publish(place.request("overlay", image=str(place.host / "fifo"), size="1Mi"))
    with pytest.raises(NotFound):
        place.service.publish(place.request("overlay", image=str(place.host / "absent"), size="1Mi"))
    assert place.remains() == []


def test_nothing_is_copied_without_a_rule_or_through_a_link(place: Place) -> None:
    lower = place.directory("lower")
    (lower / "link").symlink_to("/etc")
    with pytest.raises(PermissionRefused, match="no rule that is for them has a root above /etc"):
        place.service.publish(place.request("overlay", lower=f"{lower},/etc", size="1Mi"))
    with pytest.raises(Refused, match="has a symbolic link in it"):
        place.service.publish(place.request("overlay", lower=str(lower / "link"), size="1Mi"))
    (place.host / "link.img").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="has a symbolic link in it"):
        place.service.publish(place.request("overlay", image=str(place.host / "link.img"), size="1Mi"))
    with pytest.raises(PermissionRefused):
        Service().publish(place.request("overlay", lower=str(lower), size="1Mi"))
    with pytest.raises(PermissionRefused, match="they may have 1Gi"):
        place.service.publish(place.request("overlay", lower=str(lower), size="2Gi"))
    assert place.remains() == []


@pytest.mark.parametrize(
    "lower", ["", "/a,/a", "/a,/a/b", "/,/a", "relative", "/a/..", ",".join(f"/{n}" for n in range(33))]
)
def test_a_list_that_makes_no_sense_is_refused(place: Place, lower: str) -> None:
    with pytest.raises(ConfigInvalid):
        place.service.publish(place.request("overlay", lower=lower, size="1Mi"))


def test_a_layer_cannot_show_what_is_not_below_it(place: Place) -> None:
    """A redirect that somebody wrote into a lower directory's attributes would lead overlayfs elsewhere."""
    place.directory("lower/inside")
    place.directory("other/elsewhere", secret="hidden")
    os.setxattr(place.host / "lower" / "inside", "trusted.overlay.redirect", b"/elsewhere")
    request = place.request("overlay", lower=f"{place.host / 'lower'},{place.host / 'other'}", size="1Mi")
    at = Path(place.service.publish(request).target)
    assert os.listdir(at / "elsewhere") == ["secret"]
    try:
        assert os.listdir(at / "inside") == []
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.EIO)
    place.service.unpublish(str(at))


@on_each
@pytest.mark.parametrize("group", [None, 4242])
def test_the_top_directory_is_as_the_lower_one_but_for_the_pods_group(
    place: Place, upper: str, group: int | None
) -> None:
    lower = place.directory("lower", file="x")
    lower.chmod(0o751)
    os.chown(lower, 11, 12)
    before = lower.stat()
    request = place.request("overlay", lower=str(lower), size="8Mi", upper=upper, fs_group=group)
    at = place.service.publish(request).target
    found = os.stat(at)
    expected = (0o751, 11, 12) if group is None else (0o2771, 11, group)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == expected
    place.service.unpublish(at)
    after = lower.stat()
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_ctime_ns) == (
        *(before.st_mode, before.st_uid, before.st_gid, before.st_ctime_ns),
    )


def test_changes_in_an_image_outlive_a_reboot(place: Place) -> None:
    lower = place.directory("lower", old="lower's")
    request = place.request("overlay", lower=str(lower), size="8Mi", upper="loop")
    at = Path(place.service.publish(request).target)
    (at / "old").write_text("pod's")
    mount.unmount(str(at))
    place.service.publish(request)
    assert (at / "old").read_text() == "pod's"
    place.service.unpublish(str(at))
    assert place.remains() == []


def test_a_read_only_one_is_and_programs_run_only_where_that_is_asked_for(place: Place) -> None:
    lower = place.directory("lower", program="#!/bin/sh\n")
    (lower / "program").chmod(0o755)
    at = place.service.publish(
        place.request("overlay", lower=str(lower), size="1Mi", read_only=True, exec="true")
    ).target
    assert run(["sh", "-c", f"{at}/program"]).code == 0
    with pytest.raises(OSError, match="Read-only"):
        Path(at, "new").touch()
    place.service.unpublish(at)
    at = place.service.publish(place.request("overlay", lower=str(lower), size="1Mi")).target
    assert run(["sh", "-c", f"{at}/program"]).code == 126
    place.service.unpublish(at)
