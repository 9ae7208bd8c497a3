"""A node changes from the reference plugins to nodeplug's and back, under containerd, with pods alive meanwhile.

By bytes exchanged: host ports and masquerading of the pods of before go on working, new pods are ours, and nothing is
left of either kind once its pods are gone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from nodeplug.ops.demo.who import Who
from tests.child import Finished, run
from tests.ledger import Ledger
from tests.needs import needs
from tests.real.node import GATEWAY, PORTMAP, REFERENCE, Node, bridge, conflist, elements, silent, start_worker
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space
from tests.traffic import Echo, exchange, reaches

pytestmark = needs(
    "sandbox",
    "program:containerd",
    "program:runc",
    "program:nft",
    "program:iptables-legacy",
    f"file:{REFERENCE}/bridge",
)
UPLINK, OUTSIDE = "192.0.2.1", "192.0.2.2"
LIMITS = {"ingressRate": 10**9, "ingressBurst": 10**7, "egressRate": 10**9, "egressBurst": 10**7}
CHAINED: list[dict[str, Any]] = [
    PORTMAP,
    {"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"},
    {"type": "bandwidth", **LIMITS},
    {"type": "tuning", "mtu": 1400},
]
WEB = (Port(8080, 80), Port(5353, 53, "udp"))


@pytest.fixture(params=["nft", "legacy"])
def kind(request: pytest.FixtureRequest, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which iptables the reference plugins find, whose runtime hands its PATH on to them."""
    programs = ledger.directory()
    for program in ("iptables", "ip6tables"):
        (programs / program).symlink_to(f"/usr/sbin/{program}-{request.param}")
        for table in ("nat", "filter"):
            legacy = f"{program}-legacy"
            ledger.adopt(f"{legacy} {table}", lambda p=legacy, t=table: _clear(p, t))  # type: ignore[misc]  # bound now
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return str(request.param)


@pytest.fixture
def node(kind: str, ledger: Ledger) -> Iterator[Node]:
    """A node with the reference plugins."""
    directory = ledger.directory()
    shutil.copytree(REFERENCE, directory / "bin")
    for table in ("ip6 cni_hostport", "ip cni_hostport", "bridge nat"):
        ledger.table(*table.split())
    ledger.adopt(
        "state", lambda: [shutil.rmtree(path, ignore_errors=True) for path in ("/run/cni", "/run/nodeplug/cni")]
    )
    ledger.adopt("leaving", lambda: Path(paths.LEAVING).unlink(missing_ok=True))
    network = conflist(bridge(directory / "leases"), *CHAINED, newest="1.1.0")
    found = Node(ledger, directory / "bin", network, directory)
    yield found
    assert found.runtime.remove_pods() == []
    left = found.left()
    left.pop("netns", None)  # the machine outside
    assert left.pop("links", set()) <= {"uplink"}
    assert not left
    assert of_pods() == []


@pytest.fixture
def outside(node: Node, ledger: Ledger) -> Space:
    """A machine on the node's uplink, which has no route to the pods, with a server of its own."""
    space = ledger.netns()
    ledger.link("uplink")
    HERE.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", space.name).ok()
    for where, link, address in ((HERE, "uplink", UPLINK), (space, "eth0", OUTSIDE)):
        where.run("ip", "address", "add", f"{address}/30", "dev", link).ok()
        where.run("ip", "link", "set", link, "up").ok()
    server = Who("far", 8000, space.path)
    ledger.adopt("far server", server.close)
    ledger.adopt("uplink", lambda: run(["ip", "link", "delete", "uplink"]))
    return space


def nodeplug(*arguments: str | os.PathLike[str]) -> Finished:
    return run([CHECKOUT / "bin" / "nodeplug", *arguments], timeout=120)


def of_pods() -> list[str]:
    """What there is of any pod of either kind, beside what `Node.left` knows."""
    found = [line for line in elements() if "10.88.0." in line]
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        found += [line for line in run([program]).ok().text.splitlines() if "10.88.0." in line or "CNI-DN-" in line]
    found += [link for link in HERE.links() if link.startswith(("bwp", "np"))]
    return found + [str(path) for path in Path("/run/cni/tuning").glob("*")]


def is_theirs(node: Node, name: str) -> bool:
    return (node.plugins / name).read_bytes() == (REFERENCE / name).read_bytes()


def assert_serving(node: Node, outside: Space, web: str, job: str) -> None:
    """The host ports of `web` from outside and from the node, and what `job` sends away."""
    assert who.fetch(UPLINK, 8080, outside.path) == f"web answers {OUTSIDE}"
    assert who.fetch("127.0.0.1", 8080).startswith("web answers")
    assert exchange(UPLINK, 5353, proto="udp", space=outside) == OUTSIDE
    assert node.ask(job, OUTSIDE, 8000) == f"far answers {UPLINK}"
    assert node.ask(job, node.address(web), 80) == f"web answers {node.address(job)}"


def give_again(node: Node) -> None:
    for path in node.leases_directory.glob("*/last_reserved_ip.*"):
        path.unlink()


