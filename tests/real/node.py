"""A node for tests: a private containerd, a network, plugins installed as on a node, and looks at what pods leave."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nodeplug.core import paths
from nodeplug.core.errors import Error
from nodeplug.harness.runtime import config, image
from nodeplug.harness.runtime.cache import Cache, Cached
from nodeplug.harness.runtime.containerd import IMAGE, Containerd
from nodeplug.harness.runtime.cri import Port
from nodeplug.harness.runtime.runtime import Runtime
from nodeplug.ops.cli import door
from nodeplug.ops.demo import who
from nodeplug.ops.install import Directory
from tests.child import Process, until
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space

REFERENCE = Path("/usr/lib/cni")
GATEWAY = "10.88.0.1"
BRIDGE = "cni0"
PORTMAP: dict[str, Any] = {"type": "portmap", "capabilities": {"portMappings": True}}

# What iptables makes for the reference plugins and keeps, and the one table of ours: they belong to networks.
_TABLES = ("ip nat", "ip6 nat", "ip filter", "ip6 filter", "ip raw", "inet nodeplug")


def bridge(leases: Path, **more: Any) -> dict[str, Any]:
    """A bridge with addresses from 10.88.0.0/16 whose leases are in `leases`."""
    ipam = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": "10.88.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "ipam": ipam} | more


def conflist(*plugins: Mapping[str, Any], newest: str = "1.0.0") -> config.Network:
    """A network called "pods": in version 1.0.0 for containerd 1.6, up to `newest` for our runtime."""
    document = {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", newest], "name": "pods", "plugins": plugins}
    return config.parse_network(json.dumps(document).encode())


WAYS = ("launcher", "worker")
"""How calls of ours are answered: each in a process of its own, or by the shim and nodeplugd."""


def install(directory: Path, *, theirs: Iterable[str] = (), way: str = "launcher") -> Path:
    """A plugin directory with all of nodeplug's, but the reference's for the names in `theirs`."""
    Directory(directory).install(door("cni"), kind="python" if way == "launcher" else "c")
    for name in theirs:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(REFERENCE / name)
    return directory


def start_worker(ledger: Ledger) -> Process:
    """nodeplugd where the plugins of `install` look for it; it is stopped at the end, and started again by `until`."""
    settings = ledger.directory()
    (settings / "nodeplug.toml").write_text("[worker.collect]\nenabled = false\n")
    socket = Path(paths.RUN, "worker", "cni.sock")
    socket.unlink(missing_ok=True)
    ledger.adopt("sockets of a worker that was killed", lambda: shutil.rmtree(socket.parent, ignore_errors=True))
    worker = ledger.start([sys.executable, "-I", CHECKOUT / "bin" / "nodeplugd", "--config", settings])
    ledger.adopt("worker", lambda: (worker.signal(signal.SIGTERM), worker.wait()) if worker.running() else None)
    until(lambda: socket.exists() or not worker.running(), "the worker listens", timeout=30)
    assert worker.running(), worker.output()
    return worker


def leases(directory: Path) -> set[str]:
    """The addresses that are given out by the files of an address manager."""
    found = {path.name for path in directory.glob("*/*") if path.is_file()}
    return {name for name in found if name[0].isdigit() or ":" in name}


class Node:
    """A running containerd whose pods are in `network`. `directory` has its files, `leases` among them."""

    def __init__(self, ledger: Ledger, plugins: Path, network: config.Network, directory: Path) -> None:
        self.network = network
        self.plugins = plugins
        self.leases_directory = directory / "leases"
        conf_dir = directory / "net.d"
        conf_dir.mkdir()
        (conf_dir / "10.conflist").write_bytes(network.raw)
        ledger.link(BRIDGE)
        for path in _TABLES:
            ledger.table(*path.split())
        ledger.adopt("what the shims made", lambda: shutil.rmtree("/run/containerd", ignore_errors=True))
        self.runtime = Containerd(directory / "c", bin_dir=plugins, conf_dir=conf_dir)
        ledger.adopt("containerd", self.runtime.close)
        self.ours = Runtime([plugins])
        self.runtime.start()
        self._containers: dict[str, str] = {}

    def run(self, name: str, *ports: Port) -> str:
        """A pod that serves `who.PATH` on port 80; returns its id when it answers."""
        spec = self.runtime.spec(name, ports=ports)
        pod = self.runtime.cri.run_pod(spec)
        container = self.runtime.cri.run_container(pod, spec, image=IMAGE, name="server", command=image.SERVER)
        self._containers[pod] = container
        answer(self.address(pod), 80)
        return pod

    def run_all(self, wanted: Mapping[str, tuple[Port, ...]]) -> dict[str, str]:
        """Pods at once; name -> id."""
        with ThreadPoolExecutor(len(wanted)) as pool:
            pods = pool.map(lambda item: self.run(item[0], *item[1]), wanted.items())
            return dict(zip(wanted, pods, strict=True))

    def delete(self, pod: str) -> None:
        self.runtime.cri.stop_pod(pod)
        self.runtime.cri.remove_pod(pod)

    def delete_all(self, pods: Iterable[str]) -> None:
        """Delete them at once."""
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(self.delete, pods))

    def address(self, pod: str) -> str:
        return self.runtime.cri.pod(pod).addresses[0]

    def space(self, pod: str) -> Space:
        """The pod's network namespace."""
        namespaces = json.loads(self.runtime.cri.pod_info(pod))["runtimeSpec"]["linux"]["namespaces"]
        return Space(pod, next(entry["path"] for entry in namespaces if entry["type"] == "network"))

    def ask(self, pod: str, address: str, port: int) -> str:
        """What comes back when a container of the pod asks."""
        command = ("/bin/wget", "-q", "-O", "-", f"http://{address}:{port}{who.PATH}")
        done = self.runtime.cri.execute(self._containers[pod], *command, timeout=5)
        assert done.status == 0, f"{address}:{port}: {done.stderr!r}"
        return done.stdout.decode().strip()

    def leases(self) -> set[str]:
        return leases(self.leases_directory)

    def results(self, pod: str) -> list[Cached]:
        return [entry for entry in Cache().entries() if entry.attachment.container_id == pod]

    def left(self) -> dict[str, set[str]]:
        """What is there of any pod, by kind; the kinds of which there is nothing are left out."""
        found = {
            "links": HERE.links() - {"lo", BRIDGE},
            "netns": {path.name for path in Path("/run/netns").iterdir()},
            "leases": self.leases(),
            "results": {path.name for path in Path("/var/lib/cni/results").glob("*")},
            "elements": set(elements()),
        }
        return {kind: names for kind, names in found.items() if names}


def elements() -> list[str]:
    """The elements of all nft sets and maps, and the rules of the reference's that name a pod."""
    shown = HERE.run("nft", "-j", "list", "ruleset").json()["nftables"]
    found = [what for entry in shown for kind, what in entry.items() if kind in ("set", "map")]
    listed = [f"{what['name']} {json.dumps(element)}" for what in found for element in what.get("elem", ())]
    rules = [what for entry in shown for kind, what in entry.items() if kind == "rule"]
    theirs = [json.dumps(rule["expr"]) for rule in rules if rule["table"] != "nodeplug"]
    return listed + [rule for rule in theirs if "10.88.0." in rule]


def answer(address: str, port: int) -> str:
    """What comes back, once its server is up."""

    def ask() -> str:
        try:
            return who.fetch(address, port)
        except Error:
            return ""

    return str(until(ask, f"{address}:{port} answers"))


def silent(address: str, port: int) -> bool:
    """Whether nothing answers there."""
    try:
        who.fetch(address, port)
    except Error:
        return True
    return False
