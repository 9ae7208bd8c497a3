"""A failure at each system call of each publish and unpublish, kill -9 before each, and then the next call.

What must come of it: the right volume or none, and in the end nothing: no mount, no loop device, no image, no state.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeplug.volumes.contract import Request
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.places import MIB, Place, seen

pytestmark = [needs("sandbox"), pytest.mark.timeout(300)]

Check = Callable[[Path], object]


def tmpfs(place: Place) -> tuple[Request, Check]:
    return place.request("tmpfs", size="1Mi", mode="0770"), lambda at: _writable(at, 1 * MIB)


def bind(place: Place) -> tuple[Request, Check]:
    path = place.directory("logs", file="host's")

    def check(at: Path) -> None:
        assert (at / "file").read_text() == "host's"
        assert "ro" in seen(str(at)).options

    return place.request("bind", path=str(path), read_only=True), check


def secret(place: Place) -> tuple[Request, Check]:
    def check(at: Path) -> None:
        assert (at / "a").read_text() == "one" and (at / "b").read_text() == "two"
        assert "ro" in seen(str(at)).options

    return place.request("secret", secrets={"a": "one", "b": "two"}), check


def loop(place: Place) -> tuple[Request, Check]:
    return place.request("loop", size="8Mi"), lambda at: _writable(at, 8 * MIB)


def overlay(place: Place) -> tuple[Request, Check]:
    path = place.directory("lower", file="lower's")

    def check(at: Path) -> None:
        assert (at / "file").read_text() == "lower's"
        (at / "new").write_text("changed")
        assert os.listdir(path) == ["file"]

    return place.request("overlay", lower=str(path), size="1Mi"), check


def overlay_in_image(place: Place) -> tuple[Request, Check]:
    _, check = overlay(place)
    return place.request("overlay", lower=str(place.host / "lower"), size="8Mi", upper="loop"), check


def _writable(at: Path, size: int) -> None:
    (at / "file").write_text("content")
    assert (at / "file").read_text() == "content"
    held = os.statvfs(at)
    assert size // 2 < held.f_blocks * held.f_frsize <= size


VOLUMES = [tmpfs, bind, secret, overlay, loop, overlay_in_image]
every_volume = pytest.mark.parametrize("volume", VOLUMES, ids=lambda volume: volume.__name__)
Volume = Callable[[Place], tuple[Request, Check]]


class Trial:
    """One volume, published and unpublished once already, so that everything is imported."""

    def __init__(self, ledger: Ledger, volume: Volume) -> None:
        self.place = Place(ledger)
        self.request, self.check = volume(self.place)
        self.publish()
        self.unpublish()

    def publish(self) -> None:
        self.place.service.publish(self.request)
        self.check(Path(self.request.target))

    def unpublish(self) -> None:
        self.place.service.unpublish(self.request.target)
        assert self.place.remains() == []

    def collect(self) -> None:
        assert all(each.removed for each in self.place.service.collect(apply=True))
        for known in self.place.service.published():
            # Finished before the kill, shown or about to be: a volume that its pod asks for again, or to take away.
            assert known.target == self.request.target and known.device
        self.unpublish()

    def do_publish(self) -> object:
        return self.place.service.publish(self.request)

    def do_unpublish(self) -> object:
        return self.place.service.unpublish(self.request.target)


@every_volume
def test_a_publish_that_fails_anywhere_leaves_nothing_and_the_next_one_succeeds(ledger: Ledger, volume: Volume) -> None:
    trial = Trial(ledger, volume)
    names = faults.calls_of(trial.do_publish)
    trial.unpublish()
    assert len(names) > 20
    for number, name in enumerate(names):
        if faults.failing_at(number, errno.EIO, trial.do_publish):
            trial.check(Path(trial.request.target))
            trial.unpublish()
        assert trial.place.remains() == [], f"after call {number}, {name}"
        trial.publish()
        trial.unpublish()


@every_volume
def test_a_publish_killed_anywhere_is_made_good_by_whatever_comes_next(ledger: Ledger, volume: Volume) -> None:
    trial = Trial(ledger, volume)
    count = len(faults.calls_of(trial.do_publish))
    trial.unpublish()
    for number in range(count):
        for mend in (trial.publish, trial.unpublish, trial.collect):
            assert faults.killed_at(number, trial.do_publish)
            mend()
            if mend == trial.publish:
                trial.unpublish()


@every_volume
def test_an_unpublish_that_fails_anywhere_is_finished_by_the_next_one(ledger: Ledger, volume: Volume) -> None:
    trial = Trial(ledger, volume)
    trial.publish()
    names = faults.calls_of(trial.do_unpublish)
    assert len(names) > 9
    for number, name in enumerate(names):
        trial.publish()
        if faults.failing_at(number, errno.EIO, trial.do_unpublish):
            assert trial.place.remains() == [], f"after call {number}, {name}"
        trial.unpublish()


@every_volume
def test_an_unpublish_killed_anywhere_is_finished_by_whatever_comes_next(ledger: Ledger, volume: Volume) -> None:
    trial = Trial(ledger, volume)
    trial.publish()
    count = len(faults.calls_of(trial.do_unpublish))
    for number in range(count):
        for mend in (trial.publish, trial.unpublish):
            trial.publish()
            assert faults.killed_at(number, trial.do_unpublish)
            mend()
            if mend == trial.publish:
                trial.unpublish()


def test_an_image_with_data_outlives_any_failure_and_any_kill_while_it_is_grown(ledger: Ledger) -> None:
    """Each round checks, grows and mounts what an earlier volume has written."""
    place = Place(ledger)
    size = 16 * MIB
    small = place.request("loop", size=str(size), scope="node", name="till")
    at = Path(small.target)
    place.service.publish(small)
    (at / "kept").write_text("precious")
    place.service.unpublish(small.target)

    def asked() -> Request:
        return place.request("loop", size=str(size), scope="node", name="till")

    def reopened() -> None:
        place.service.publish(asked())
        assert (at / "kept").read_text() == "precious"
        held = os.statvfs(at)
        assert held.f_blocks * held.f_frsize > size * 0.8
        place.service.unpublish(str(at))
        assert place.remains(besides="image ") == []

    size += MIB
    count = len(faults.calls_of(lambda: place.service.publish(asked())))
    place.service.unpublish(str(at))
    assert count > 60
    for number in range(0, count, 2):
        size += MIB
        faults.failing_at(number, errno.EIO, lambda: place.service.publish(asked()))
        if place.service.find(str(at)) is not None:
            place.service.unpublish(str(at))
        reopened()
        size += MIB
        faults.killed_at(number + 1, lambda: place.service.publish(asked()))
        reopened()
