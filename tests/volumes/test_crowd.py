"""A hundred volumes at once, by processes and threads as a node's start brings them, some of which are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.volumes.contract import Request
from tests.ledger import Ledger
from tests.needs import needs
from tests.volumes.places import MIB, POD, Place

pytestmark = [needs("sandbox", "loop"), pytest.mark.timeout(300)]

PROCESSES = 4
THREADS = 4


@pytest.fixture
def place(ledger: Ledger) -> Place:
    return Place(ledger, total=1 << 40)


def mixed(place: Place, count: int) -> list[Request]:
    """Every kind in turn, each pod's own."""
    lower = str(place.directory("lower", file="lower's"))
    kinds: list[tuple[str, dict[str, str]]] = [
        ("tmpfs", {"size": "1Mi"}),
        ("secret", {}),
        ("loop", {"size": "8Mi"}),
        ("bind", {"path": lower}),
        ("overlay", {"size": "1Mi", "lower": lower}),
    ]
    found = []
    for number in range(count):
        driver, options = kinds[number % len(kinds)]
        pod = POD.replace(name=f"pod-{number}", uid=f"uid-{number}")
        secrets = {"key": str(number)} if driver == "secret" else None
        found.append(place.request(driver, pod=pod, secrets=secrets, **options))
    return found


def among_processes(requests: Sequence[Request], work: Callable[[Request], object]) -> list[int]:
    """Share the work among processes with threads each; their process ids, for who waits for them."""
    pids = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with ThreadPoolExecutor(THREADS) as threads:
                    list(threads.map(work, requests[number::PROCESSES]))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def ended(pids: Sequence[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def right(request: Request) -> bool:
    at = Path(request.target)
    if request.driver == "secret":
        return (at / "key").read_text() == request.pod.name.removeprefix("pod-")
    if request.driver in ("bind", "overlay"):
        return (at / "file").read_text() == "lower's"
    (at / "mine").write_text(request.pod.name)
    held = os.statvfs(at)
    return 0 < held.f_blocks * held.f_frsize <= 8 * MIB


def test_a_hundred_at_once_are_each_the_right_one_and_leave_nothing(place: Place) -> None:
    requests = mixed(place, 100)
    assert ended(among_processes(requests, place.service.publish)) == [0] * PROCESSES
    assert all(right(request) for request in requests)
    assert len(place.service.published()) == 100 and all(each.mounted for each in place.service.published())
    assert place.service.collect(apply=True) == ()
    assert ended(among_processes(requests, lambda request: place.service.unpublish(request.target))) == [0] * PROCESSES
    assert place.remains() == []


def test_half_of_the_callers_killed_in_the_middle_cost_no_volume(place: Place) -> None:
    requests = mixed(place, 60)
    for pause in (0.0, 0.01, 0.03, 0.08):
        pids = among_processes(requests, place.service.publish)
        time.sleep(pause)  # anywhere in the middle: each round another place, and each must do
        for pid in pids[::2]:
            os.kill(pid, signal.SIGKILL)
        assert ended(pids)[1::2] == [0] * (PROCESSES // 2)
        assert ended(among_processes(requests, place.service.publish)) == [0] * PROCESSES
        assert all(right(request) for request in requests)
        pids = among_processes(requests, lambda request: place.service.unpublish(request.target))
        time.sleep(pause)
        os.kill(pids[0], signal.SIGKILL)
        ended(pids)
        for request in requests:
            place.service.unpublish(request.target)
        assert place.remains() == []
