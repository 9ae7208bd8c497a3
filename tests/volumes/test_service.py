"""Publishing and unpublishing, whatever the volume: repeats, strangers, reboots, dead mounts, busy ones."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, TimedOut, TryAgain, Unavailable
from nodeplug.kernel import libc, mount
from nodeplug.volumes import service as services
from nodeplug.volumes import state
from nodeplug.volumes.contract import Health, Published
from nodeplug.volumes.service import Service
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import MIB, POD, Place, replaced, seen

pytestmark = needs("sandbox")


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def test_a_volume_comes_and_goes(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    published = place.service.publish(request)
    assert published.mounted and published == place.service.find(request.target)
    assert place.service.published() == (published,)
    assert place.service.health(request.target) == Health(ok=True)
    held = place.service.stats(request.target)
    assert (held.total, held.available, held.used, held.files) == (MIB, MIB, 0, 256 + 1024)
    assert seen(request.target).source == "nodeplug.dev/tmpfs"
    place.service.unpublish(request.target)
    assert place.service.published() == () and place.service.find(request.target) is None
    assert os.listdir(request.target) == [] and place.remains() == []


def test_the_same_again_is_success_and_changes_nothing(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    first = place.service.publish(request)
    (Path(request.target) / "file").write_text("content")
    before = mount.mounts()
    assert Service(place.policy).publish(request) == first
    assert mount.mounts() == before and (Path(request.target) / "file").read_text() == "content"
    place.service.unpublish(request.target)


def test_the_same_again_is_success_although_the_policy_would_refuse_it_now(place: Place) -> None:
    request = place.request("bind", path=str(place.directory("a")))
    first = place.service.publish(request)
    assert Service().publish(request) == first
    place.service.unpublish(request.target)
    with pytest.raises(services.Error):
        Service().publish(request)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"read_only": True}, "read_only"),
        ({"fs_group": 7}, "fs_group"),
        ({"pod": POD.replace(name="other")}, "pod"),
        ({"options": None}, "options"),
    ],
)
def test_another_request_for_a_live_target_is_refused_and_says_what_differs(
    place: Place, change: dict[str, object], words: str
) -> None:
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    if "options" in change:
        change = {"options": request.options.replace(size=2 * MIB)}
    with pytest.raises(Refused, match=f"published with other {words}"):
        place.service.publish(request.replace(**change))
    assert "rw" in seen(request.target).options
    place.service.unpublish(request.target)


def test_what_another_has_mounted_there_is_neither_taken_for_ours_nor_touched(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    mount.tmpfs(request.target, size=65536)
    before = seen(request.target)
    with pytest.raises(Refused, match=r"tmpfs of 'tmpfs' is mounted at .*, and is no volume of this request"):
        place.service.publish(request)
    assert seen(request.target) == before and state.ids() == []
    place.service.unpublish(request.target)
    assert not mount.is_mounted(request.target)


def test_a_stranger_on_top_of_a_volume_is_told_and_goes_with_it(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    mount.tmpfs(request.target, size=65536)
    with pytest.raises(Refused, match="no volume of this request"):
        place.service.publish(request)
    health = place.service.health(request.target)
    assert not health.ok and "is mounted over" in health.reason
    with pytest.raises(NotFound):
        place.service.stats(request.target)
    place.service.unpublish(request.target)
    assert place.remains() == []


def test_a_missing_target_is_made_and_a_file_in_its_place_is_refused(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    os.rmdir(request.target)
    os.rmdir(os.path.dirname(request.target))
    place.service.publish(request)
    assert mount.is_mounted(request.target)
    place.service.unpublish(request.target)
    os.rmdir(request.target)
    Path(request.target).touch()
    with pytest.raises(Refused, match="is not a directory"):
        place.service.publish(request)
    Path(request.target).unlink()
    Path(request.target).symlink_to(place.top)
    with pytest.raises(Refused, match="is not a directory"):
        place.service.publish(request)
    assert not mount.is_mounted(str(place.top))
    assert state.ids() == []
    Path(request.target).unlink()


def test_what_a_target_already_holds_is_hidden_and_told(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    (Path(request.target) / "left").touch()
    place.service.publish(request)
    assert place.warnings == [f"{request.target} was not empty: its 1 entries are hidden below the volume"]
    place.service.unpublish(request.target)
    (Path(request.target) / "left").unlink()


def test_nobody_but_root_could_write_below_a_volume_that_is_not_there(place: Place) -> None:
    """A pod that is started although its mount failed would else fill the host's disk (kubernetes#109955)."""
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    mount.unmount(request.target)
    assert os.stat(request.target).st_mode & 0o7777 == 0
    place.service.unpublish(request.target)
    os.rmdir(request.target)  # as the kubelet does


