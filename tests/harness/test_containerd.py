"""The private containerd against the reference plugins: pods live, are lost and go, and nothing of it stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core.errors import Error, NotFound, Unavailable
from nodeplug.harness.runtime import config, containerd, image
from nodeplug.harness.runtime.cache import Cache, Cached
from nodeplug.harness.runtime.containerd import IMAGE, Containerd
from nodeplug.harness.runtime.cri import Port
from nodeplug.harness.runtime.runtime import Runtime
from nodeplug.ops.demo import who
from tests.child import run, until
from tests.harness.test_runtime_reference import PORTMAP, REFERENCE, V4, Pods
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:containerd", "program:runc", f"file:{REFERENCE}/bridge", "program:nft")
WEB = Port(8080, 80)


class Node:
    """A running containerd and the network its pods get."""

    def __init__(self, ledger: Ledger) -> None:
        directory = ledger.directory()
        conf_dir = directory / "net.d"
        conf_dir.mkdir()
        self.pods = Pods(directory / "leases")
        self.network = self.pods.network("1.0.0", self.pods.bridge(V4), PORTMAP)
        (conf_dir / "10.conflist").write_bytes(self.network.raw)
        ledger.link("cni0")
        for path in ("ip nat", "ip6 nat", "ip filter", "ip6 filter"):
            ledger.table(*path.split())  # iptables makes and keeps them
        ledger.adopt("what the shims made", lambda: shutil.rmtree("/run/containerd", ignore_errors=True))
        self.runtime = Containerd(directory / "c", bin_dir=REFERENCE, conf_dir=conf_dir)
        ledger.adopt("containerd", self.runtime.close)
        self.ours = Runtime([REFERENCE])
        self.runtime.start()

    def run(self, name: str, *ports: Port) -> str:
        """A pod with a server; returns its id."""
        spec = self.runtime.spec(name, ports=ports)
        pod = self.runtime.cri.run_pod(spec)
        self.runtime.cri.run_container(pod, spec, image=IMAGE, name="server", command=image.SERVER)
        return pod

    def address(self, pod: str) -> str:
        return self.runtime.cri.pod(pod).addresses[0]

    def results(self, pod: str) -> list[Cached]:
        return [entry for entry in Cache().entries() if entry.attachment.container_id == pod]


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    return Node(module_ledger)


@pytest.fixture(autouse=True)
def _no_pods_stay(node: Node) -> Iterator[None]:
    yield
    assert node.runtime.remove_pods() == []


def answers(address: str, port: int) -> str:
    """What comes back, once its server is up."""

    def ask() -> str:
        try:
            return who.fetch(address, port)
        except Error:
            return ""

    return str(until(ask, f"{address}:{port} answers"))


def test_pod_has_a_network_and_its_container_answers(node: Node) -> None:
    pod = node.run("web", WEB)
    assert node.runtime.cri.version()[0] == "containerd"
    assert node.runtime.cri.conditions()["NetworkReady"][0]
    assert IMAGE in node.runtime.cri.images()
    assert answers(node.address(pod), 80) == "web answers 10.88.0.1"
    assert answers("10.88.0.1", 8080).startswith("web answers")
    found = node.runtime.cri.pod(pod)
    assert (found.name, found.namespace, found.ready) == ("web", "default", True)
    node.runtime.cri.stop_pod(pod)
    node.runtime.cri.stop_pod(pod)
    assert not node.runtime.cri.pod(pod).ready
    assert node.pods.leases() == set()
    node.runtime.cri.remove_pod(pod)
    with pytest.raises(NotFound):
        node.runtime.cri.pod(pod)
    assert node.runtime.cri.pods() == []


def test_command_in_a_container_has_status_and_both_streams(node: Node) -> None:
    spec = node.runtime.spec("job")
    pod = node.runtime.cri.run_pod(spec)
    container = node.runtime.cri.run_container(pod, spec, image=IMAGE, name="sleep")
    done = node.runtime.cri.execute(container, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert json.loads(node.runtime.cri.info(container))["pid"] > 1


def test_pods_go_on_while_their_daemon_is_restarted(node: Node) -> None:
    pod = node.run("web", WEB)
    address = node.address(pod)
    answers(address, 80)
    node.runtime.kill()
    assert who.fetch(address, 80) == "web answers 10.88.0.1"
    with pytest.raises(Unavailable, match="not running"):
        _ = node.runtime.cri
    node.runtime.start()
    assert node.runtime.cri.pod(pod).ready
    node.runtime.stop()
    node.runtime.start()
    assert node.runtime.cri.pod(pod).addresses == (address,)


def test_lost_pod_is_unknown_and_its_state_is_collected_by_our_runtime(node: Node) -> None:
    lost, kept = node.run("lost", WEB), node.run("kept")
    node.runtime.lose_pod(lost)
    assert [pod.id for pod in node.runtime.cri.pods()] == [kept]
    assert len(node.pods.leases()) == 2
    removed = node.ours.gc(node.network, [(kept, "eth0")])
    assert [entry.attachment.container_id for entry in removed] == [lost]
    assert {entry.network for entry in node.ours.forget([lost])} == {"cni-loopback"}
    assert node.pods.leases() == {node.address(kept)}
    assert node.results(lost) == []
    assert not Path("/run/netns").joinpath("cni-lost").exists()


def test_our_runtime_takes_over_what_containerd_cached(node: Node) -> None:
    pod = node.run("web", WEB)
    entry = next(entry for entry in node.results(pod) if entry.network == "pods")
    assert entry.attachment.ifname == "eth0"
    assert dict(entry.attachment.args)["K8S_POD_NAME"] == "web"
    (mapping,) = entry.attachment.capability_args["portMappings"]
    assert mapping["HostPort"] == 8080  # go-cni's own spelling, which plugins have to understand
    assert config.parse_network(entry.config).name == "pods"
    assert entry.addresses() == (node.address(pod),)
    node.ours.delete(node.network, entry.attachment)
    assert node.pods.leases() == set()
    with pytest.raises(Error):
        who.fetch("10.88.0.1", 8080)


def test_containerd_takes_over_what_our_runtime_cached(node: Node, directory: Path) -> None:
    pod = node.run("web", WEB)
    cache = Cache()
    entry = next(entry for entry in node.results(pod) if entry.network == "pods")
    theirs = json.loads(cache.path("pods", entry.attachment).read_text())
    cache.remove("pods", entry.attachment)
    cache.write(entry)
    ours = json.loads(cache.path("pods", entry.attachment).read_text())
    assert {key: ours[key] for key in theirs} == theirs
    node.runtime.cri.stop_pod(pod)
    assert node.pods.leases() == set()
    assert node.results(pod) == []


def test_everything_ends_with_close_even_after_a_kill(ledger: Ledger) -> None:
    conf_dir = ledger.directory()
    second = Containerd(ledger.directory() / "c", bin_dir=REFERENCE, conf_dir=conf_dir)
    network = Pods(conf_dir / "leases")
    (conf_dir / "10.conflist").write_bytes(network.network("1.0.0", network.bridge(V4)).raw)
    with second:
        pod = second.cri.run_pod(second.spec("web"))
        path = next(
            entry["path"]
            for entry in json.loads(second.cri.pod_info(pod))["runtimeSpec"]["linux"]["namespaces"]
            if entry["type"] == "network"
        )
        second.kill()
    assert not second.directory.exists()
    shims = run(["ps", "-eo", "args"]).ok().text
    assert str(second.socket) not in shims
    assert not list(Path("/sys/fs/cgroup").glob(f"*{second.cgroup_parent}"))
    for left in Path("/var/lib/cni/results").glob(f"*{pod}*"):
        left.unlink()  # a killed daemon made no DEL
    run(["umount", path])
    os.unlink(path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert containerd.missing() == ""
    monkeypatch.setenv("PATH", "/nowhere")
    assert containerd.missing() == (
        "not installed: containerd, containerd-shim-runc-v2, ctr, runc (Debian: containerd runc)"
    )


def test_daemon_that_cannot_start_says_why(ledger: Ledger) -> None:
    directory = ledger.directory()
    broken = Containerd(directory / "c", bin_dir=REFERENCE, conf_dir=directory, snapshotter="overlayfs")
    (directory / "c").mkdir()
    (directory / "c/root").write_text("a file, where a directory must be")
    with pytest.raises(Unavailable, match=r"containerd ended at once: .*root"):
        broken.start()
    broken.close()
