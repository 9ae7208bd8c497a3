"""The device plugin against the harness's kubelet: how long until the kubelet knows, and what it costs to know.

Each is a distribution over many rounds; the executable runs as it is installed, in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from pathlib import Path

import pytest

from nodeplug.devices.discovery import RESCAN
from nodeplug.harness.kubelet.plugin import Plugin
from tests.child import Process
from tests.deviceplugin.conftest import RESOURCE, Node
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox")
MANY = 10_000
QUIET = 0.6  # seconds between events: lists are held to four a second, and an unplugged device makes two
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


def row(what: str, values: list[float], target: float) -> None:
    """One line of the table in docs/performance/deviceplugin.md; seconds in, milliseconds out."""
    values = sorted(values)
    p50, p99 = statistics.median(values), values[math.ceil(0.99 * len(values)) - 1]
    met = "met" if p99 <= target else "MISSED"
    print(
        f"\n| {what} | {len(values)} | {p50 * 1000:.1f} | {p99 * 1000:.1f} | {values[-1] * 1000:.1f} "
        f"| {target * 1000:.0f} | {met} |"
    )


def cpu(process: Process) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(process: Process) -> float:
    """MiB resident."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def many(node: Node, count: int = MANY) -> None:
    for number in range(count):
        node.mknod(f"dev{number:05}", number)


PEER = os.environ.get("NODEPLUG_BENCH_DEVICE_PLUGIN", "")
"""Another plugin's argv, as JSON; the words GLOB, DOMAIN, NAME and DIRECTORY in it are replaced."""


@pytest.mark.parametrize(
    "peer", [False, pytest.param(True, marks=pytest.mark.skipif(not PEER, reason="no peer named"))]
)
def bench_hotplug(node: Node, peer: bool) -> None:
    """The node appears -> the new list is on the kubelet's stream, after quiet."""
    node.mknod("first")
    node.configure()
    with node.kubelet() as kubelet:
        if peer:
            domain, _, name = RESOURCE.partition("/")
            values = {"GLOB": f"{node.dev}/*", "DOMAIN": domain, "NAME": name, "DIRECTORY": f"{kubelet.plugins}/"}
            command = json.loads(PEER)
            for word, value in values.items():
                command = [part.replace(word, value) for part in command]
            node.ledger.start(command)
        else:
            node.process()
        kubelet.wait(RESOURCE, capacity=1)
        appeared, gone = [], []
        for number in range(10 if peer else 100):
            time.sleep(QUIET)
            lists = kubelet.lists(RESOURCE)
            began = time.monotonic()
            node.mknod("hot", number)
            kubelet.wait_for(lambda n=lists: kubelet.lists(RESOURCE) > n, 30, lambda: "no list")
            appeared.append(kubelet.heard(RESOURCE) - began)
            time.sleep(QUIET)
            lists = kubelet.lists(RESOURCE)
            began = time.monotonic()
            os.unlink(node.dev / "hot")
            kubelet.wait_for(lambda n=lists: kubelet.lists(RESOURCE) > n, 30, lambda: "no list")
            gone.append(kubelet.heard(RESOURCE) - began)
        row("node appears -> list at the kubelet", appeared, 0.050)
        row("node goes -> list at the kubelet", gone, 0.050)


def bench_restart(node: Node) -> None:
    """kubelet.sock is there again -> registered and the first list received."""
    node.mknod("first")
    node.configure()
    with node.kubelet() as kubelet:
        node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        found = []
        for _ in range(100):
            time.sleep(0.2)
            kubelet.stop()
            time.sleep(0.2)
            began = time.monotonic()
            kubelet.start()
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            found.append(time.monotonic() - began)
        row("kubelet.sock recreated -> registered, list received", found, 0.150)


def bench_start(node: Node) -> None:
    """exec -> all of 20 resources registered and listed."""
    node.mknod("first")
    names = [f"nodeplug.dev/r{number}" for number in range(20)]
    node.configure(*(node.resource(name) for name in names))
    found = []
    for _ in range(10):
        with node.kubelet() as kubelet:
            began = time.monotonic()
            process = node.process()
            for name in names:
                kubelet.wait(name, capacity=1, allocatable=1, timeout=30)
            found.append(time.monotonic() - began)
            process.end()
        (node.kubelet_dir / "device-plugins" / "kubelet_internal_checkpoint").unlink(missing_ok=True)
    row("exec -> 20 resources registered and listed", found, 1.0)


def bench_ten_thousand(node: Node) -> None:
    """10,000 devices: the first list, a change, allocations, memory, and what waiting costs."""
    many(node)
    node.configure()
    with node.kubelet() as kubelet:
        process = node.process()
        kubelet.wait(RESOURCE, capacity=MANY, allocatable=MANY, timeout=60)
        first = []
        for _ in range(20):
            time.sleep(0.3)
            kubelet.stop()
            time.sleep(0.2)
            began = time.monotonic()
            kubelet.start()
            kubelet.wait(RESOURCE, capacity=MANY, allocatable=MANY, timeout=60)
            first.append(time.monotonic() - began)
        row("10,000 devices: kubelet.sock recreated -> first list", first, 0.300)
        changes = []
        for number in range(60):
            time.sleep(QUIET)
            lists = kubelet.lists(RESOURCE)
            began = time.monotonic()
            if number % 2 == 0:
                node.mknod("hot", MANY + number)
            else:
                os.unlink(node.dev / "hot")
            kubelet.wait_for(lambda n=lists: kubelet.lists(RESOURCE) > n, 30, lambda: "no list")
            changes.append(kubelet.heard(RESOURCE) - began)
        row("10,000 devices: one event -> list at the kubelet", changes, 0.050)
        (name,) = kubelet.sockets
        direct = Plugin(RESOURCE, str(kubelet.plugins / name), kubelet.calls)
        ids = sorted(kubelet.devices(RESOURCE))
        found = []
        for number in range(2000):
            began = time.monotonic()
            direct.allocate([ids[number * 4]])
            found.append(time.monotonic() - began)
        direct.close()
        row("10,000 devices: Allocate", found, 0.003)
        print(f"| RSS with 10,000 devices, MiB | | {rss(process):.0f} | | | 96 | |")
        time.sleep(3)
        before, began = cpu(process), time.monotonic()
        time.sleep(60)
        share = 100 * (cpu(process) - before) / (time.monotonic() - began)
        print(f"| idle with 10,000 devices, % of a processor, between full looks | | {share:.2f} | | | 0.2 | |")


def bench_rescan(node: Node) -> None:
    """Inside one process: a look after one event, and a look at everything."""
    many(node)
    node.configure()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=MANY, timeout=60)
        for number in range(100):
            time.sleep(0.15)
            if number % 2 == 0:
                node.mknod("hot", MANY + number)
            else:
                os.unlink(node.dev / "hot")
        time.sleep(0.5)
        used = time.process_time()
        plugin.discovery._look_at_everything("rescan", [])
        share = 100 * (time.process_time() - used) / RESCAN
        print(f"\n| a full look at 10,000 devices, % of a processor over its interval | | {share:.2f} | | | | |")
        value = plugin.registry.get_sample_value
        total = value("nodeplug_deviceplugin_scan_seconds_sum", {"trigger": "event"}) or 0.0
        count = value("nodeplug_deviceplugin_scan_seconds_count", {"trigger": "event"}) or 1.0
        print(
            f"\n| 10,000 devices: rescan after one event, mean | {count:.0f} | {1000 * total / count:.1f} | | | 50 | |"
        )
