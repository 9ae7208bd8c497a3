"""The volume bind: a directory of the host, no other, and as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nodeplug.core.errors import NotFound, PermissionRefused, Refused, Unavailable
from nodeplug.kernel import libc, mount
from nodeplug.volumes.policy import Allow, Policy
from nodeplug.volumes.service import Service
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import MIB, POD, Place, seen

pytestmark = needs("sandbox")


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def test_the_hosts_directory_is_read_and_written(place: Place) -> None:
    path = place.directory("logs", old="host's")
    at = Path(place.service.publish(place.request("bind", path=str(path))).target)
    assert (at / "old").read_text() == "host's"
    (at / "new").write_text("pod's")
    assert (path / "new").read_text() == "pod's"
    assert {"nosuid", "nodev", "noexec"} <= set(seen(str(at)).options)
    assert "nosuid" not in seen("/run/tmp").options, "the host's own mount is as it was"
    place.service.unpublish(str(at))
    assert sorted(os.listdir(path)) == ["new", "old"] and place.remains() == []


def test_read_only_is_so_for_the_pod_and_not_for_the_host(place: Place) -> None:
    path = place.directory("logs", old="host's")
    at = Path(place.service.publish(place.request("bind", path=str(path), read_only=True)).target)
    for change in (lambda: (at / "new").touch(), lambda: (at / "old").unlink(), lambda: (at / "old").chmod(0)):
        with pytest.raises(OSError, match="Read-only"):
            change()
    # Nor through a further mount of it, as container runtimes make one.
    copy = place.top / "container"
    copy.mkdir()
    mount.bind(str(at), str(copy))
    with pytest.raises(OSError, match="Read-only"):
        (copy / "new").touch()
    mount.unmount(str(copy))
    (path / "new").touch()
    place.service.unpublish(str(at))


def test_nothing_else_is_given_without_a_rule_nor_beside_its_roots(place: Place) -> None:
    outside = place.top / "outside"
    outside.mkdir()
    with pytest.raises(PermissionRefused, match="no rule that is for them has a root above"):
        place.service.publish(place.request("bind", path=str(outside)))
    with pytest.raises(PermissionRefused, match="no rule is for them"):
        Service().publish(place.request("bind", path=str(place.directory("a"))))
    assert place.remains() == []


@pytest.mark.parametrize("link", ["last", "middle", "up", "absolute", "proc"])
def test_no_link_leads_out(place: Place, link: str) -> None:
    secret = place.top / "outside"
    (secret / "deep").mkdir(parents=True)
    host = place.directory("a")
    paths = {
        "last": (host / "link", "../../outside", "link"),
        "middle": (host / "link", "../../outside", "link/deep"),
        "up": (host / "link", "..", "link"),
        "absolute": (host / "link", "/etc", "link"),
        "proc": (host / "link", "/proc/self/root", "link/etc"),
    }
    at, to, path = paths[link]
    at.symlink_to(to)
    with pytest.raises(Refused, match=r"has a symbolic link in it, below .* name the path that it really is"):
        place.service.publish(place.request("bind", path=str(host / path)))
    assert place.remains() == []


def test_links_in_the_root_itself_are_whoever_runs_the_nodes(place: Place) -> None:
    """/var/run is one on every node."""
    place.directory("real/logs", file="x")
    alias = place.top / "alias"
    alias.symlink_to(place.host / "real")
    policy = Policy(allow=(Allow(driver="bind", namespaces=("*",), roots=(str(alias),)),))
    at = Service(policy).publish(place.request("bind", path=str(alias / "logs"))).target
    assert os.listdir(at) == ["file"]
    place.service.unpublish(at)


def test_a_directory_swapped_for_a_link_all_the_while_is_never_followed(place: Place) -> None:
    outside = place.top / "outside"
    outside.mkdir()
    (outside / "stolen").touch()
    path = place.directory("a/b", mine="x")
    link = place.host / "a" / "link"
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        spare = place.host / "a" / "spare"
        while not stop.is_set():
            path.rename(spare)
            link.rename(path)
            path.rename(link)
            spare.rename(path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    try:
        for _ in range(300):
            request = place.request("bind", path=str(path))
            try:
                place.service.publish(request)
            except (Refused, NotFound) as error:
                outcomes.add(type(error))
                continue
            outcomes.add(type(None))
            assert os.listdir(request.target) == ["mine"]
            place.service.unpublish(request.target)
    finally:
        stop.set()
        swapper.join()
    assert type(None) in outcomes and len(outcomes) > 1, "the race was never met"
    assert place.remains() == []


def test_a_missing_directory_and_a_file_are_told(place: Place) -> None:
    (place.host / "file").touch()
    with pytest.raises(NotFound, match="cannot open"):
        place.service.publish(place.request("bind", path=str(place.host / "absent")))
    with pytest.raises(Unavailable, match="Not a directory"):
        place.service.publish(place.request("bind", path=str(place.host / "file")))


def test_what_is_mounted_below_stays_the_hosts(place: Place) -> None:
    path = place.directory("a/below")
    mount.tmpfs(str(path), size=65536)
    (path / "hidden").touch()
    at = place.service.publish(place.request("bind", path=str(place.host / "a"))).target
    assert os.listdir(f"{at}/below") == []
    mount.unmount(str(path))
    place.service.unpublish(at)


def test_what_either_side_mounts_later_is_not_the_others_to_see(place: Place) -> None:
    path = place.directory("a/below")
    mount.bind(str(place.host), str(place.host))
    libc.mount("", str(place.host), "", mount.MS_SHARED)
    at = place.service.publish(place.request("bind", path=str(place.host / "a"))).target
    mount.tmpfs(str(path), size=65536)
    assert not mount.is_mounted(f"{at}/below")
    mount.unmount(str(path))
    mount.tmpfs(f"{at}/below", size=65536)
    assert not mount.is_mounted(str(path))
    mount.unmount(f"{at}/below")
    place.service.unpublish(at)
    run(["umount", place.host])


def test_a_pods_group_leaves_every_inode_of_the_host_as_it_was(place: Place) -> None:
    path = place.directory("a")
    for name in ("one", "two"):
        (path / name / "deep").mkdir(parents=True)
        (path / name / "deep" / "file").write_text(name)
        os.chown(path / name, 11, 12)
    (path / "link").symlink_to("one")

    def inodes() -> dict[str, tuple[int, ...]]:
        found = {}
        for each in [path, *path.rglob("*")]:
            status = each.lstat()
            found[str(each)] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_ctime_ns)
        return found

    before = inodes()
    request = place.request("bind", path=str(path), fs_group=4242)
    place.service.publish(request)
    place.service.publish(request)
    assert inodes() == before
    place.service.unpublish(request.target)
    assert inodes() == before


def test_programs_of_the_host_run_only_where_that_is_asked_for(place: Place) -> None:
    path = place.directory("bin", program="#!/bin/sh\n")
    (path / "program").chmod(0o755)
    for exec_, code in (("true", 0), ("false", 126)):
        at = place.service.publish(place.request("bind", path=str(path), exec=exec_)).target
        assert run(["sh", "-c", f"{at}/program"]).code == code
        place.service.unpublish(at)


def test_a_directory_that_was_removed_makes_the_volume_ill(place: Place) -> None:
    path = place.directory("a")
    at = place.service.publish(place.request("bind", path=str(path))).target
    assert place.service.health(at).ok
    path.rmdir()
    health = place.service.health(at)
    assert not health.ok and health.reason == f"the host's directory {path} has been removed"
    place.service.unpublish(at)


def test_two_pods_may_have_one_directory(place: Place) -> None:
    path = place.directory("a")
    one = place.request("bind", path=str(path))
    other = place.request("bind", path=str(path), pod=POD.replace(uid="other", name="till-1"), read_only=True)
    for request in (one, other):
        place.service.publish(request)
    (Path(one.target) / "file").write_bytes(bytes(MIB))
    assert os.listdir(other.target) == ["file"]
    for request in (one, other):
        place.service.unpublish(request.target)
