"""The private containerd against the reference plugins: pods live, are lost and go, and nothing of it stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core.errors import Error, NotFound, Unavailable
from nodeplug.harness.runtime import config, containerd
from nodeplug.harness.runtime.cache import Cache
from nodeplug.harness.runtime.containerd import IMAGE, Containerd
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from tests.child import run
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import GATEWAY, PORTMAP, REFERENCE, Node, answer, bridge, conflist

pytestmark = needs("sandbox", "program:containerd", "program:runc", f"file:{REFERENCE}/bridge", "program:nft")
WEB = Port(8080, 80)


@pytest.fixture(scope="module")
def node(module_ledger: Ledger) -> Node:
    directory = module_ledger.directory()
    return Node(module_ledger, REFERENCE, conflist(bridge(directory / "leases"), PORTMAP), directory)


@pytest.fixture(autouse=True)
def _no_pods_stay(node: Node) -> Iterator[None]:
    yield
    assert node.runtime.remove_pods() == []


def test_pod_has_a_network_and_its_container_answer(node: Node) -> None:
    pod = node.run("web", WEB)
    assert node.runtime.cri.version()[0] == "containerd"
    assert node.runtime.cri.conditions()["NetworkReady"][0]
    assert IMAGE in node.runtime.cri.images()
    assert answer(node.address(pod), 80) == f"web answers {GATEWAY}"
    assert answer(GATEWAY, 8080).startswith("web answers")
    found = node.runtime.cri.pod(pod)
    assert (found.name, found.namespace, found.ready) == ("web", "default", True)
    node.runtime.cri.stop_pod(pod)
    node.runtime.cri.stop_pod(pod)
    assert not node.runtime.cri.pod(pod).ready
    assert node.leases() == set()
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
    node.runtime.kill()
    assert who.fetch(address, 80) == f"web answers {GATEWAY}"
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
    assert len(node.leases()) == 2
    removed = node.ours.gc(node.network, [(kept, "eth0")])
    assert [entry.attachment.container_id for entry in removed] == [lost]
    assert {entry.network for entry in node.ours.forget([lost])} == {"cni-loopback"}
    assert node.leases() == {node.address(kept)}
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
    assert node.leases() == set()
    with pytest.raises(Error):
        who.fetch(GATEWAY, 8080)


def test_containerd_takes_over_what_our_runtime_cached(node: Node) -> None:
    pod = node.run("web", WEB)
    cache = Cache()
    entry = next(entry for entry in node.results(pod) if entry.network == "pods")
    theirs = json.loads(cache.path("pods", entry.attachment).read_text())
    cache.remove("pods", entry.attachment)
    cache.write(entry)
    ours = json.loads(cache.path("pods", entry.attachment).read_text())
    assert {key: ours[key] for key in theirs} == theirs
    node.runtime.cri.stop_pod(pod)
    assert node.leases() == set()
    assert node.results(pod) == []


def test_everything_ends_with_close_even_after_a_kill(ledger: Ledger) -> None:
    conf_dir = ledger.directory()
    second = Containerd(ledger.directory() / "c", bin_dir=REFERENCE, conf_dir=conf_dir)
    (conf_dir / "10.conflist").write_bytes(conflist(bridge(conf_dir / "leases")).raw)
    with second:
        pod = second.cri.run_pod(second.spec("web"))
        namespaces = json.loads(second.cri.pod_info(pod))["runtimeSpec"]["linux"]["namespaces"]
        path = next(entry["path"] for entry in namespaces if entry["type"] == "network")
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
