"""The volume tmpfs: limits that hold exactly, and what a pod may do in it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, Unavailable
from nodeplug.volumes.contract import Grant, Image, Published
from nodeplug.volumes.memory import MemoryFs
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.tmpfs import Tmpfs
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import MIB, Place, seen

pytestmark = needs("sandbox")


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def test_it_holds_exactly_its_size(place: Place) -> None:
    at = Path(place.service.publish(place.request("tmpfs", size="1Mi")).target)
    (at / "full").write_bytes(bytes(MIB))
    with pytest.raises(OSError, match="No space left"):
        (at / "more").write_bytes(b"x")
    assert place.service.stats(str(at)).available == 0
    place.service.unpublish(str(at))


def test_it_holds_as_many_files_as_it_says(place: Place) -> None:
    at = Path(place.service.publish(place.request("tmpfs", size="1Mi", inodes="5")).target)
    for number in range(4):  # and its top directory
        (at / str(number)).touch()
    with pytest.raises(OSError, match="No space left") as caught:
        (at / "more").touch()
    assert caught.value.errno == errno.ENOSPC
    place.service.unpublish(str(at))


def test_empty_files_do_not_fill_the_nodes_memory(place: Place) -> None:
    """They take none of the size: without a limit of their own there would be one of half the node's pages."""
    at = place.service.publish(place.request("tmpfs", size="64Ki")).target
    assert place.service.stats(at).files == 16 + 1024
    place.service.unpublish(at)


@pytest.mark.parametrize(
    ("options", "group", "expected"),
    [
        ({}, None, (0o777, 0, 0)),
        ({"mode": "0700", "uid": "7", "gid": "8"}, None, (0o700, 7, 8)),
        ({}, 2000, (0o2777, 0, 2000)),
        ({"mode": "0700", "uid": "7", "gid": "8"}, 2000, (0o2770, 7, 2000)),
    ],
)
def test_its_owner_and_rights_are_those_asked_for(
    place: Place, options: dict[str, str], group: int | None, expected: tuple[int, int, int]
) -> None:
    at = place.service.publish(place.request("tmpfs", size="1Mi", fs_group=group, **options)).target
    found = os.stat(at)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == expected
    if group is not None:
        (Path(at) / "new").touch()
        assert os.stat(f"{at}/new").st_gid == group
    place.service.unpublish(at)


def test_nothing_in_it_is_executed_unless_that_is_asked_for(place: Place) -> None:
    for exec_, expected in (("false", False), ("true", True)):
        at = place.service.publish(place.request("tmpfs", size="1Mi", exec=exec_)).target
        program = Path(at) / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o4755)
        assert (run(["sh", "-c", program]).code == 0) is expected
        options = seen(at).options
        assert "nosuid" in options and "nodev" in options and ("noexec" in options) is not expected
        place.service.unpublish(at)


def test_a_read_only_one_is(place: Place) -> None:
    at = place.service.publish(place.request("tmpfs", size="1Mi", read_only=True)).target
    with pytest.raises(OSError, match="Read-only"):
        (Path(at) / "new").touch()
    place.service.unpublish(at)


def test_it_is_not_swapped_where_the_kernel_can_leave_it(place: Place) -> None:
    at = place.service.publish(place.request("tmpfs", size="1Mi")).target
    assert ("noswap" in seen(at).super_options) is knows_noswap()
    place.service.unpublish(at)
    at = place.service.publish(place.request("tmpfs", size="1Mi", swap="true")).target
    assert "noswap" not in seen(at).super_options
    place.service.unpublish(at)


def knows_noswap() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 4)


def test_it_grows_and_shrinks_while_it_is_used_but_not_below_what_it_holds(place: Place) -> None:
    at = place.service.publish(place.request("tmpfs", size="1Mi")).target
    (Path(at) / "half").write_bytes(bytes(MIB // 2))
    assert place.service.resize(at, 4 * MIB).size == 4 * MIB
    (Path(at) / "more").write_bytes(bytes(3 * MIB))
    assert place.service.stats(at).files == 4 * 256 + 1024
    with pytest.raises(Refused, match=r"holds 3\.5Mi, more than 3Mi"):
        place.service.resize(at, 3 * MIB)
    os.unlink(f"{at}/more")
    place.service.resize(at, MIB)
    assert place.service.stats(at).total == MIB
    with pytest.raises(PermissionRefused, match="they may have 1Gi"):
        place.service.resize(at, 2 << 30)
    place.service.publish(place.request("tmpfs", size="1Mi"))  # still the same volume
    place.service.unpublish(at)


class Poor:
    """A node with little memory."""

    def __init__(self, available: int) -> None:
        self.available = available

    def memory_available(self) -> int:
        return self.available

    def free(self, directory: str) -> int:
        raise AssertionError("not a tmpfs's business")

    def image(self, path: str) -> Image | None:
        raise AssertionError("not a tmpfs's business")

    def images(self, directory: str) -> tuple[Image, ...]:
        raise AssertionError("not a tmpfs's business")

    def published(self) -> tuple[Published, ...]:
        raise AssertionError("not a tmpfs's business")


def test_a_node_gives_no_more_memory_than_it_has(place: Place) -> None:
    request = place.request("tmpfs", size="64Mi")
    grant = Grant(largest=64 * MIB, policy=Policy())
    with pytest.raises(Unavailable, match="has 63Mi of memory available, less than the 64Mi"):
        Tmpfs().plan(request, grant, Poor(63 * MIB))
    (step,) = Tmpfs().plan(request, grant, Poor(64 * MIB)).steps
    assert isinstance(step, MemoryFs) and step.size == 64 * MIB


def test_a_size_is_needed(place: Place) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        place.request("tmpfs")
    assert caught.value.problems == (("$.size", "required, but missing (bytes it may hold)"),)
