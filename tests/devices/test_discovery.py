"""Discovery as a whole: what is heard leads to the same as looking at everything."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.document import decode
from nodeplug.devices.contract import Change, Device
from nodeplug.devices.discovery import Discovery, Observer, PoolSpec
from nodeplug.devices.host import Host
from nodeplug.devices.links import Links
from nodeplug.devices.pool import Pool, Surroundings
from nodeplug.devices.rules import Rule
from nodeplug.devices.snapshot import Publisher
from nodeplug.devices.topology import Topology
from tests.child import until
from tests.devices.fake import FakeNode
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("root")


class Notes(Observer):
    """What was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.triggers: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def scanned(self, trigger: str, seconds: float) -> None:
        self.triggers.append(trigger)


def rules(*tables: dict[str, Any]) -> tuple[Rule, ...]:
    return tuple(decode(Rule, table) for table in tables)


@contextmanager
def following(host: Host, *specs: PoolSpec, **options: Any) -> Iterator[tuple[Discovery, Notes]]:
    notes = Notes()
    discovery = Discovery(host, observer=notes, rescan=options.pop("rescan", 3600), **options)
    discovery.start()
    try:
        assert discovery.follow(specs)
        yield discovery, notes
    finally:
        discovery.close()


def fresh(host: Host, spec: PoolSpec) -> tuple[Device, ...]:
    """What one look at everything finds."""
    with following(host, spec, keep_links=False) as (discovery, _):
        return discovery.publisher(spec.name).current.devices


PATTERNS: list[list[dict[str, Any]]] = [
    [{"path": "{dev}/n*"}],
    [{"path": "{dev}/by-id/*"}, {"path": "{dev}/n*"}],
    [{"path": "{dev}/*/deep/n*"}],
    [{"regex": "{dev}/(sub|by-id)/.*n[0-9]"}],
    [{"group": {"path": "{dev}/n*", "members": [{"path": "{dev}/sub/n{1}"}]}}],
]


@pytest.mark.parametrize("pattern", range(len(PATTERNS)))
def test_what_is_heard_leads_where_looking_leads(ledger: Ledger, pattern: int) -> None:
    chance = random.Random(pattern)
    top = ledger.directory()
    dev = top / "dev"
    dev.mkdir()
    host = Host(dev=str(dev), sys=str(top / "sys"), udev=str(top / "udev"), links=str(top / "links"))
    tables = json.loads(json.dumps(PATTERNS[pattern]).replace("{dev}", str(dev)))
    spec = PoolSpec("p", rules(*tables), hold=0)
    numbers = iter(range(10_000))
    with following(host, spec) as (discovery, notes):
        for _ in range(12):
            for _ in range(chance.randrange(1, 12)):
                change(dev, chance, numbers)
            expected = {device.nodes[0].number for device in fresh(host, spec)}
            until(
                lambda want=expected: {d.nodes[0].number for d in discovery.publisher("p").current.devices} == want,
                f"the same as a look at everything finds ({expected})",
            )
        assert set(notes.triggers) <= {"reload", "event", "timer"}, "only what was heard led to looks"
        assert notes.notes == []


def change(dev: Path, chance: random.Random, numbers: Iterator[int]) -> None:
    """Do one thing to the tree: make or remove a node, a link, a directory."""
    folder = dev / chance.choice(["", "by-id", "sub", "sub/deep", "other/deep"])
    name = f"n{chance.randrange(6)}"
    what = chance.random()
    if what < 0.1 and folder != dev and folder.exists():
        shutil.rmtree(folder)
    elif what < 0.5:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(folder / name):
            os.mknod(folder / name, 0o20600, os.makedev(250, next(numbers)))
    elif what < 0.7:
        (dev / "by-id").mkdir(exist_ok=True)
        link = dev / "by-id" / f"to-{name}"
        if not os.path.lexists(link):
            link.symlink_to(f"../{name}")
    elif os.path.lexists(folder / name):
        os.unlink(folder / name)


def test_a_reload_leaves_what_is_unchanged_alone(ledger: Ledger) -> None:
    top = ledger.directory()
    os.mknod(top / "n0", 0o20600, os.makedev(250, 1))
    steady = PoolSpec("steady", rules({"path": f"{top}/n*"}))
    with following(Host(links=str(top / "links")), steady) as (discovery, _):
        before = discovery.publisher("steady").current
        assert discovery.follow([steady, PoolSpec("more", rules({"path": f"{top}/*"}))])
        assert discovery.publisher("steady").current is before
        more = discovery.publisher("more")
        assert len(more.current.devices) == 1
        assert discovery.follow([steady])
        assert more.current.devices == ()