def test_pods_of_the_reference_plugins_live_through_the_switch_and_go_without_a_trace(
    node: Node, outside: Space, ledger: Ledger
) -> None:
    pods = node.run_all({"web": WEB, "job": (), "lost": (Port(8090, 80),)})
    echo = Echo(node.space(pods["web"]), proto="udp", port=53)
    assert_serving(node, outside, pods["web"], pods["job"])

    assert "bridge" in nodeplug("install", "cni", "--dest", node.plugins, "--replace").ok().text
    assert_serving(node, outside, pods["web"], pods["job"])
    new = node.run("new", Port(8081, 80))
    assert who.fetch(UPLINK, 8081, outside.path) == f"new answers {OUTSIDE}"
    assert node.ask(new, OUTSIDE, 8000) == f"far answers {UPLINK}"
    assert node.ask(new, node.address(pods["web"]), 80) == f"web answers {node.address(new)}"
    assert node.ask(pods["job"], node.address(new), 80) == f"new answers {node.address(pods['job'])}"
    with pytest.raises(Exception, match="hostPort 8080/tcp is taken by container"):
        node.run("rival", Port(8080, 80))
    assert_serving(node, outside, pods["web"], pods["job"])

    before = node.address(pods["web"])
    assert reaches(UPLINK, 5353, proto="udp", space=outside)
    echo.close()
    node.delete(pods["web"])
    assert silent(UPLINK, 8080) and silent("127.0.0.1", 8080)
    assert not [line for line in of_pods() if f"{before}/" in line or f'"{before}"' in line]
    give_again(node)
    again = node.run("again")
    assert node.address(again) == before
    ledger.echo(node.space(again), proto="udp", port=53)
    assert who.fetch(before, 80) == f"again answers {GATEWAY}"
    assert silent(UPLINK, 8080) and silent("127.0.0.1", 8080)
    assert not reaches(UPLINK, 5353, proto="udp", space=outside, timeout=0.5)

    address = node.address(pods["lost"])
    node.runtime.lose_pod(pods["lost"])
    gc = ("cni", "gc", "--path", node.plugins, "--grace", "0", "--conf", node.runtime.directory.parent / "net.d")
    nodeplug(*gc, "--cri", node.runtime.socket).ok()
    assert address not in node.leases()
    assert silent(UPLINK, 8090)
    assert not [line for line in of_pods() if f"{address}/" in line or f'"{address}"' in line]
    assert node.ask(pods["job"], OUTSIDE, 8000) == f"far answers {UPLINK}"


def test_an_old_host_port_whose_pod_was_never_deleted_does_not_reach_the_next_with_its_address(
    node: Node, outside: Space
) -> None:
    """The runtime forgot the pod without a DEL, and its lease was given back by hand."""
    old = node.run("old", Port(8080, 80))
    address = node.address(old)
    node.runtime.lose_pod(old)
    for path in (*Path("/var/lib/cni/results").glob(f"*{old}*"), *node.leases_directory.glob("*/*")):
        path.unlink()
    nodeplug("install", "cni", "--dest", node.plugins, "--replace").ok()
    new = node.run("new")
    assert node.address(new) == address
    assert who.fetch(address, 80) == f"new answers {GATEWAY}"
    assert silent(UPLINK, 8080)
    node.delete(new)
    conf = node.runtime.directory.parent / "net.d"
    nodeplug("cni", "gc", "--path", node.plugins, "--conf", conf, "--none-valid").ok()


def test_a_node_goes_back_to_the_reference_plugins_pod_by_pod(
    node: Node, outside: Space, ledger: Ledger, kind: str
) -> None:
    nodeplug("install", "cni", "--dest", node.plugins, "--replace").ok()
    if kind == "nft":  # with the worker, and else without
        start_worker(ledger)
    pods = node.run_all({"web": WEB, "job": ()})
    ledger.echo(node.space(pods["web"]), proto="udp", port=53)
    assert_serving(node, outside, pods["web"], pods["job"])

    refused = nodeplug("uninstall", "cni", "--dest", node.plugins)
    assert refused.code == 1
    for name, pod in pods.items():
        assert f"pod default/{name}, pods/{pod}/eth0 (b" in refused.stderr.decode()
    assert is_theirs(node, "host-local") and not is_theirs(node, "bridge")
    nodeplug("uninstall", "cni", "--dest", node.plugins, "--drain").ok()
    assert_serving(node, outside, pods["web"], pods["job"])

    new = node.run("new", Port(8082, 80))
    assert [entry for entry in of_pods() if node.address(new) in entry]
    assert who.fetch(UPLINK, 8082, outside.path) == f"new answers {OUTSIDE}"
    assert node.ask(new, node.address(pods["web"]), 80) == f"web answers {node.address(new)}"
    node.delete(new)
    assert silent(UPLINK, 8082)
    assert_serving(node, outside, pods["web"], pods["job"])

    node.delete(pods["web"])
    assert silent(UPLINK, 8080)
    assert not is_theirs(node, "bridge")
    node.delete(pods["job"])
    for name in ("bridge", "portmap", "firewall", "bandwidth", "tuning"):
        assert is_theirs(node, name), name
    nodeplug("uninstall", "cni", "--dest", node.plugins).ok()
    assert {path.name for path in node.plugins.iterdir()} == {path.name for path in REFERENCE.iterdir()}

    last = node.run("last", Port(8080, 80))
    assert who.fetch(UPLINK, 8080, outside.path) == f"last answers {OUTSIDE}"
    node.delete(last)


def _clear(program: str, table: str) -> None:
    names = f"/proc/net/{'ip6' if program.startswith('ip6') else 'ip'}_tables_names"
    if Path(names).exists() and table in Path(names).read_text().split():
        run([program, "-t", table, "-F"]).ok()
        run([program, "-t", table, "-X"]).ok()
