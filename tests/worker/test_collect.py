"""The collection after a boot: leases of pods that are gone are given back, and never one of a pod that lives."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeplug.core import paths
from nodeplug.daemon.grpcserver import Limits, Server, Service
from nodeplug.daemon.listeners import Place
from nodeplug.pb.cri import v1_pb2 as pb
from nodeplug.worker import living
from nodeplug.worker.living import Trace
from tests.child import Finished, run, until
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker.node import BRIDGE, DAEMON, Node

LEASES = Path("/var/lib/cni/networks/pods")
LONG_AGO = 1_000_000_000.0

sandbox = needs("sandbox", "program:cc")


class Runtime:
    """The part of a runtime that lists its pods."""

    def __init__(self, ledger: Ledger) -> None:
        self.socket = ledger.directory() / "cri.sock"
        self.listed: list[str] = []
        self.asked = 0
        server = Server(
            Place(str(self.socket)),
            [Service("runtime.v1.RuntimeService", {"ListPodSandbox": self._list})],
            limits=Limits(),
            note=lambda _message, **_more: None,
        )
        ledger.adopt("runtime", lambda: server.close(1.0))

    def _list(self, _request: bytes, _call: object) -> bytes:
        self.asked += 1
        items = [pb.PodSandbox(id=id, state=pb.SANDBOX_NOTREADY) for id in self.listed]
        return bytes(pb.ListPodSandboxResponse(items=items).SerializeToString())


@pytest.fixture
def node(ledger: Ledger) -> Node:
    found = Node(ledger)
    ledger.link("np-test0")
    ledger.table("inet", "nodeplug")
    return found


@pytest.fixture(autouse=True)
def _as_after_a_boot() -> Iterator[None]:
    yield
    for path in (Path(paths.RUN, "collected"), Path("/var/lib/cni/results")):
        if path.is_file():
            path.unlink()
    for lease in LEASES.glob("10.*"):
        lease.unlink()


def configure(node: Node, runtime: Path, *, network: dict[str, object] | None = None) -> None:
    networks = node.directory / "net.d"
    networks.mkdir(exist_ok=True)
    plugin = {key: value for key, value in BRIDGE.items() if key not in ("cniVersion", "name")}
    conflist = {"cniVersion": "1.0.0", "name": "pods", **(network or {}), "plugins": [plugin]}
    (networks / "10-pods.conflist").write_text(json.dumps(conflist))
    text = (
        f'[worker]\ndirectory = "{node.sockets}"\n[worker.collect]\nruntime = "{runtime}"\n'
        f'networks = "{networks}"\npath = "{node.plugins}"\nresults = "{node.directory}/results"\n'
    )
    (node.config / "nodeplug.toml").write_text(text)


def lease(address: str, container: str, ifname: str = "eth0", *, made: float = LONG_AGO) -> None:
    LEASES.mkdir(parents=True, exist_ok=True)
    path = LEASES / address
    path.write_text(f"{container}\r\n{ifname}" if ifname else container)
    os.utime(path, (made, made))


def leases() -> set[str]:
    return {path.name for path in LEASES.glob("10.*")}


def collect(node: Node, **options: float) -> Finished:
    return run([sys.executable, "-I", DAEMON, "--config", node.config, "--collect"], **options)  # type: ignore[arg-type]


@sandbox
def test_what_pods_of_the_boot_before_left_is_collected_and_all_that_may_live_stays(node: Node, ledger: Ledger) -> None:
    runtime = Runtime(ledger)
    configure(node, runtime.socket)
    pod = ledger.netns()
    kept = node.call("ADD", BRIDGE, pod).ok().json()["ips"][0]["address"].partition("/")[0]
    os.utime(LEASES / kept, (LONG_AGO, LONG_AGO))  # it lives by its namespace, not by its age
    results = node.directory / "results"
    results.mkdir()
    other = ledger.netns()
    cached = {"kind": "cniCacheV1", "networkName": "pods", "containerId": "cached", "ifName": "net1"}
    (results / "pods-cached-net1").write_text(json.dumps({**cached, "netns": other.path}))
    os.utime(results / "pods-cached-net1", (LONG_AGO, LONG_AGO))
    runtime.listed = ["listed", "listed-old"]
    lease("10.9.1.1", "dead")
    lease("10.9.1.2", "listed")
    lease("10.9.1.3", "listed", "net7")
    lease("10.9.1.4", "listed-old", "")
    lease("10.9.1.5", "fresh", made=living.boot_time() + 1)
    lease("10.9.1.6", "cached", "net1")
    lease("10.9.1.7", "dead-old", "")
    done = collect(node)
    assert done.code == 0, done.stderr
    assert leases() == {kept, "10.9.1.2", "10.9.1.3", "10.9.1.4", "10.9.1.5", "10.9.1.6"}
    assert b"dead" in done.stderr
    assert node.call("CHECK", {**BRIDGE, "prevResult": {}}, pod).code in (0, 1)
    assert node.call("DEL", BRIDGE, pod).code == 0
    lease("10.9.1.1", "dead")
    assert collect(node).code == 0
    assert "10.9.1.1" in leases()  # once after a boot


@sandbox
def test_the_worker_starts_it_and_waits_for_nothing(node: Node, ledger: Ledger) -> None:
    runtime = Runtime(ledger)
    configure(node, runtime.socket)
    lease("10.9.1.1", "dead")
    node.start()
    until(lambda: not leases(), "the lease is given back", timeout=30)
    assert node.stop() == 0


@sandbox
@pytest.mark.parametrize("kind", ["no runtime", "a runtime that does not answer"])
def test_without_the_runtimes_list_nothing_is_removed(node: Node, ledger: Ledger, kind: str) -> None:
    path = node.directory / "cri.sock"
    if kind != "no runtime":
        ledger.listener(path)
    configure(node, path)
    lease("10.9.1.1", "dead")
    node.start()
    assert node.process is not None
    until(lambda: "nothing is collected" in node.process.output(), "it says so", timeout=40)  # type: ignore[union-attr]
    assert leases() == {"10.9.1.1"}
    assert node.stop() == 0
    assert not Path(paths.RUN, "collected").exists()


@sandbox
def test_networks_that_are_not_ours_or_forbid_it_are_left_alone(node: Node, ledger: Ledger) -> None:
    runtime = Runtime(ledger)
    lease("10.9.1.1", "dead")
    configure(node, runtime.socket, network={"disableGC": True})
    assert collect(node).code == 0
    assert leases() == {"10.9.1.1"}
    Path(paths.RUN, "collected").unlink()
    configure(node, runtime.socket)
    (node.plugins / "bridge").unlink()
    (node.plugins / "bridge").write_text("#!/bin/sh\n")
    assert collect(node).code == 0
    assert leases() == {"10.9.1.1"}


def test_every_trace_of_a_living_container_keeps_all_its_interfaces() -> None:
    boot = 1000.0
    traces = [
        Trace("dead", "eth0", 1.0),
        Trace("listed", "net1", 1.0),
        Trace("there", "eth0", 1.0, namespace=True),
        Trace("there", "net1", 1.0),
        Trace("fresh", "", 1000.0),
    ]
    found = living.valid(traces, listed=frozenset({"listed", "unseen"}), boot=boot)
    assert {(entry["containerID"], entry["ifname"]) for entry in found} == {
        ("listed", "net1"),
        ("listed", "eth0"),
        ("there", "eth0"),
        ("there", "net1"),
        ("fresh", "eth0"),
        ("unseen", "eth0"),
    }
