"""Volumes that nodeplugd keeps: how quickly certificates are made and logs rotated, and what a writer feels.

docs/performance/volumes.md has the recorded run. Contenders take turns in each round, and what is told is the median of
the rounds; a writer's stall is the time of a single write of one line, by its own clock.
"""

from __future__ import annotations

import array
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from nodeplug.core.chore import is_kept
from nodeplug.volumes.identity import child
from nodeplug.volumes.identity.issuing import Ask, Interpreter, issue_here
from nodeplug.volumes.log.rotation import Rotation
from tests.bench import machine
from tests.bench.machine import Load
from tests.bench.report import CALM, percentile
from tests.child import until
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.volumes.authorities import HOUR
from tests.volumes.identities import Node as IdentityNode
from tests.volumes.logs import MIB, NOW, rules
from tests.volumes.logvolumes import Node as LogNode
from tests.worker.node import Node as Worker

pytestmark = [needs("sandbox", "loop", "program:mkfs.ext4"), pytest.mark.timeout(1800)]
ROUNDS = int(os.environ.get("ROUNDS", "5"))
COUNT = 500
LINES = 300_000
ASK = Ask(name="spiffe://example.org/ns/shop/sa/web", ttl=HOUR, key_type="ECDSAP256")

# A writer that times each of its writes; it is told the file, how it writes, and how many lines.
WRITER = """
import array, os, sys, time
path, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
fd, line, took, clock = os.open(path, flags, 0o644), b"." * 99 + b"\\n", array.array("Q"), time.perf_counter_ns
begun = clock()
for number in range(count):
    if how == "reopens" and number % 100 == 0:
        try:
            same = os.stat(path).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            same = False
        if not same:
            os.close(fd)
            fd = os.open(path, flags, 0o644)
    before = clock()
    try:
        os.write(fd, line)
    except OSError:
        took.append((1 << 62))
        continue
    took.append(clock() - before)
took.append(clock() - begun)
sys.stdout.buffer.write(took.tobytes())
"""


def heading(title: str, others: float) -> str:
    doubt = "" if others <= CALM else ": too much to trust this table"
    when = datetime.date.today().isoformat()
    return (
        f"\n### {title}\n\n{when}, {machine.describe()}. {ROUNDS} rounds, contenders in turn. Others took {others:.0%}"
        f" of the CPUs meanwhile{doubt}.\n"
    )