@pytest.mark.parametrize("target", ["relative", "/a/../b", "/a/", "//a", "/a\0b", "", "/a/./b"])
def test_a_target_that_is_no_plain_path_is_refused(place: Place, target: str) -> None:
    request = place.request("tmpfs", size="1Mi").replace(target=target)
    for call in (lambda: place.service.publish(request), lambda: place.service.unpublish(target)):
        with pytest.raises(ConfigInvalid, match="cannot be a volume's target"):
            call()


def test_an_unknown_volume_is_refused_with_those_there_are(place: Place) -> None:
    with pytest.raises(ConfigInvalid, match="it has bind, identity, log, loop"):
        place.service.publish(place.request("tmpfs", size="1Mi").replace(driver="nfs"))


def test_unpublishing_what_is_not_there_is_success_always(place: Place) -> None:
    target = place.target("tmpfs")
    place.service.unpublish(target)
    os.rmdir(target)
    place.service.unpublish(target)
    place.service.unpublish(str(place.top / "never" / "was"))
    file = place.top / "file"
    file.touch()
    place.service.unpublish(str(file))
    place.service.unpublish(str(file / "below"))
    assert file.exists() and place.warnings == []


def test_several_mounts_on_each_other_all_go(place: Place) -> None:
    target = place.target("tmpfs")
    for _ in range(5):
        mount.tmpfs(target, size=65536)
    place.service.unpublish(target)
    assert not mount.is_mounted(target)


def test_a_volume_in_use_is_left_to_its_last_user_who_is_named(place: Place, ledger: Ledger) -> None:
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    user = ledger.start(["sleep", "60"], cwd=request.target)
    place.service.unpublish(request.target)
    assert not mount.is_mounted(request.target) and state.ids() == []
    assert place.warnings == [
        f"the volume at {request.target} was still in use and ends with its last user: process {user.pid}"
    ]


