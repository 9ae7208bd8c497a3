"""Logs kept by nodeplugd itself, against writers in processes of their own: at a pace that it can follow, above it, and
when it is killed.

The pace is stated: 40,000 lines of 100 bytes a second into a volume of 16 MiB of which half is kept free, so that what
is written in two seconds fits into the room that is left. docs/volumes/log.md tells how to reckon it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from nodeplug.core.chore import is_kept
from nodeplug.volumes.log.look import classify
from tests.child import Process, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.logs import PATTERNS, line
from tests.volumes.logvolumes import Node
from tests.worker.node import Node as Worker

pytestmark = [needs("sandbox", "loop", "program:mkfs.ext4"), pytest.mark.timeout(180)]

WRITER = Path(__file__).with_name("logwriter.py")
RATE = 40_000
HALF = {"size": "16Mi", "highWater": "50", "maxSize": "1Mi", "maxFiles": "100"}


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)


@pytest.fixture
def worker(ledger: Ledger) -> Worker:
    found = Worker(ledger)
    found.start()
    until(lambda: is_kept("logs"), "logs are kept")
    return found


def writer(ledger: Ledger, target: Path, how: str, lines: int, rate: int) -> Process:
    return ledger.start([sys.executable, WRITER, target / "app.log", how, str(lines), str(rate)])


def refused(process: Process, timeout: float = 60.0) -> int:
    """How often it was, after it has ended well."""
    assert process.wait(timeout) == 0, process.output()
    return int(json.loads(process.output())["refused"])


def check(node: Node, volume: str, lines: int) -> None:
    """Every line is there once or was counted as dropped; those that are there are the youngest, and whole."""
    place = node.place(volume)
    order = []
    for path in place.rglob("*"):
        base, sequence = classify(path.relative_to(place).as_posix(), PATTERNS)
        if base:
            order.append((sequence or 1 << 60, path))
    found = []
    for _sequence, path in sorted(order):
        for text in path.read_bytes().lstrip(b"\0").splitlines(keepends=True):
            if text.strip(b" \n"):
                assert text == line(int(text[:12])), f"torn in {path.name}"
                found.append(int(text[:12]))
    dropped = node.account(volume).dropped.lines
    assert found == list(range(dropped, lines)), (len(found), dropped, lines)


def test_at_a_pace_it_can_follow_no_writer_is_refused_and_each_line_is_there_or_counted(
    ledger: Ledger, node: Node, worker: Worker
) -> None:
    lines = 6 * RATE
    kinds = {
        "renamed": ({"rotate": "rename"}, "reopens"),
        "punched": ({"rotate": "punch", "medium": "memory"}, "keeps"),
        "copied": ({"rotate": "copytruncate"}, "keeps"),
    }
    writing = {}
    for volume, (options, how) in kinds.items():
        writing[volume] = writer(ledger, node.publish(volume=volume, **HALF, **options), how, lines, RATE)
    for volume, process in writing.items():
        assert refused(process) == 0, volume
    for volume in kinds:
        until(lambda volume=volume: _is_settled(node, volume), "it has caught up")  # type: ignore[misc]  # bound now
    assert node.service.health(str(node.log(volume="renamed", **HALF).target)).ok
    worker.stop()
    for volume in kinds:
        check(node, volume, lines)
        assert node.account(volume).dropped.lines > lines // 3
        assert node.account(volume).full == 0
    assert node.account("copied").windows.count == 0


def _is_settled(node: Node, volume: str) -> bool:
    found = os.statvfs(node.place(volume))
    return found.f_bavail >= found.f_blocks // 2 and node.account(volume).pending is None


def test_above_that_pace_the_writer_is_refused_the_node_is_not_and_health_says_so(
    ledger: Ledger, node: Node, worker: Worker
) -> None:
    target = node.publish(medium="memory", rotate="punch", highWater="95", size="4Mi", maxSize="64Ki")
    elsewhere = os.statvfs(node.top)
    until(lambda: node.account().created, "it is taken up")
    assert worker.process is not None
    worker.process.signal(signal.SIGSTOP)  # whatever else the machine does, the writer is quicker than that
    process = writer(ledger, target, "keeps", 300_000, 0)
    until(lambda: os.statvfs(target).f_bavail == 0, "it is full", timeout=30)
    worker.process.signal(signal.SIGCONT)
    assert refused(process) > 0
    until(lambda: "was full" in (worker.process.output() if worker.process else ""), "it is told", timeout=30)
    after = os.statvfs(node.top)
    assert abs(after.f_bavail - elsewhere.f_bavail) * after.f_frsize < 1 << 20
    worker.stop()
    check(node, "logs", 300_000)
    assert node.account().full > 0


def test_when_nodeplugd_is_killed_writers_run_into_the_bound_and_its_next_start_frees_them(
    ledger: Ledger, node: Node, worker: Worker
) -> None:
    target = node.publish(rotate="punch", size="8Mi", maxSize="256Ki")
    until(lambda: node.account().created, "it is taken up")
    worker.stop(signal.SIGKILL)
    process = writer(ledger, target, "keeps", 200_000, 0)
    until(lambda: os.statvfs(target).f_bavail == 0, "it is full", timeout=30)
    health = node.service.health(str(target))
    assert not health.ok
    assert "nodeplugd does not run" in health.reason
    assert process.running()
    worker.start()
    assert refused(process) > 0
    worker.stop()
    check(node, "logs", 200_000)


def test_killed_again_and_again_while_it_is_written_nothing_is_lost_or_counted_twice(
    ledger: Ledger, node: Node, worker: Worker
) -> None:
    volumes = {"renamed": ("rename", "reopens"), "copied": ("copytruncate", "keeps")}
    writing = {}
    for volume, (rotate, how) in volumes.items():
        target = node.publish(volume=volume, **{**HALF, "size": "64Mi", "maxSize": "256Ki", "rotate": rotate})
        writing[volume] = writer(ledger, target, how, 6 * RATE, RATE)
    for _ in range(3):
        before = node.account("renamed").rotations
        until(lambda least=before + 1: node.account("renamed").rotations > least, "it rotates", timeout=30)  # type: ignore[misc]  # bound now
        worker.stop(signal.SIGKILL)
        worker.start()
    for process in writing.values():
        assert refused(process) == 0
    worker.stop()
    for volume in volumes:
        check(node, volume, 6 * RATE)


def test_nodeplugd_removes_what_is_over_by_itself(ledger: Ledger, node: Node, worker: Worker) -> None:
    target = node.publish(linger="0.2s")
    (target / "app.log").write_text("last words\n")
    node.service.unpublish(str(target))
    until(lambda: node.remains() == [], "it is gone", timeout=30)