def timed(work: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls, in order."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return sorted(found)


def bench_identities(ledger: Ledger) -> None:
    """A certificate alone, in a child, as a whole publish, and replaced by the chore."""
    node = IdentityNode(ledger)
    log = str(node.top / "log")
    here = Interpreter(python=sys.executable, path=str(CHECKOUT))
    path = str(node.target())

    def publish() -> None:
        node.publish()
        node.service.unpublish(path)

    def replace() -> None:
        node.now += HOUR
        node.turn()

    works: dict[str, tuple[Callable[[], object], int]] = {
        "signed in process": (lambda: issue_here(node.store, ASK, now=node.now, log=log), COUNT),
        "signed in a child": (lambda: child.issue(here, node.store.directory, ASK, log=log, timeout=30), 20),
        "published and unpublished": (publish, 100),
        "replaced by the chore": (replace, 100),
    }
    taken: dict[str, list[list[float]]] = {name: [] for name in works}
    load = Load()
    for _ in range(ROUNDS):
        for name, (work, count) in works.items():
            if name == "replaced by the chore":
                node.publish()
                node.now = int(time.time())
            taken[name].append(timed(work, count))
        node.service.unpublish(path)
    print(heading("Identities", load.others()))
    print("| what | a second | median ms | p99 ms |\n|---|---:|---:|---:|")
    for name, rounds in taken.items():
        rate = median(len(each) / sum(each) for each in rounds)
        middle, late = (median(percentile(each, part) for each in rounds) * 1000 for part in (0.5, 0.99))
        print(f"| {name} | {rate:.0f} | {middle:.2f} | {late:.2f} |")


def bench_log_throughput(ledger: Ledger) -> None:
    """How many MB a second one thread rotates and drops, lines counted: the most that writers may write for long."""
    size = 64 * MIB
    ways = {"rename, then dropped": "rename", "punch": "punch", "copytruncate, then dropped": "copytruncate"}
    taken: dict[tuple[str, str], list[float]] = {}
    node = LogNode(ledger)
    load = Load()
    for _ in range(ROUNDS):
        for kind in ("disk", "memory"):
            for name, how in ways.items():
                taken.setdefault((name, kind), []).append(size / _rotated(node, kind, how, size) / 1e6)
    print(heading("Log rotation", load.others()))
    print("| what | on disk (ext4) MB/s | in memory MB/s |\n|---|---:|---:|")
    for name in ways:
        print(f"| {name} | {median(taken[name, 'disk']):.0f} | {median(taken[name, 'memory']):.0f} |")


def _rotated(node: LogNode, kind: str, how: str, size: int) -> float:
    """Seconds to rotate `size` bytes of lines, and drop what is older."""
    target = node.publish(medium=kind, size="256Mi", linger="0s", rotate=how, maxSize="8Mi")
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        chosen = rules(rotate=how, max_size=8 * MIB, max_files=1, high_water=90)
        kept = Rotation(fd, f"{node.top}/account-{time.monotonic_ns()}", chosen)
        begun = 0.0
        chunk = (b"." * 99 + b"\n") * (8 * MIB // 100 + 1)
        out = os.open(target / "app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _ in range(size // len(chunk)):
            os.write(out, chunk)
            moment = time.perf_counter()
            kept.keep(NOW)
            begun += time.perf_counter() - moment
            if how == "rename":
                os.close(out)
                out = os.open(target / "app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.close(out)
    finally:
        os.close(fd)
    node.service.unpublish(str(target))
    time.sleep(0.001)
    node.service.collect(apply=True)
    return begun


def bench_writer_stalls(ledger: Ledger) -> None:
    """A writer at full speed, 100 bytes a write, into a volume that nodeplugd keeps, and into one that nobody does."""
    node = LogNode(ledger)
    worker = Worker(ledger)
    worker.start()
    until(lambda: is_kept("logs"), "logs are kept")
    ways = {
        "not rotated": ("punch", "keeps", "1Gi"),
        "rename": ("rename", "reopens", "2Mi"),
        "punch": ("punch", "keeps", "2Mi"),
        "copytruncate": ("copytruncate", "keeps", "2Mi"),
    }
    taken: dict[tuple[str, str], list[tuple[float, list[int], int]]] = {}
    load = Load()
    for _ in range(ROUNDS):
        for kind in ("disk", "memory"):
            for name, (how, writer, largest) in ways.items():
                size = "4Gi" if name == "not rotated" else "64Mi"
                taken.setdefault((name, kind), []).append(_written(node, kind, how, writer, size, largest))
    print(heading("What a writer feels", load.others()))
    print("| medium | rotate | MB/s | median us | p99 us | p99.9 us | longest ms | refused |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for (name, kind), rounds in sorted(taken.items(), key=lambda each: each[0][1]):
        rate = median(LINES * 100 / seconds / 1e6 for seconds, _, _ in rounds)
        middle, late, later = (
            median(percentile([float(took) for took in writes], part) / 1e3 for _, writes, _ in rounds)
            for part in (0.5, 0.99, 0.999)
        )
        longest = median(writes[-1] / 1e6 for _, writes, _ in rounds)
        refused = sum(count for _, _, count in rounds)
        print(f"| {kind} | {name} | {rate:.0f} | {middle:.1f} | {late:.1f} | {later:.1f} | {longest:.1f} | {refused} |")


def _written(node: LogNode, kind: str, how: str, writer: str, size: str, largest: str) -> tuple[float, list[int], int]:
    """Seconds of the whole, nanoseconds of each write in order of length, and how many were refused."""
    policy = node.policy.replace(log=node.policy.log.replace(largest=8 << 30), loop=node.policy.loop.replace(floor=0))
    node.service.policy = policy
    target = node.publish(medium=kind, size=size, linger="0s", rotate=how, maxSize=largest, highWater="50")
    try:
        argv = [sys.executable, "-c", WRITER, target / "app.log", writer, str(LINES)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=300)
    finally:
        node.service.unpublish(str(target))
        until(lambda: not Path(f"{node.place()}.json").exists(), "it is removed", timeout=60)
    numbers = array.array("Q")
    numbers.frombytes(done.stdout)
    total = numbers.pop() / 1e9
    writes = sorted(number for number in numbers if number < 1 << 61)
    return total, writes, LINES - len(writes)
