"""`nodeplug volume`: as an operator calls it, on volumes that are there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nodeplug.kernel import mount
from nodeplug.volumes import images, state
from tests.child import Finished, run
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.volumes.places import POD, Place

pytestmark = needs("sandbox", "loop")


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger)


def volume(place: Place, *arguments: str) -> Finished:
    settings = place.top / "settings"
    settings.mkdir(exist_ok=True)
    (settings / "nodeplug.toml").write_text(f'[volumes.loop]\ndirectory = "{place.images}"\n')
    env = {"PATH": os.environ["PATH"]}
    return run([CHECKOUT / "bin" / "nodeplug", "volume", *arguments, "--config", settings], env=env)


def test_it_lists_every_volume_with_its_pod_its_size_and_how_it_is(place: Place) -> None:
    assert volume(place, "list").text == "no volumes"
    assert volume(place, "list", "--json").json() == []
    tmpfs = place.service.publish(place.request("tmpfs", size="1Mi")).target
    gone = place.service.publish(place.request("loop", size="8Mi")).target
    mount.unmount(gone)
    header, first, second = volume(place, "list").ok().text.splitlines()
    assert header.split() == ["volume", "driver", "pod", "size", "used", "state", "target"]
    assert first.split() == ["data", "tmpfs", "shop/till-0", "1Mi", "0", "bytes", "well", tmpfs]
    assert second.split() == ["data", "loop", "shop/till-0", "not", "mounted", gone]
    known = volume(place, "list", "--json").json()
    assert [each["state"] for each in known] == ["well", "not mounted"]
    assert known[0]["total"] == 1 << 20 and "total" not in known[1]
    for target in (tmpfs, gone):
        place.service.unpublish(target)


def test_it_shows_all_of_one_by_its_target_or_its_id(place: Place) -> None:
    published = place.service.publish(place.request("loop", size="8Mi", fs_group=7))
    for name in (published.target, published.id):
        lines = dict(line.split(None, 1) for line in volume(place, "inspect", name).ok().text.splitlines())
        assert lines["driver"] == "loop" and lines["fs_group"] == "7" and lines["options.mode"] == "0777"
        assert lines["steps[0].path"] == images.pod_image(str(place.images), published.id)
        assert lines["mount.type"] == "ext4" and "nosuid" in lines["mount.options"].split(",")
    known = volume(place, "inspect", published.id, "--json").json()
    assert known["options"]["size"] == 8 << 20 and known["pod"]["namespace"] == "shop"
    missing = volume(place, "inspect", "/nowhere")
    assert missing.code == 1 and b"there is no volume '/nowhere'" in missing.stderr
    place.service.unpublish(published.target)


def test_nothing_secret_is_shown(place: Place) -> None:
    target = place.service.publish(place.request("secret", secrets={"key": "hunter2"})).target
    for arguments in (("list",), ("list", "--json"), ("inspect", target), ("inspect", target, "--json"), ("gc",)):
        assert "hunter2" not in volume(place, *arguments).ok().text
    place.service.unpublish(target)


def test_what_is_left_over_is_shown_and_removed_only_when_that_is_said(place: Place) -> None:
    assert volume(place, "gc").text == "nothing is left over"
    target = place.service.publish(place.request("loop", size="8Mi")).target
    mount.unmount(target)
    shutil.rmtree(place.top / "pods" / POD.uid)
    shown = volume(place, "gc").ok().text.splitlines()
    assert shown[1].split() == ["volume", target, "its", "pod", "is", "gone"]
    assert shown[2] == "nothing was changed; --apply removes what can be"
    assert len(state.ids()) == 1
    (left,) = volume(place, "gc", "--apply", "--json").ok().json()
    assert left == {"kind": "volume", "name": target, "reason": "its pod is gone", "removed": True}
    assert place.remains() == []


def test_what_cannot_be_removed_ends_it_with_one(place: Place) -> None:
    (place.images / "pod").mkdir(parents=True)
    (place.images / "pod" / "stray.img").write_bytes(bytes(4096))
    mount.bind(str(place.images), str(place.images), flags=mount.MS_RDONLY)
    done = volume(place, "gc", "--apply")
    mount.unmount(str(place.images))
    assert done.code == 1 and "cannot be removed" in done.text
    (place.images / "pod" / "stray.img").unlink()


def test_images_of_the_node_are_shown_and_removed_when_no_pod_has_them(place: Place) -> None:
    assert volume(place, "images").text == "no images"
    target = place.service.publish(place.request("loop", size="8Mi", scope="node", name="cache")).target
    path = images.node_image(str(place.images), "shop", "cache")
    assert volume(place, "images").ok().text.splitlines()[1].split()[:3] == [path, "ext4", "8Mi"]
    (known,) = volume(place, "images", "--json").json()
    assert known["volumes"] == [target]
    busy = volume(place, "remove-image", "shop/cache")
    assert busy.code == 1 and f"is of the volume at {target}".encode() in busy.stderr
    place.service.unpublish(target)
    assert volume(place, "remove-image", "shop/cache").ok().text == "removed shop/cache"
    assert not Path(path).exists()
    for absent in ("shop/cache", "shop/", "shop", "../x"):
        assert volume(place, "remove-image", absent).code in (1, 2)


def test_settings_that_are_wrong_are_told(place: Place) -> None:
    directory = place.top / "wrong"
    directory.mkdir()
    (directory / "nodeplug.toml").write_text('[[volumes.allow]]\ndriver = "bind"\n')
    done = run([CHECKOUT / "bin" / "nodeplug", "volume", "list", "--config", directory, "--json"])
    assert done.code == 2
    assert json.loads(done.stdout)["problems"][0][0] == "volumes.allow[0].namespaces"
