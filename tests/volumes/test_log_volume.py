"""The volume `log`: what a pod and a collector find, what stays after the pod, and what in the end is left: nothing."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from nodeplug.core import document
from nodeplug.core.errors import ConfigInvalid, PermissionRefused, Refused, Unavailable
from nodeplug.kernel import loop, mount
from nodeplug.volumes import state
from nodeplug.volumes.log import records
from nodeplug.volumes.log.volume import LogOptions
from nodeplug.volumes.policy import LogLimits
from nodeplug.volumes.service import Service
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes import faults
from tests.volumes.logs import line
from tests.volumes.logvolumes import PODS, Hand, Node
from tests.volumes.places import MIB, POD

pytestmark = [needs("sandbox", "loop", "program:mkfs.ext4"), pytest.mark.timeout(300)]

both = pytest.mark.parametrize("medium", ["disk", "memory"])


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


@pytest.fixture
def hand(ledger: Ledger, node: Node) -> Hand:
    return Hand(ledger)


def over(known: records.Known) -> None:
    """Let its time after the pod be over."""
    records.write(known.replace(ended=known.ended - known.linger - 1))


@both
def test_what_the_pod_writes_a_collector_reads_and_cannot_change(node: Node, medium: str) -> None:
    target = node.publish(medium=medium)
    (target / "app.log").write_text("hello\n")
    seen = node.place() / "app.log"
    assert seen.read_text() == "hello\n"
    with pytest.raises(OSError, match="Read-only"):
        seen.write_text("mine")
    for point in (target, node.place()):
        found = mount.find(str(point))
        assert found is not None
        assert {"nosuid", "nodev", "noexec"} <= set(found.options)


@both
def test_the_writer_fills_its_volume_and_nothing_else(node: Node, medium: str) -> None:
    target = node.publish(medium=medium)
    with (target / "app.log").open("wb", 0) as file, pytest.raises(OSError, match="No space left") as caught:
        for _ in range(100):
            file.write(b"x" * MIB)
    assert caught.value.errno == errno.ENOSPC
    assert (target / "app.log").stat().st_size <= 8 * MIB
    assert "full" in node.service.health(str(target)).reason or "nodeplugd" in node.service.health(str(target)).reason


def test_the_account_tells_whose_logs_they_are_and_what_was_dropped(node: Node, hand: Hand) -> None:
    target = node.publish(maxSize="64Ki", maxFiles="2")
    for number in range(5):
        (target / "app.log").write_bytes(b"".join(line(number * 1000 + each) for each in range(1000)))
        hand.round()
    found = json.loads(Path(f"{node.place()}.json").read_text())
    assert (found["namespace"], found["pod"], found["uid"], found["volume"]) == (
        POD.namespace,
        POD.name,
        POD.uid,
        "logs",
    )
    assert found["dropped"] == {"files": 3, "bytes": 300_000, "lines": 3000}
    assert sorted(path.name for path in node.place().glob("app*")) == ["app.log.000004", "app.log.000005"]


@both
def test_after_the_pod_its_logs_stay_for_collectors_and_then_go(node: Node, hand: Hand, medium: str) -> None:
    target = node.publish(medium=medium, linger="10m")
    (target / "app.log").write_text("last words\n")
    hand.round()
    node.service.unpublish(str(target))
    assert not mount.is_mounted(str(target))
    assert state.ids() == []
    assert os.listdir(target) == []
    hand.round()
    assert (node.place() / "app.log").read_text() == "last words\n"
    assert node.service.collect(apply=True) == ()
    assert (node.place() / "app.log").exists()
    over(node.known())
    hand.round()
    assert node.remains() == []
    assert not list(PODS.iterdir())


def test_without_nodeplugd_the_collection_by_hand_removes_them(node: Node) -> None:
    target = node.publish()
    node.service.unpublish(str(target))
    over(node.known())
    (found,) = node.service.collect(apply=False)
    assert (found.kind, found.name, found.removed) == ("logs", str(node.place()), False)
    (found,) = node.service.collect(apply=True)
    assert found.removed
    assert node.remains() == []


def test_a_collector_that_holds_a_file_open_keeps_nobody_from_removing_it(node: Node, hand: Hand) -> None:
    target = node.publish()
    (target / "app.log").write_text("read slowly\n")
    node.service.unpublish(str(target))
    with (node.place() / "app.log").open() as held:
        over(node.known())
        hand.round()
        assert held.read() == "read slowly\n"
    assert node.remains() == []


def test_a_pod_that_comes_back_to_its_target_finds_its_logs(node: Node, hand: Hand) -> None:
    target = node.publish()
    (target / "app.log").write_text("before\n")
    hand.round()
    node.service.unpublish(str(target))
    hand.round()
    node.publish()
    assert (target / "app.log").read_text() == "before\n"
    assert node.known().ended == 0
    assert len([each for each in loop.devices() if each.backing.startswith(str(node.images))]) == 1


def test_after_a_reboot_the_pods_logs_are_there_again(node: Node, ledger: Ledger) -> None:
    """Mounts and /run are gone, the image, the record and the state stay."""
    target = node.publish()
    (target / "app.log").write_text("before the crash\n")
    for point in (target, node.place()):
        mount.unmount(str(point))
    node.publish()
    assert (target / "app.log").read_text() == "before the crash\n"
    assert (node.place() / "app.log").read_text() == "before the crash\n"


def test_after_a_reboot_a_pod_that_is_gone_has_its_logs_removed_in_time(node: Node, hand: Hand) -> None:
    target = node.publish()
    for point in (target, node.place()):
        mount.unmount(str(point))
    assert hand.round() == {}
    node.service.unpublish(str(target))
    over(node.known())
    hand.round()
    assert node.remains() == []


def test_two_volumes_of_a_pod_are_beside_each_other(node: Node, hand: Hand) -> None:
    first, second = node.publish(volume="one"), node.publish(volume="two", medium="memory")
    assert sorted(path.name for path in node.place("one").parent.iterdir()) == ["one", "one.json", "two", "two.json"]
    node.service.unpublish(str(first))
    over(node.known("one"))
    hand.round()
    assert sorted(path.name for path in node.place("one").parent.iterdir()) == ["two", "two.json"]
    assert mount.is_mounted(str(second))


class TestRefused:
    """What is no volume of logs."""

    @pytest.mark.parametrize(
        "options",
        [
            {"size": "0"},
            {"size": "8Mi", "maxSize": "1Ki"},
            {"size": "8Mi", "maxSize": "4Mi"},
            {"size": "1Mi"},
            {"size": "8Mi", "files": "a/b"},
            {"size": "8Mi", "files": ""},
            {"size": "8Mi", "rotate": "gzip"},
            {"size": "8Mi", "highWater": "99"},
            {"size": "8Mi", "maxfiles": "3"},
        ],
    )
    def test_options_that_make_no_sense(self, node: Node, options: dict[str, str]) -> None:
        with pytest.raises(ConfigInvalid):
            node.publish(**options)
        assert node.remains() == []

    def test_more_than_the_policy_gives(self, node: Node) -> None:
        small = Service(node.policy.replace(log=LogLimits(largest=4 * MIB, directory=str(PODS), linger=60.0)))
        with pytest.raises(PermissionRefused, match="4Mi"):
            small.publish(node.log(linger="30s"))
        with pytest.raises(PermissionRefused, match="60 s after their pod"):
            small.publish(node.log(linger="2m"))

    @pytest.mark.parametrize("pod", [{"uid": "another"}, {"name": "../../etc"}, {"namespace": ""}, {"name": "a/b"}])
    def test_a_pod_that_is_another_or_none(self, node: Node, pod: dict[str, str]) -> None:
        """Its name becomes a path of the host."""
        with pytest.raises(ConfigInvalid):
            node.service.publish(node.log().replace(pod=POD.replace(**pod)))
        assert node.remains() == []

    def test_read_only(self, node: Node) -> None:
        with pytest.raises(ConfigInvalid, match="there to be written"):
            node.service.publish(node.log().replace(read_only=True))

    def test_what_does_not_fit_on_the_nodes_disk(self, ledger: Ledger) -> None:
        node = Node(ledger, total=10 * MIB)
        node.publish()
        with pytest.raises(Unavailable, match=r"volumes\.loop\.total"):
            node.publish(volume="more")

    def test_other_options_on_a_live_volume(self, node: Node) -> None:
        node.publish()
        with pytest.raises(Refused):
            node.publish(maxFiles="9")


def test_a_pods_group_may_write(node: Node) -> None:
    request = node.log().replace(fs_group=3000)
    node.service.publish(request)
    status = Path(request.target).stat()
    assert status.st_gid == 3000
    assert status.st_mode & 0o2070 == 0o2070


def test_health_says_that_nobody_rotates(node: Node) -> None:
    target = str(node.publish())
    assert "nodeplugd does not run" in node.service.health(target).reason
    assert any("nobody rotates" in warning for warning in node.warnings)
    mount.unmount(str(node.place()))
    assert "not shown to collectors" in node.service.health(target).reason


def test_options_are_read_again_from_the_state(node: Node) -> None:
    node.publish(files="*.log,*.txt", rotate="punch", maxSize="1Mi", every="1h", maxAge="7d", linger="1m")
    (known,) = node.service.published()
    again = document.decode(LogOptions, known.options)
    assert again.files == ("*.log", "*.txt")
    assert (again.every, again.max_age, again.linger) == (3600.0, 604800.0, 60.0)
    assert node.known().rules.max_size == MIB


class Trial:
    """One volume through its life, everything imported."""

    def __init__(self, ledger: Ledger, medium: str) -> None:
        self.node = Node(ledger)
        self.request = self.node.log(medium=medium, linger="0s")
        self.target = Path(self.request.target)
        self.publish()
        self.unpublish()

    def do_publish(self) -> object:
        return self.node.service.publish(self.request)

    def publish(self) -> None:
        self.do_publish()
        (self.target / "app.log").write_text("content\n")
        assert (self.node.place() / "app.log").read_text() == "content\n"

    def do_unpublish(self) -> object:
        return self.node.service.unpublish(str(self.target))

    def unpublish(self) -> None:
        self.do_unpublish()
        self.collect()

    def collect(self) -> None:
        time.sleep(0.001)  # a linger of nothing is over a moment later
        self.node.service.collect(apply=True)
        for known in self.node.service.published():
            assert known.target == str(self.target)
            self.do_unpublish()
            time.sleep(0.001)
            self.node.service.collect(apply=True)
        assert self.node.remains() == []


@both
def test_a_publish_that_fails_or_is_killed_anywhere_leaves_nothing_for_long(ledger: Ledger, medium: str) -> None:
    trial = Trial(ledger, medium)
    names = faults.calls_of(trial.do_publish)
    trial.unpublish()
    for number in range(len(names)):
        if not faults.failing_at(number, errno.EIO, trial.do_publish):
            assert not mount.is_mounted(str(trial.target))
            assert not mount.is_mounted(str(trial.node.place())), f"after call {number}, {names[number]}"
        else:
            trial.unpublish()
        assert faults.killed_at(number, trial.do_publish)
        (trial.collect if number % 2 else trial.publish)()
        trial.unpublish()


@both
def test_an_unpublish_that_fails_or_is_killed_anywhere_is_finished_by_the_next_one(ledger: Ledger, medium: str) -> None:
    trial = Trial(ledger, medium)
    trial.publish()
    names = faults.calls_of(trial.do_unpublish)
    for number in range(len(names)):
        trial.publish()
        faults.failing_at(number, errno.EIO, trial.do_unpublish)
        trial.unpublish()
        trial.publish()
        assert faults.killed_at(number, trial.do_unpublish)
        trial.unpublish()


def test_a_removal_that_is_killed_anywhere_is_finished_by_the_next_one(ledger: Ledger) -> None:
    trial = Trial(ledger, "disk")

    def remove() -> object:
        return trial.node.service.collect(apply=True)

    trial.publish()
    trial.do_unpublish()
    count = len(faults.calls_of(remove))
    for number in range(0, count, 2):
        trial.publish()
        trial.do_unpublish()
        faults.killed_at(number, remove)
        trial.collect()
