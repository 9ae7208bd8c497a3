"""dhcp and nodeplugd together: calls through worker and shim, leases renewed by the daemon whatever becomes of it."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.ipam.dhcp.lease import BOUND, LOST, uptime
from nodeplug.core import chore
from tests.child import Finished, run, until
from tests.cni.dhcp.lan import (
    DIRECTORY,
    DISCOVER,
    RELEASE,
    REQUEST,
    SERVER,
    Faulty,
    Heard,
    Lan,
    default_routes,
    ipv4,
    leases,
    the_lease,
)
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.worker.node import LOOPBACK, Node, code
from tests.worker.test_metrics import fetch, value
from tests.worker.test_world import bare_root

pytestmark = needs("sandbox", "program:cc")
BRIDGE = "np-test0"
CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "lan",
    "type": "bridge",
    "bridge": BRIDGE,
    "ipam": {"type": "dhcp"},
}


@pytest.fixture
def node(lan: Lan, ledger: Ledger) -> Iterator[Node]:
    """A node with a worker, and a bridge that reaches the network."""
    ledger.link(BRIDGE)
    ledger.table("inet", "nodeplug")
    run(["ip", "link", "add", BRIDGE, "type", "bridge"]).ok()
    run(["ip", "link", "set", BRIDGE, "up"]).ok()
    lan.uplink(master=BRIDGE)
    found = Node(ledger)
    yield found
    if found.process is not None and found.process.running():
        found.stop()


def start(node: Node) -> None:
    node.start()
    until(lambda: chore.is_kept("dhcp"), "leases are kept")


def readiness(pages: Path) -> str:
    """The page, which comes after the sockets; "" as long as nobody serves it."""
    try:
        return fetch(pages, "/readyz")[1]
    except OSError:
        return ""


def added(node: Node, pod: Space) -> str:
    done = node.call("ADD", CONFIG, pod).ok()
    return str(done.json()["ips"][0]["address"])


def test_status_and_add_know_that_leases_are_renewed(node: Node, lan: Lan, ledger: Ledger) -> None:
    Faulty(lan, lasts=120)
    pod = ledger.netns()
    assert code(node.call("ADD", CONFIG, pod)) == 11
    assert node.call("DEL", CONFIG, pod).code == 0
    start(node)
    assert node.call("STATUS", CONFIG).code == 0
    done = node.call("ADD", CONFIG, pod).ok()
    assert b"nodeplugd" not in done.stderr
    assert node.call("CHECK", {**CONFIG, "prevResult": done.json()}, pod).code == 0
    assert node.call("DEL", CONFIG, pod).code == 0
    assert leases() == []


def test_the_chore_can_be_switched_off(node: Node, ledger: Ledger) -> None:
    node.configure("[worker.chores]\ndhcp = false")
    node.start()
    assert code(node.call("STATUS", CONFIG)) == 50
    node.stop()
    node.configure("[worker.chores]\ndchp = false")
    process = node.start(wait=False)
    assert process.wait() == 78 and "did you mean dhcp?" in process.output()


def test_leases_are_renewed_in_time_across_kill_9_and_restarts(node: Node, lan: Lan, ledger: Ledger) -> None:
    server = Faulty(lan, lasts=30, t1=1, t2=25)
    start(node)
    pod = ledger.netns()
    address = added(node, pod)
    until(lambda: server.count(REQUEST) >= 3, "it is renewed, and again", timeout=20)
    for number in (signal.SIGKILL, signal.SIGTERM):
        node.stop(number)
        assert not chore.is_kept("dhcp")
        before = the_lease().expires
        start(node)
        until(lambda before=before: the_lease().expires > before, "the next one goes on", timeout=20)  # type: ignore[misc]  # bound now
    # Made while no daemon ran, and found by the one that comes.
    node.stop(signal.SIGKILL)
    other = ledger.netns()
    server.address = "10.5.0.51"
    server.lasts = 3600
    added(node, other)
    server.answer = lambda heard: setattr(server, "address", heard.ciaddr) or server.lease(heard)  # type: ignore[func-returns-value]  # as asked
    start(node)
    until(lambda: all(lease.renew > uptime() - 1 for lease in leases()), "both are kept")
    assert ipv4(pod) == {address}
    for one in (pod, other):
        assert node.call("DEL", CONFIG, one).code == 0
    until(lambda: server.count(RELEASE) >= 2, "both are given back")
    assert leases() == []


def test_a_server_that_is_lost_takes_the_address_and_brings_it_back(node: Node, lan: Lan, ledger: Ledger) -> None:
    pages = node.directory / "health.sock"
    node.configure(f'[worker.health]\nlisten = "{pages}"')
    server = Faulty(lan, lasts=6, t1=1, t2=3)
    start(node)
    pod = ledger.netns()
    result = node.call("ADD", CONFIG, pod).ok().json()
    address = result["ips"][0]["address"]
    server.silent = True
    until(lambda: the_lease().state == LOST, "the lease has ended", timeout=30)
    assert ipv4(pod) == set() and default_routes(pod) == set()
    until(lambda: "[-]chore-dhcp" in readiness(pages), "health says so")
    assert fetch(pages, "/livez")[0] == 200
    assert value(fetch(pages, "/metrics")[1], "nodeplug_worker_chore_troubles_total", chore="dhcp") > 0
    check = {**CONFIG, "prevResult": result}
    assert code(node.call("CHECK", check, pod)) == 100
    node.kill()
    start(node)  # which does not give up what another one has lost
    server.silent = False
    server.lasts = 3600
    server.t1 = server.t2 = 0
    until(lambda: the_lease().state == BOUND, "it is granted again", timeout=30)
    assert ipv4(pod) == {address} and default_routes(pod) == {SERVER}
    assert node.call("CHECK", check, pod).code == 0
    until(lambda: "[+]chore-dhcp" in readiness(pages), "all is well")
    assert "has 10.5.0.50 again" in node.process.output()  # type: ignore[union-attr]  # it runs
    assert node.call("DEL", CONFIG, pod).code == 0


def test_who_waits_for_a_server_holds_no_turn(
    node: Node, lan: Lan, ledger: Ledger, configure: Callable[..., None]
) -> None:
    configure('wait = "3s"')
    node.configure("running = 1")
    server = Faulty(lan, silent=True)
    start(node)
    pod, other = ledger.netns(), ledger.netns()
    outcome: list[Finished] = []
    waiting = threading.Thread(target=lambda: outcome.append(node.call("ADD", CONFIG, pod)))
    waiting.start()
    until(lambda: bool(server.heard), "it asks")
    began = time.monotonic()
    node.call("ADD", LOOPBACK, other).ok()
    assert waiting.is_alive(), f"the other call took {time.monotonic() - began} s"
    waiting.join(30)
    assert code(outcome[0]) == 11
    assert node.call("DEL", CONFIG, pod).code == 0


def test_killed_while_it_asks_the_pod_is_added_once_more(node: Node, lan: Lan, ledger: Ledger) -> None:
    server = Faulty(lan)
    start(node)
    server.silent = True
    pod = ledger.netns()
    outcome: list[Finished] = []
    waiting = threading.Thread(target=lambda: outcome.append(node.call("ADD", CONFIG, pod)))
    waiting.start()
    until(lambda: bool(server.heard), "it asks")
    node.kill()
    waiting.join(30)
    assert code(outcome[0]) == 11
    assert node.call("DEL", CONFIG, pod).code == 0
    server.silent = False
    start(node)
    assert added(node, pod) == "10.5.0.50/24"
    assert node.call("DEL", CONFIG, pod).code == 0
    assert leases() == [] and pod.links() == {"lo"}


def test_in_a_container_it_renews_what_lies_on_the_host(node: Node, lan: Lan, ledger: Ledger) -> None:
    """Its files are the host's, and the pods' namespaces are found by the host's paths."""
    server = Faulty(lan)
    pod = ledger.netns()
    added(node, pod)
    _root, host = bare_root(ledger, node)
    there = Path(f"/proc/{host.pid}/root{DIRECTORY}")
    run(["nsenter", "-t", str(host.pid), "--mount", "/bin/busybox", "mkdir", "-p", str(DIRECTORY)]).ok()
    found = next(DIRECTORY.glob("np*"))
    due = the_lease().replace(next=0.0, renew=0.0)
    from nodeplug.cni.ipam.dhcp.lease import encode
    from nodeplug.core import jsontext

    (there / found.name).write_text(jsontext.dumps(encode(due)))
    server.heard.clear()
    node.configure(f'host = "/proc/{host.pid}"')
    text = (node.config / "nodeplug.toml").read_text().replace(str(node.sockets), "/run/w")
    (node.config / "nodeplug.toml").write_text(text)
    process = node.start(wait=False)
    until(lambda: server.count(REQUEST) > 0 or not process.running(), "it is renewed", timeout=30)
    assert process.running(), process.output()
    until(lambda: '"renew": 0' not in (there / found.name).read_text(), "and written down on the host")
    assert ipv4(pod) == {"10.5.0.50/24"}
    assert node.stop() == 0
    assert node.call("DEL", CONFIG, pod).code == 0


