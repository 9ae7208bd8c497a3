"""Upgraded while pods come and go: plugins, package and worker are replaced, and no call notices."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.worker.node import BRIDGE, Node, code

pytestmark = needs("sandbox", "program:cc")
LEASES = Path("/var/lib/cni/networks/pods")


@pytest.mark.parametrize("count", [24, pytest.param(300, marks=(pytest.mark.stress, pytest.mark.timeout(1200)))])
def test_no_pod_fails_for_good_and_none_is_left(ledger: Ledger, count: int) -> None:
    node = Node(ledger)
    node.start()
    ledger.link("np-test0")
    ledger.table("inet", "nodeplug")
    pods = [ledger.netns() for _ in range(count)]
    done = threading.Event()
    upgrades: list[str] = []
    failures: list[BaseException] = []

    def upgrade() -> None:
        """As a package's scripts do: the plugins first, then the worker, which drains."""
        cni = dataclasses.replace(door("cni"), socket=str(node.socket))
        try:
            while not done.is_set() or len(upgrades) < 2:
                parts = (*cni.parts, ("daemon", "pb")[len(upgrades) % 2])
                Directory(node.plugins).install(dataclasses.replace(cni, parts=parts), kind="c")
                upgrades.append((node.plugins / ".nodeplug" / "lib").resolve().name)
                assert node.stop() == 0
                node.start()
        except BaseException as error:
            failures.append(error)

    def live(pod: Space) -> str:
        for _ in range(20):
            added = node.call("ADD", BRIDGE, pod)
            if added.code == 0:
                return str(added.json()["ips"][0]["address"])
            assert code(added) == 11, added
            assert node.call("DEL", BRIDGE, pod).code == 0
        raise AssertionError("it failed for good")

    thread = threading.Thread(target=upgrade)
    thread.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            given = list(pool.map(live, pods))
            ended = list(pool.map(lambda pod: node.call("DEL", BRIDGE, pod), pods))
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert len(upgrades) >= 2 and len(set(upgrades)) == 2
    assert len(set(given)) == count
    assert [finished for finished in ended if finished.code != 0] == []
    assert HERE.links() == {"lo", "np-test0"}
    assert not [path.name for path in LEASES.iterdir() if path.name.startswith("10.")]
    assert len(list((node.plugins / ".nodeplug" / "versions").iterdir())) == 2
    node.stop()
