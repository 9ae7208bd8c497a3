"""ptp, macvlan and tap by shim and worker: many at once, killed in between, and no thread left in a pod's namespace."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodeplug.worker import living
from tests.child import run, until
from tests.cni.lans import Lan
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.worker.node import Node, code

pytestmark = needs("sandbox", "program:cc")
LEASES = Path("/var/lib/cni/networks/pods")
CONFIGS: dict[str, dict[str, Any]] = {
    "ptp": {"ipMasq": True},
    "macvlan": {"master": "lan0"},
    "tap": {"owner": 1000, "multiQueue": True},
}
plugins = pytest.mark.parametrize("plugin", CONFIGS)
PODS = 12


def config(plugin: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.88.0.0/24"}
    return {"cniVersion": "1.1.0", "name": "pods", "type": plugin, "ipam": ipam, **CONFIGS[plugin]}


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    return Node(module_ledger, more="threads = 8")


@pytest.fixture
def worker(node: Node, ledger: Ledger) -> Iterator[Node]:
    Lan(ledger)
    ledger.table("inet", "nodeplug")
    ledger.adopt("leases", lambda: run(["rm", "-rf", str(LEASES)]))
    node.start()
    yield node
    node.stop()


def left(pods: list[Space]) -> dict[str, Any]:
    return {
        "host": HERE.links() - {"lo", "lan0"},
        "inside": {name for pod in pods for name in pod.links()} - {"lo"},
        "leases": {path.name for path in LEASES.glob("10.*")},
    }


NOTHING: dict[str, Any] = {"host": set(), "inside": set(), "leases": set()}


def spaces_of(node: Node) -> set[str]:
    """The network namespaces that the worker's threads are in."""
    assert node.process is not None
    found = set()
    for task in Path(f"/proc/{node.process.pid}/task").iterdir():
        try:
            found.add(os.readlink(task / "ns" / "net"))
        except OSError:
            continue  # it has ended
    return found


@plugins
def test_the_worker_serves_every_command_to_many_at_once(worker: Node, ledger: Ledger, plugin: str) -> None:
    """The launcher is away, so that nobody else can."""
    launcher = worker.plugins / ".nodeplug" / "exec"
    launcher.rename(launcher.with_name("exec.away"))
    ledger.adopt("launcher", lambda: launcher.with_name("exec.away").rename(launcher))
    made, pods = config(plugin), [ledger.netns() for _ in range(PODS)]
    assert worker.call("STATUS", made).code == 0
    with ThreadPoolExecutor(PODS) as pool:
        results = [done.ok().json() for done in pool.map(lambda pod: worker.call("ADD", made, pod), pods)]
        assert len({result["ips"][0]["address"] for result in results}) == PODS
        for pod, result in zip(pods, results, strict=True):
            assert worker.call("CHECK", {**made, "prevResult": result}, pod).code == 0
        valid = [{"containerID": pod.name, "ifname": "eth0"} for pod in pods[2:]]
        assert worker.call("GC", {**made, "cni.dev/valid-attachments": valid}).code == 0
        assert [pod.links() for pod in pods[:2]] == [{"lo"}, {"lo"}]
        assert all(done.code == 0 for done in pool.map(lambda pod: worker.call("DEL", made, pod), pods))
    assert left(pods) == NOTHING
    assert spaces_of(worker) == {os.readlink("/proc/self/ns/net")}


@plugins
def test_a_worker_that_is_killed_in_between_leaves_what_the_next_call_takes_back(
    worker: Node, ledger: Ledger, plugin: str
) -> None:
    """ADD is answered with 11 or done; the runtime's DEL finds the launcher where the worker is away."""
    made, pods = config(plugin), [ledger.netns() for _ in range(PODS)]
    chance = random.Random(plugin)
    for _ in range(3):
        with ThreadPoolExecutor(PODS) as pool:
            adding = [pool.submit(worker.call, "ADD", made, pod) for pod in pods]
            until(adding[chance.randrange(PODS)].done, "one of them is done")
            worker.kill()
            codes = {code(future.result()) for future in adding}
            assert codes <= {0, 11}, codes
            deleted = [code(done) for done in pool.map(lambda pod: worker.call("DEL", made, pod), pods)]
        assert deleted == [0] * PODS
        assert left(pods) == NOTHING
        worker.start()


@needs("link:macvlan")
def test_a_link_in_a_pod_is_a_trace_of_an_attachment_that_lives(worker: Node, ledger: Ledger) -> None:
    """Of one with addresses that no file tells of: it must not be collected after a boot."""
    ipam = {"type": "static", "addresses": [{"address": "10.88.0.9/24"}]}
    made, pod = {**config("macvlan"), "ipam": ipam}, ledger.netns()
    worker.call("ADD", made, pod).ok()
    traces = living.traces("pods", [made], results=str(ledger.directory()))
    assert [(trace.container, trace.ifname, trace.namespace) for trace in traces] == [(pod.name, "eth0", True)]
    assert living.traces("others", [made], results=str(ledger.directory())) == []
    assert worker.call("DEL", made, pod).code == 0