def test_the_collection_after_a_boot_knows_leases_of_pods_that_live(lan: Lan) -> None:
    """The link of such a pod may be none of ours, and its interface another than a container's first."""
    from nodeplug.worker import living
    from tests.cni.dhcp.test_dhcp import add, conf, delete

    server = Faulty(lan)
    pod, other = lan.pod("net1"), lan.pod("net1")
    add(pod, CNI_IFNAME="net1")
    server.address = "10.5.0.51"
    add(other, CNI_IFNAME="net1")
    other.remove()
    traces = living.traces("lan", [conf()], results="/nowhere")
    assert {(trace.container, trace.ifname, trace.namespace) for trace in traces} == {
        (pod.name, "net1", True),
        (other.name, "net1", False),
    }
    kept = living.valid(traces, listed=frozenset(), boot=living.boot_time())
    assert {"containerID": pod.name, "ifname": "net1"} in kept
    assert other.name not in {entry["containerID"] for entry in kept}
    assert living.traces("another", [conf()], results="/nowhere") == []
    for one in (pod, other):
        delete(one, CNI_IFNAME="net1")


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_no_lease_is_lost_while_nodeplugd_is_killed_and_servers_come_and_go(
    node: Node, lan: Lan, ledger: Ledger
) -> None:
    """Leases of twenty seconds, two minutes long: a daemon that dies each few seconds, a server silent in between."""
    server = Faulty(lan, lasts=20, t1=2, t2=12)
    start(node)
    pods = [ledger.netns() for _ in range(20)]
    given = {}
    for number, pod in enumerate(pods):
        server.address = f"10.5.0.{100 + number}"
        given[added(node, pod).partition("/")[0]] = pod

    def answer(heard: Heard) -> list[bytes]:
        server.address = heard.ciaddr
        return server.lease(heard)

    server.answer = answer
    done = threading.Event()

    def restart() -> None:
        while not done.is_set():
            node.stop(random.choice((signal.SIGKILL, signal.SIGTERM)))
            done.wait(random.uniform(0.0, 2.0))
            start(node)
            done.wait(random.uniform(1.0, 6.0))

    restarts = threading.Thread(target=restart)
    restarts.start()
    try:
        for _ in range(12):
            server.silent = True
            done.wait(random.uniform(0.5, 4.0))
            server.silent = False
            done.wait(6.0)
            for address, pod in given.items():
                assert ipv4(pod) == {f"{address}/24"}
    finally:
        done.set()
        restarts.join()
    assert {lease.state for lease in leases()} == {BOUND}
    assert not [heard for heard in server.heard[40:] if heard.type == DISCOVER]
    for pod in pods:
        assert node.call("DEL", CONFIG, pod).code == 0
    assert leases() == []
