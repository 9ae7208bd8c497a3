"""Volumes in containers of a real containerd: written and read, a hundred at once, and the worker killed in between."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nodeplug.core.errors import Error
from nodeplug.harness.kubelet.flexvolume.plugin import Pod, Volume
from nodeplug.harness.runtime.containerd import IMAGE, Containerd
from nodeplug.harness.runtime.cri import Executed
from nodeplug.kernel import mount
from tests.flexvolume.warm import Node
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:containerd", "program:runc", "program:cc")
MOST, AT_ONCE = 100, 16


class Cluster:
    """A kubelet's volumes and a runtime's containers on one node."""

    def __init__(self, ledger: Ledger) -> None:
        self.node = Node(ledger)
        self.node.start()
        directory = ledger.directory()
        (directory / "net.d").mkdir()
        self.runtime = Containerd(directory / "c", bin_dir=directory, conf_dir=directory / "net.d")
        ledger.adopt("containerd", self.runtime.close)
        ledger.adopt("what the shims made", lambda: os.path.isdir("/run/containerd") and _remove("/run/containerd"))
        self.runtime.start()

    def run(self, name: str, mounts: dict[str, Path]) -> tuple[str, str]:
        """A pod with one container that has these volumes; returns both ids."""
        spec = self.runtime.spec(name, host_network=True)
        pod = self.runtime.cri.run_pod(spec)
        return pod, self.runtime.cri.run_container(pod, spec, image=IMAGE, name="main", mounts=mounts)

    def execute(self, container: str, script: str) -> Executed:
        return self.runtime.cri.execute(container, "/bin/sh", "-c", script)

    def delete(self, pod: str) -> None:
        self.runtime.cri.stop_pod(pod)
        self.runtime.cri.remove_pod(pod)


def _remove(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(module_ledger: Ledger) -> Iterator[Cluster]:
    found = Cluster(module_ledger)
    yield found
    assert found.runtime.remove_pods() == []
    assert found.node.process is not None
    if found.node.process.running():
        found.node.stop()


def pod(name: str) -> Pod:
    return Pod(name, uid=f"{name}-uid")


@pytest.mark.needs("loop")
def test_a_container_writes_and_reads_its_volumes(cluster: Cluster) -> None:
    me = pod("writer")
    wanted = {
        "/data": Volume("data", "nodeplug.dev/loop", {"size": "16Mi"}),
        "/fast": Volume("fast", "nodeplug.dev/tmpfs", {"size": "1Mi"}),
        "/keys": Volume("keys", "nodeplug.dev/secret", secrets={"password": b"open sesame"}),
    }
    places = {inside: cluster.node.kubelet.find(each.driver).set_up(me, each) for inside, each in wanted.items()}
    sandbox, container = cluster.run("writer", places)
    done = cluster.execute(
        container, "echo x > /data/file && echo y > /fast/file && cat /data/file /fast/file /keys/password"
    )
    assert (done.status, done.stdout) == (0, b"x\ny\nopen sesame"), done
    full = cluster.execute(container, "dd if=/dev/zero of=/fast/full bs=64k 2>&1; df -k /fast | tail -1")
    assert b"No space left" in full.stdout and b" 1024 " in full.stdout
    assert cluster.execute(container, "echo x > /keys/other").status != 0
    assert (places["/data"] / "file").read_text() == "x\n"
    cluster.delete(sandbox)
    for each in wanted.values():
        cluster.node.kubelet.find(each.driver).tear_down(me, each.name)
    assert [found.point for found in mount.mounts() if str(cluster.node.root) in found.point] == []


def test_a_pod_that_ends_before_its_volume_is_let_go_of_leaves_nothing(cluster: Cluster) -> None:
    """Somebody else still has a file of it open: the volume is hidden at once, and ends with its last user."""
    me, wanted = pod("held"), Volume("data", "nodeplug.dev/tmpfs", {"size": "1Mi"})
    target = cluster.node.kubelet.find(wanted.driver).set_up(me, wanted)
    with (target / "file").open("w"):
        cluster.node.kubelet.find(wanted.driver).tear_down(me, "data")
        assert not target.exists()


def until_done(attempt: object, tries: int = 20) -> None:
    """As the kubelet: again and again, a little later each time."""
    for n in range(tries):
        try:
            attempt()  # type: ignore[operator]  # a function
            return
        except Error:
            if n == tries - 1:
                raise
            time.sleep(0.05 * (n + 1))


def test_a_hundred_volumes_sixteen_at_once_while_the_worker_is_killed(cluster: Cluster) -> None:
    """Each is mounted and written by a container in the end, and nothing is left of any."""
    seed = os.environ.get("NODEPLUG_TEST_SEED") or str(random.randrange(10**9))
    print(f"NODEPLUG_TEST_SEED={seed}")
    chance = random.Random(seed)
    wanted = [Volume(f"v{n}", "nodeplug.dev/tmpfs", {"size": "256Ki"}) for n in range(MOST)]
    me = pod("many")
    plugin = cluster.node.kubelet.find("nodeplug.dev/tmpfs")

    def up(each: Volume) -> Path:
        until_done(lambda: plugin.set_up(me, each))
        return plugin.directory(me, each.name)

    def down(each: Volume) -> None:
        until_done(lambda: plugin.tear_down(me, each.name))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        coming = threads.map(up, wanted)
        time.sleep(chance.random() * 0.2)
        cluster.node.stop(signal.SIGKILL)
        targets = list(coming)
    assert all(len([found for found in mount.mounts() if found.point == str(target)]) == 1 for target in targets)
    cluster.node.start()
    sandbox, container = cluster.run("many", {f"/v/{n}": target for n, target in enumerate(targets)})
    script = "for n in $(seq 0 99); do echo $n > /v/$n/file || exit 1; done; cat /v/*/file | sort -n | tail -1"
    done = cluster.execute(container, script)
    assert (done.status, done.stdout) == (0, b"99\n"), done
    cluster.delete(sandbox)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        going = threads.map(down, wanted)
        time.sleep(chance.random() * 0.2)
        cluster.node.stop(signal.SIGKILL)
        list(going)
    assert [found.point for found in mount.mounts() if str(cluster.node.root) in found.point] == []
    assert not list(cluster.node.root.glob("pods/*/volumes/*/*"))
    assert not list(Path("/run/nodeplug/volumes").glob("*.json"))
    cluster.node.start()


def test_a_container_that_began_with_the_worker_goes_on_without_it(cluster: Cluster) -> None:
    me, wanted = pod("through"), Volume("data", "nodeplug.dev/tmpfs", {"size": "1Mi"})
    target = cluster.node.kubelet.find(wanted.driver).set_up(me, wanted)
    sandbox, container = cluster.run("through", {"/data": target})
    cluster.node.stop(signal.SIGKILL)
    assert cluster.execute(container, "echo x > /data/file && cat /data/file").stdout == b"x\n"
    cluster.delete(sandbox)
    cluster.node.kubelet.find(wanted.driver).tear_down(me, "data")
    assert not target.exists()
    cluster.node.start()
