"""What is left over is found and removed; what a pod has, or may come back for, is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nodeplug.core import files
from nodeplug.core.errors import TryAgain
from nodeplug.kernel import fsmount, loop, mount
from nodeplug.volumes import imagefile, images, service, stage, state
from nodeplug.volumes.contract import Leftover
from nodeplug.volumes.service import Service
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import POD, Place

pytestmark = needs("sandbox", "loop")


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def found(place: Place, *, apply: bool = False) -> list[tuple[str, str, bool]]:
    return [(each.kind, each.name, each.removed) for each in place.service.collect(apply=apply)]


def everything(place: Place) -> list[str]:
    """Of each kind one, published."""
    lower = place.directory("lower")
    requests = [
        place.request("tmpfs", size="1Mi"),
        place.request("secret", secrets={"a": "x"}),
        place.request("bind", path=str(lower)),
        place.request("loop", size="8Mi"),
        place.request("overlay", lower=str(lower), size="8Mi", upper="loop"),
    ]
    return [place.service.publish(request).target for request in requests]


def test_volumes_that_pods_have_are_not_left_over(place: Place) -> None:
    targets = everything(place)
    assert found(place, apply=True) == []
    for target in targets:
        assert mount.is_mounted(target) and place.service.health(target).ok
        place.service.unpublish(target)


def test_nothing_is_removed_by_looking(place: Place) -> None:
    (target,) = [place.service.publish(place.request("loop", size="8Mi")).target]
    mount.unmount(target)
    shutil.rmtree(place.top / "pods" / POD.uid)
    for _ in range(2):
        assert found(place) == [("volume", target, False)]
    assert found(place, apply=True) == [("volume", target, True)]
    assert place.remains() == [] and found(place) == []


def test_after_a_reboot_what_pods_may_come_back_for_stays_and_the_rest_goes(place: Place) -> None:
    targets = everything(place)
    for target in targets:
        mount.unmount(target)
    shutil.rmtree(state.RUN)
    assert found(place, apply=True) == [], "images are kept for pods that are there"
    assert sorted(each.driver for each in place.service.published()) == ["loop", "overlay"]
    shutil.rmtree(place.top / "pods" / POD.uid)
    assert sorted(found(place, apply=True)) == sorted(("volume", target, True) for target in targets[3:])
    assert place.remains() == []


def test_a_kubelets_disk_that_is_not_there_is_not_taken_for_pods_that_are_gone(place: Place) -> None:
    target = place.service.publish(place.request("loop", size="8Mi")).target
    mount.unmount(target)
    (place.top / "pods").rename(place.top / "elsewhere")
    assert found(place, apply=True) == []
    (place.top / "elsewhere").rename(place.top / "pods")
    place.service.unpublish(target)


def test_a_volume_of_memory_that_is_not_mounted_any_more_is_forgotten(place: Place) -> None:
    target = place.service.publish(place.request("tmpfs", size="1Mi")).target
    mount.unmount(target)
    assert found(place, apply=True) == [("volume", target, True)]
    assert state.ids() == []


def test_an_image_without_a_state_goes_unless_it_is_mounted(place: Place) -> None:
    target = place.service.publish(place.request("loop", size="8Mi")).target
    path = images.pod_image(str(place.images), state.ids()[0])
    state.remove(state.ids()[0])
    kinds = {kind: (name, removed) for kind, name, removed in found(place, apply=True)}
    assert kinds == {"image": (path, False)}
    place.service.unpublish(target)
    assert found(place, apply=True) == [("image", path, True)]
    assert place.remains() == []


def test_a_nodes_image_is_kept_without_any_pod(place: Place) -> None:
    target = place.service.publish(place.request("loop", size="8Mi", scope="node", name="cache")).target
    place.service.unpublish(target)
    assert found(place, apply=True) == []
    assert Path(images.node_image(str(place.images), POD.namespace, "cache")).exists()


def test_a_loop_device_whose_image_is_gone_is_told(place: Place, ledger: Ledger) -> None:
    place.images.mkdir()
    path = place.images / "gone.img"
    path.write_bytes(bytes(1 << 20))
    with open(path, "rb+") as file:
        fd, device = loop.attach(file.fileno(), str(path))
    ledger.adopt("device", lambda: os.close(fd))
    path.unlink()
    (left,) = place.service.collect(apply=True)
    assert left == Leftover(
        kind="loop device",
        name=device.path,
        reason=f"its image {path} is gone; it ends with its last user",
        removed=True,
    )


def test_a_mount_without_a_state_is_told_and_left_to_its_pod(place: Place) -> None:
    target = place.service.publish(place.request("tmpfs", size="1Mi")).target
    state.remove(state.ids()[0])
    assert found(place, apply=True) == [("mount", target, False)]
    assert mount.is_mounted(target)
    place.service.unpublish(target)


def test_what_was_shown_for_a_moment_and_left_there_goes(place: Place) -> None:
    path = stage.staged("someone", "upper")
    files.ensure_directory(path, 0o700)
    fd, directory = fsmount.create("tmpfs", {"size": "65536"}), os.open(path, os.O_PATH)
    fsmount.show(fd, directory)
    os.close(fd)
    os.close(directory)
    assert found(place, apply=True) == [("mount", path, True)]
    assert stage.left() == [] and not mount.is_mounted(path)


def test_states_that_nobody_understands_or_finished_go(place: Place) -> None:
    os.makedirs(state.RUN, exist_ok=True)
    Path(state.RUN, "junk.json").write_text("{")
    Path(state.RUN, ".half.json~").write_text("{")
    assert sorted(found(place, apply=True)) == [("state", f"{state.RUN}/.half.json~", True), ("state", "junk", True)]
    assert os.listdir(state.RUN) in ([], ["stage"])


def test_what_cannot_be_removed_is_told_with_the_reason(place: Place) -> None:
    (place.images / "pod").mkdir(parents=True)
    path = place.images / "pod" / "stray.img"
    path.write_bytes(bytes(4096))
    mount.bind(str(place.images), str(place.images), flags=mount.MS_RDONLY)
    (left,) = place.service.collect(apply=True)
    mount.unmount(str(place.images))
    assert not left.removed and "it cannot be removed: [Errno 30]" in left.reason
    imagefile.remove(str(path))


def test_it_waits_for_calls_that_are_under_way_with_a_bound(place: Place) -> None:
    with files.range_lock(service.LOCK, "somebody"), pytest.raises(TryAgain):
        Service(place.policy, timeout=0.05).collect(apply=False)