@needs("file:/dev/fuse")
def test_a_dead_mount_is_taken_away_without_a_look_into_it(place: Place) -> None:
    """A FUSE whose server has died answers everything with ENOTCONN."""
    request = place.request("tmpfs", size="1Mi")
    target = request.target
    server = os.open("/dev/fuse", os.O_RDWR)
    libc.mount("dead", target, "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
    os.close(server)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(target)
    with pytest.raises(Refused, match="fuse of 'dead' is mounted"):
        place.service.publish(request)
    place.service.unpublish(target)
    assert os.listdir(target) == []


@needs("file:/dev/fuse")
def test_a_hung_mount_holds_nobody_up(place: Place) -> None:
    """A FUSE whose server never answers: who looked into it would wait for ever."""
    target = place.target("tmpfs")
    server = os.open("/dev/fuse", os.O_RDWR)
    libc.mount("hung", target, "fuse", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0")
    with pytest.raises(NotFound):
        place.service.stats(target)
    assert place.service.collect(apply=True) == ()
    place.service.unpublish(target)
    assert not mount.is_mounted(target)
    os.close(server)


def test_after_a_reboot_the_volume_is_published_anew(place: Place) -> None:
    """Mounts and /run are gone, and directories are there."""
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    mount.unmount(request.target)
    state.remove(request.id)
    place.service.unpublish(request.target)  # of a pod that did not come back
    place.service.publish(request)  # of one that did
    assert mount.is_mounted(request.target)
    place.service.unpublish(request.target)


def test_a_volume_that_somebody_unmounted_is_known_as_such_and_published_anew(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    mount.unmount(request.target)
    found = place.service.find(request.target)
    assert found is not None and not found.mounted
    assert place.service.health(request.target) == Health(ok=False, reason=f"nothing is mounted at {request.target}")
    place.service.publish(request)
    assert mount.is_mounted(request.target)
    place.service.unpublish(request.target)


def test_a_state_that_cannot_be_understood_keeps_nobody_from_ending(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    place.service.publish(request)
    Path(state.RUN, f"{request.id}.json").write_text("{")
    assert place.service.published() == ()
    place.service.unpublish(request.target)
    assert place.remains() == [] and "cannot be understood" in place.warnings[-1]


def test_calls_for_one_target_wait_for_each_other_with_a_bound(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    impatient = Service(place.policy, timeout=0.05)
    with files.range_lock(services.LOCK, request.id):
        for call in (lambda: impatient.publish(request), lambda: impatient.unpublish(request.target)):
            with pytest.raises(TryAgain):
                call()
        place.service.publish(place.request("tmpfs", volume="other", size="1Mi"))  # another target's
    place.service.unpublish(place.target("tmpfs", "other"))


def test_a_publish_that_takes_too_long_is_ended_and_leaves_nothing(place: Place) -> None:
    with pytest.raises(TimedOut, match="was not ready in time"):
        Service(place.policy, timeout=0.0).publish(place.request("tmpfs", size="1Mi"))
    assert place.remains() == []


def test_a_child_that_takes_too_long_is_ended_and_leaves_nothing(place: Place, ledger: Ledger) -> None:
    replaced(ledger, "mkfs.ext4", "#!/bin/sh\nsleep 60 & sleep 60\n")
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"mkfs\.ext4 did not end in time"):
        Service(place.policy, timeout=0.3).publish(place.request("loop", size="8Mi"))
    assert time.monotonic() - started < 30
    assert place.remains() == []


def test_many_threads_that_ask_for_one_volume_get_one(place: Place) -> None:
    request = place.request("tmpfs", size="1Mi")
    got: list[Published] = []
    threads = [threading.Thread(target=lambda: got.append(place.service.publish(request))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8 and len({(each.device, each.created) for each in got}) == 1
    assert [each.point for each in mount.mounts()].count(request.target) == 1
    place.service.unpublish(request.target)


def test_a_node_without_the_program_says_which_and_where_it_is(place: Place, ledger: Ledger) -> None:
    replaced(ledger, "mkfs.ext4", "", mode=0o644)
    with pytest.raises(Unavailable, match=r"mkfs\.ext4 is not on this node; install e2fsprogs"):
        place.service.publish(place.request("loop", size="8Mi"))
    assert place.remains() == []


def test_a_volume_is_seen_in_other_mount_namespaces_too(place: Place, ledger: Ledger) -> None:
    """The kubelet's directory is shared among them: what is shown there goes along."""
    pods = place.top / "pods"
    pods.mkdir()
    mount.bind(str(pods), str(pods))
    libc.mount("", str(pods), "", mount.MS_SHARED)
    request = place.request("tmpfs", size="1Mi")
    other = ledger.start(["unshare", "--mount", "--propagation", "unchanged", "sleep", "60"])
    own = os.stat("/proc/self/ns/mnt").st_ino
    while os.stat(f"/proc/{other.pid}/ns/mnt").st_ino == own:
        time.sleep(0.01)
    place.service.publish(request)
    there = f"/proc/{other.pid}/mountinfo"
    assert mount.is_mounted(request.target, there)
    place.service.unpublish(request.target)
    assert not mount.is_mounted(request.target, there)
    run(["umount", pods])