def test_links_lead_to_the_device_of_today_and_to_nothing_when_it_is_gone(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    stick = fake.usb(hub, "1-1", "0403", "6001", serial="S", number=4)
    spec = PoolSpec("p", rules({"usb": {"vendor": "0403"}}), hold=3600)
    link = fake.top / "links/usb-0403-6001-S/usb"
    with following(fake.host, spec, rescan=1.0) as (discovery, _):
        assert os.readlink(link) == f"{fake.dev}/bus/usb/001/004"
        shutil.rmtree(stick)
        os.unlink(fake.sys / "bus/usb/devices/1-1")
        until(lambda: not os.path.lexists(link), "the link to go")
        assert [device.healthy for device in discovery.publisher("p").current.devices] == [False]
        fake.usb(hub, "1-1", "0403", "6001", serial="S", number=9)
        until(lambda: os.path.lexists(link), "the link to be back")
        assert os.readlink(link) == f"{fake.dev}/bus/usb/001/009"
    assert link.is_symlink(), "links outlive the process: containers that start meanwhile need them"
    stale = fake.top / "links/usb-gone/usb"
    stale.parent.mkdir()
    stale.symlink_to("/dev/null")
    with following(fake.host, spec):
        assert not stale.is_symlink()
        assert link.is_symlink()


def test_one_unit_is_looked_at_for_one_event(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    spec = PoolSpec("p", rules({"usb": {"vendor": "0403"}}), hold=0)
    with following(fake.host, spec) as (discovery, notes):
        place = fake.usb(hub, "1-1", "0403", "6001", serial="S")
        change = Change(devpath=str(place).removeprefix(str(fake.sys)), subsystem="usb", at=time.monotonic())
        discovery._pending[("", change.devpath)] = change  # as if the kernel had told
        discovery._triggers.wake()
        until(lambda: discovery.publisher("p").current.devices, "the device")
        assert notes.triggers[-1] == "event"


def test_links_that_somebody_removed_are_there_again_after_a_full_look(fake: FakeNode) -> None:
    hub = fake.root_hub(fake.pci("0000:00:14.0", "8086", "a36d", "0c0330"), 1)
    fake.usb(hub, "1-1", "0403", "6001", serial="S", number=4)
    link = fake.top / "links/usb-0403-6001-S/usb"
    with following(fake.host, PoolSpec("p", rules({"usb": {"vendor": "0403"}})), rescan=1.0):
        assert link.is_symlink()
        shutil.rmtree(fake.top / "links")
        until(link.is_symlink, "the link is back")


def test_a_directory_that_took_the_place_of_another_is_watched(ledger: Ledger) -> None:
    top = ledger.directory()
    (top / "d").mkdir()
    os.mknod(top / "d/n0", 0o20600, os.makedev(250, 1))
    with following(Host(links=str(top / "links")), PoolSpec("p", rules({"path": f"{top}/d/*"}), hold=0)) as (
        discovery,
        _,
    ):
        publisher = discovery.publisher("p")
        assert len(publisher.current.devices) == 1
        (top / "new").mkdir()
        (top / "d").rename(top / "away")
        (top / "new").rename(top / "d")
        until(lambda: not publisher.current.devices, "the old one is gone")
        os.mknod(top / "d/n1", 0o20600, os.makedev(250, 2))
        until(lambda: [device.properties["name"] for device in publisher.current.devices] == ["n1"], "the new one")


def test_no_news_of_a_source_is_lost_however_it_meets_the_look(ledger: Ledger) -> None:
    host = Host(links=str(ledger.directory() / "links"))
    around = Surroundings(host, Topology(host), Links(host.links), lambda _: (), lambda: None, lambda _: None)
    pool = Pool(PoolSpec("p", ()), Publisher(), around)
    said, heard, rounds = 0, 0, 20_000
    over = threading.Event()

    def source() -> None:
        nonlocal said
        for _ in range(rounds):
            said += 1
            pool.stale.add(0)
        over.set()

    thread = threading.Thread(target=source)
    thread.start()
    while not over.is_set() or pool.stale:
        if pool.take_stale(0):
            heard = said
    thread.join()
    assert heard == rounds
