"""A plugin that is killed in the middle, under containerd: its clean-up, and the kubelet's retries, leave nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.core.errors import Error
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from tests.child import until
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import GATEWAY, PORTMAP, Node, bridge, conflist, install, silent, start_worker

pytestmark = needs("sandbox", "program:containerd", "program:runc", "program:nft", "program:timeout")
WEB = Port(8080, 80)
ROUNDS = 8
SPAN = 0.06  # a plugin's whole life under an interpreter, so that the moments fall into each part of it


class Assassin:
    """Stands where plugins are looked for, runs the real ones, and kills the next of a kind after a moment.

    What is to be killed stands in a file that the one which is killed takes away, so that the clean-up lives.
    """

    def __init__(self, directory: Path, real: Path, *names: str) -> None:
        self.directory = directory
        directory.mkdir()
        for plugin in real.iterdir():
            (directory / plugin.name).symlink_to(plugin)
        for name in names:
            (directory / name).unlink()
            script = directory / name
            script.write_text(
                f"""#!/bin/sh
order={directory}/.kill-{name}-$CNI_COMMAND
if mv "$order" "$order.taken" 2>/dev/null; then
    exec timeout --signal=KILL "$(cat "$order.taken")" {real}/{name}
fi
exec {real}/{name}
"""
            )
            script.chmod(0o755)

    def order(self, name: str, command: str, after: float) -> Path:
        """Kill the next `command` of plugin `name` so many seconds after its start."""
        taken = self.directory / f".kill-{name}-{command}.taken"
        taken.unlink(missing_ok=True)
        fresh = self.directory / ".order"
        fresh.write_text(f"{after:.4f}")
        fresh.rename(self.directory / f".kill-{name}-{command}")
        return taken


@pytest.fixture(scope="module")
def assassin(module_ledger: Ledger) -> Assassin:
    directory = module_ledger.directory()
    return Assassin(directory / "wrapped", install(directory / "bin"), "bridge", "portmap")


@pytest.fixture(scope="module")
def node(module_ledger: Ledger, assassin: Assassin) -> Node:
    directory = module_ledger.directory()
    network = conflist(bridge(directory / "leases"), PORTMAP)
    return Node(module_ledger, assassin.directory, network, directory)


@pytest.fixture(autouse=True)
def _nothing_is_left(node: Node) -> Iterator[None]:
    yield
    assert node.runtime.remove_pods() == []
    until(lambda: not node.left(), f"nothing of the pods is left, but there is {node.left()}")


def moments() -> list[float]:
    """One at random in each part of a plugin's life. NODEPLUG_TEST_SEED repeats a run."""
    seed = os.environ.get("NODEPLUG_TEST_SEED") or str(random.randrange(10**9))
    print(f"NODEPLUG_TEST_SEED={seed}")
    chance = random.Random(seed)
    part = SPAN / ROUNDS
    return [n * part + chance.random() * part + 0.001 for n in range(ROUNDS)]


@pytest.mark.parametrize("plugin", ["bridge", "portmap"])
def test_add_that_is_killed_is_cleaned_up_by_the_runtime(node: Node, assassin: Assassin, plugin: str) -> None:
    for n, moment in enumerate(moments()):
        taken = assassin.order(plugin, "ADD", moment)
        name = f"add{n}"
        try:
            pod = node.run(name, WEB)
        except Error as error:
            assert taken.exists(), error
            until(lambda: not node.left(), "what the killed ADD made is removed")
            pod = node.run(name, WEB)
        assert who.fetch("127.0.0.1", WEB.host) == f"{name} answers {GATEWAY}"
        node.delete(pod)
        assert not node.left()


@pytest.mark.parametrize("plugin", ["bridge", "portmap"])
def test_delete_that_is_killed_is_finished_by_the_next(node: Node, assassin: Assassin, plugin: str) -> None:
    for n, moment in enumerate(moments()):
        pod = node.run(f"del{n}", WEB)
        taken = assassin.order(plugin, "DEL", moment)
        try:
            node.runtime.cri.stop_pod(pod)
        except Error as error:
            assert taken.exists(), error
            node.runtime.cri.stop_pod(pod)
        node.runtime.cri.remove_pod(pod)
        assert not node.left()
        assert silent("127.0.0.1", WEB.host)


@needs("program:cc")
def test_a_worker_that_is_killed_over_its_pods_fails_none_for_good(ledger: Ledger) -> None:
    """Pods come and go while it is killed again and again; what fails is tried again, as the kubelet does."""
    directory = ledger.directory()
    network = conflist(bridge(directory / "leases"), PORTMAP)
    node = Node(ledger, install(directory / "bin", way="worker"), network, directory)
    done = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        while not done.is_set() or killed < 3:
            with contextlib.closing(Ledger()) as own:
                worker = start_worker(own)
                done.wait(random.uniform(0.0, 0.4))
                worker.signal(signal.SIGKILL)
                worker.wait()
                killed += 1

    def live(number: int) -> None:
        name, port = f"pod{number}", 9000 + number
        for _ in range(10):
            try:
                pod = node.run(name, Port(port, 80))
                break
            except Error:
                for left in node.runtime.cri.pods():
                    if left.name == name:
                        node.delete(left.id)
        assert who.fetch("127.0.0.1", port) == f"{name} answers {GATEWAY}"
        for _ in range(10):
            try:
                node.delete(pod)
                return
            except Error:
                continue
        raise AssertionError(f"{name} cannot be deleted")

    assassin = threading.Thread(target=kill)
    assassin.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(live, range(12)))
    finally:
        done.set()
        assassin.join()
    until(lambda: not node.left(), f"nothing of the pods is left, but there is {node.left()}")
