"""Long random lives: restarts, hotplug, reloads and kills, after each of which nothing is lost, doubled or left."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import pytest

from nodeplug.harness.kubelet.devicemanager import DeviceManager
from tests.child import until
from tests.deviceplugin.conftest import RESOURCE, Node, kill
from tests.needs import needs

pytestmark = needs("root")
SEED = 20240607


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def settled(kubelet: DeviceManager, expected: int, resource: str = RESOURCE) -> None:
    kubelet.wait(resource, capacity=expected, allocatable=expected, timeout=30)
    until(lambda: len(kubelet.sockets) == 1, "one socket for one resource")


@pytest.mark.parametrize(
    "restarts", [40, pytest.param(1000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])], ids=str
)
@pytest.mark.parametrize("watcher", [False, True], ids=["kubelet.sock", "watcher"])
def test_kubelet_restarts_lose_nothing(node: Node, restarts: int, watcher: bool) -> None:
    for number in range(5):
        node.mknod(f"d{number}")
    node.configure(registration="watcher" if watcher else "kubelet.sock")
    with node.kubelet(watcher=watcher) as kubelet, node.plugin():
        settled(kubelet, 5)
        before = 0
        for number in range(restarts):
            kubelet.restart()
            settled(kubelet, 5)
            if number == 5:
                before = descriptors()
        assert descriptors() <= before + 8


@pytest.mark.parametrize(
    "events", [400, pytest.param(10_000, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])], ids=str
)
def test_hotplug_loses_and_doubles_nothing(node: Node, events: int) -> None:
    chance = random.Random(SEED)
    node.configure(node.resource(cdi="always"), rescan=3600)
    present: set[str] = set()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        settled(kubelet, 0)
        for number in range(events):
            name = f"d{chance.randrange(50)}"
            if name in present:
                os.unlink(node.dev / name)
                present.discard(name)
            else:
                node.mknod(name)
                present.add(name)
            if chance.random() < 0.02:
                time.sleep(chance.random() * 0.3)
            if number % 200 == 199:
                kubelet.wait(RESOURCE, allocatable=len(present), timeout=30)
        publisher = plugin.discovery.publisher(RESOURCE)
        until(
            lambda: {device.properties["name"] for device in publisher.current.devices} == present,
            "what is published to be what is there",
            timeout=60,
        )
        healthy = dict.fromkeys((device.id for device in publisher.current.devices), "Healthy")
        until(lambda: kubelet.devices(RESOURCE) == healthy, "the kubelet to know it", timeout=60)
        assert (
            plugin.registry.get_sample_value("nodeplug_deviceplugin_scan_seconds_count", {"trigger": "rescan"}) is None
        )
        until(lambda: len(list(node.cdi.iterdir())) == (1 if present else 0), "one CDI file")


@pytest.mark.parametrize(
    "reloads", [15, pytest.param(200, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])], ids=str
)
def test_reloads_disturb_nothing_that_stays(node: Node, reloads: int) -> None:
    chance = random.Random(SEED)
    for number in range(6):
        node.mknod(f"d{number}")
    steady = node.resource("nodeplug.dev/steady")
    node.configure(steady)
    with node.kubelet() as kubelet, node.plugin() as plugin:
        settled(kubelet, 6, "nodeplug.dev/steady")
        first = descriptors()
        for number in range(reloads):
            chosen = [
                node.resource(
                    f"nodeplug.dev/r{name}",
                    match=[{"path": f"{node.dev}/d[0-{name}]"}],
                    cdi=chance.choice([False, "always"]),
                    share={"replicas": chance.choice([1, 1, 3])},
                )
                for name in range(6)
                if chance.random() < 0.5
            ]
            node.configure(steady, *chosen)
            assert plugin.reload()
            if number % 5 == 0:
                (node.config.with_suffix(".keep")).write_text(node.config.read_text())
                node.config.write_text("[deviceplugin]\nregistraton = 1\n")
                assert not plugin.reload()
                os.rename(node.config.with_suffix(".keep"), node.config)
            for table in chosen:
                name = table["name"]
                count = (int(name[-1]) + 1) * table["share"]["replicas"]
                kubelet.wait(name, capacity=count, allocatable=count)
            gone = set(kubelet.resources()) - {table["name"] for table in chosen} - {"nodeplug.dev/steady"}
            for name in gone:
                kubelet.wait(name, capacity=0, allocatable=0)
            sockets = len(chosen) + 1
            until(lambda n=sockets: len(kubelet.sockets) == n, "a socket for each resource")
        node.configure(steady)
        assert plugin.reload()
        assert kubelet.lists("nodeplug.dev/steady") == 1, "the resource that stayed was sent again"
        until(lambda: descriptors() <= first + 10, "no descriptor to be left")
        plugin._sweep()
        until(lambda: plugin._sweep() or not list(node.cdi.glob("*.json")), "unused CDI files to go")


@pytest.mark.parametrize(
    "rounds", [6, pytest.param(200, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])], ids=str
)
def test_reloads_restarts_and_hotplug_at_once(node: Node, rounds: int) -> None:
    chance = random.Random(SEED)
    node.configure(node.resource(), node.resource("nodeplug.dev/other"))
    present: set[str] = set()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        for number in range(rounds):
            for _ in range(chance.randrange(30)):
                name = f"d{chance.randrange(20)}"
                if name in present:
                    os.unlink(node.dev / name)
                else:
                    node.mknod(name)
                present ^= {name}
            if chance.random() < 0.5:
                kubelet.restart()
            shares = number % 4
            extra = [node.resource("nodeplug.dev/other", share={"replicas": shares})] if shares else []
            node.configure(node.resource(), *extra)
            assert plugin.reload()
            count = len(present)
            kubelet.wait(RESOURCE, capacity=count, allocatable=count, timeout=30)
            if extra:
                kubelet.wait("nodeplug.dev/other", capacity=count * shares, allocatable=count * shares, timeout=30)
            sockets = 1 + len(extra)
            until(lambda n=sockets: len(kubelet.sockets) == n, "a socket for each resource", timeout=30)


@pytest.mark.parametrize(
    "kills", [6, pytest.param(100, marks=[pytest.mark.stress, pytest.mark.timeout(1800)])], ids=str
)
def test_kills_at_any_moment_leave_nothing_behind(node: Node, kills: int) -> None:
    chance = random.Random(SEED)
    for number in range(5):
        node.mknod(f"d{number}")
    node.configure(node.resource(cdi="always"), node.resource("nodeplug.dev/y"))
    with node.kubelet() as kubelet:
        for _ in range(kills):
            process = node.process()
            time.sleep(chance.uniform(0.05, 0.9))
            if chance.random() < 0.5:
                os.rename(node.config, node.config)
                node.mknod("e")
                os.unlink(node.dev / "e")
            kill(process)
        with node.plugin():
            for name in (RESOURCE, "nodeplug.dev/y"):
                kubelet.wait(name, capacity=5, allocatable=5, timeout=30)
            until(lambda: len(kubelet.sockets) == 2, "two sockets")
            assert len(list(node.cdi.iterdir())) == 1
    assert kubelet.sockets == []
    left = {path.name for path in Path(kubelet.plugins).iterdir()} - {"kubelet_internal_checkpoint"}
    assert not {name for name in left if not name.startswith(".kubelet_internal_checkpoint")}
