"""A thousand volumes while the worker is killed again and again: in the end each was right, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.core.errors import Error
from nodeplug.harness.kubelet.flexvolume.plugin import Pod, Volume
from nodeplug.kernel import mount
from tests.flexvolume.warm import Node
from tests.ledger import Ledger, loop_devices
from tests.needs import needs

pytestmark = [needs("sandbox", "program:cc", "loop"), pytest.mark.stress]
VOLUMES = int(os.environ.get("VOLUMES", "1000"))
AT_ONCE = 16


def again_and_again(attempt: object) -> None:
    """As the kubelet does."""
    for n in range(100):
        try:
            attempt()  # type: ignore[operator]  # a function
            return
        except Error:
            if n == 99:
                raise
            time.sleep(min(0.02 * 2**n, 0.5))


def test_volumes_under_a_worker_that_is_killed_again_and_again(ledger: Ledger) -> None:
    seed = os.environ.get("NODEPLUG_TEST_SEED") or str(random.randrange(10**9))
    print(f"NODEPLUG_TEST_SEED={seed}")
    chance = random.Random(seed)
    node = Node(ledger)
    node.start()
    node.kubelet.refresh()
    before = set(loop_devices())
    done = threading.Event()

    def kill() -> None:
        while not done.wait(chance.uniform(0.2, 1.5)):
            node.stop(signal.SIGKILL)
            node.start()

    killer = threading.Thread(target=kill)
    killer.start()

    def one(number: int) -> None:
        pod = Pod(f"p{number}", uid=f"uid-{number}", fs_group=number + 1)
        kind, options = ("loop", {"size": "8Mi"}) if number % 5 == 0 else ("tmpfs", {"size": "256Ki"})
        volume = Volume("data", f"nodeplug.dev/{kind}", options)
        plugin = node.kubelet.plugins[volume.driver]
        again_and_again(lambda: plugin.set_up(pod, volume))
        target = plugin.directory(pod, "data")
        assert len([found for found in mount.mounts() if found.point == str(target)]) == 1
        assert target.stat().st_gid == number + 1
        (target / "file").write_text(str(number))
        assert (target / "file").read_text() == str(number)
        again_and_again(lambda: plugin.tear_down(pod, "data"))
        assert not target.exists()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, range(VOLUMES)))
    done.set()
    killer.join()
    assert [found.point for found in mount.mounts() if str(node.root) in found.point] == []
    assert not list(Path("/run/nodeplug/volumes").glob("*.json"))
    assert not list(Path("/var/lib/nodeplug/volumes").rglob("*.img"))
    assert set(loop_devices()) <= before or not [
        entry for entry in set(loop_devices()) - before if "/var/lib/nodeplug/" in entry[1]
    ]
    assert node.stop() == 0
