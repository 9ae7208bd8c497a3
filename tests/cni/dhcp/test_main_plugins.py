"""dhcp as address manager of main plugins: of ours in their process, of the reference's as an executable."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.child import Finished, Process, run, until
from tests.cni.dhcp.lan import RELEASE, SERVER, Dnsmasq, Faulty, Lan, default_routes, ipv4, leases
from tests.cni.dhcp.test_dhcp import call, conf
from tests.cni.pods import REFERENCE, Network
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space

pytestmark = needs("sandbox", "program:dnsmasq")
BRIDGE = "np-test0"


@pytest.fixture
def bridged(lan: Lan) -> Lan:
    """The network reaches a bridge of the host."""
    lan.ledger.link(BRIDGE)
    run(["ip", "link", "add", BRIDGE, "type", "bridge"]).ok()
    run(["ip", "link", "set", BRIDGE, "up"]).ok()
    lan.uplink(master=BRIDGE)
    return lan


def network(ledger: Ledger, **more: Any) -> Network:
    return Network(ledger, type="bridge", name="lan", bridge=BRIDGE, ipam={"type": "dhcp"}, **more)


def test_bridge_with_dhcp_add_check_delete(bridged: Lan, ledger: Ledger) -> None:
    server = Dnsmasq(bridged)
    pod = ledger.netns()
    net = network(ledger)
    result = net.add(pod)
    (ip,) = result["ips"]
    assert ip["gateway"] == SERVER and result["interfaces"][ip["interface"]]["sandbox"] == pod.path
    assert ipv4(pod) == {ip["address"]} and default_routes(pod) == {SERVER}
    net.check(pod, result)
    assert len(server.leases()) == 1
    net.delete(pod)
    until(lambda: not server.leases(), "the server has it back")
    assert leases() == [] and pod.links() == {"lo"}
    net.delete(pod)


def test_bridge_that_fails_after_dhcp_gives_the_lease_back(bridged: Lan, ledger: Ledger) -> None:
    server = Faulty(bridged)
    server.options[121] = bytes((0,)) + socket.inet_aton("172.31.0.1")  # which no route leads to
    pod = ledger.netns()
    net = network(ledger)
    assert "unreachable" in net.refused("ADD", pod)["msg"]
    until(lambda: server.count(RELEASE) > 0, "the lease is given back")
    assert leases() == [] and pod.links() == {"lo"}
    net.delete(pod)


def test_bridge_gc_gives_leases_back(bridged: Lan, ledger: Ledger) -> None:
    server = Dnsmasq(bridged)
    pods = [ledger.netns() for _ in range(2)]
    net = network(ledger)
    for pod in pods:
        net.add(pod)
    kept = [{"containerID": pods[0].name, "ifname": "eth0"}]
    assert net.ask("GC", None, {"cni.dev/valid-attachments": kept}) == (0, None)
    assert [lease.container for lease in leases()] == [pods[0].name]
    assert net.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert leases() == []
    until(lambda: not server.leases(), "the server has both back")


def test_macvlan_with_dhcp_add_check_delete(lan: Lan, ledger: Ledger) -> None:
    server = Dnsmasq(lan)
    pod = ledger.netns()
    net = Network(ledger, type="macvlan", name="lan", master=lan.uplink(), ipam={"type": "dhcp"})
    result = net.add(pod)
    assert ipv4(pod) == {result["ips"][0]["address"]} and default_routes(pod) == {SERVER}
    net.check(pod, result)
    assert len(server.leases()) == 1
    net.delete(pod)
    until(lambda: not server.leases(), "the server has it back")
    assert leases() == [] and pod.links() == {"lo"}


def test_macvlan_that_fails_after_dhcp_gives_the_lease_back(lan: Lan, ledger: Ledger) -> None:
    server = Faulty(lan)
    server.options[121] = bytes((0,)) + socket.inet_aton("172.31.0.1")  # which no route leads to
    pod = ledger.netns()
    net = Network(ledger, type="macvlan", name="lan", master=lan.uplink(), ipam={"type": "dhcp"})
    assert "unreachable" in net.refused("ADD", pod)["msg"]
    until(lambda: server.count(RELEASE) > 0, "the lease is given back")
    assert leases() == [] and pod.links() == {"lo"}


@needs("link:ipvlan")
def test_ipvlan_with_dhcp_has_answers_sent_to_everybody(lan: Lan, ledger: Ledger) -> None:
    """Two pods share one hardware address: what is sent to an IP address that neither has yet reaches none of them."""
    server = Faulty(lan)
    net = Network(ledger, type="ipvlan", name="lan", master=lan.uplink(), mode="l2", ipam={"type": "dhcp"})
    given = []
    for number in range(2):
        server.address = f"10.5.0.{50 + number}"
        pod = ledger.netns()
        given.append((pod, net.add(pod)["ips"][0]["address"]))
    assert all(heard.broadcast for heard in server.heard)
    assert len({heard.chaddr for heard in server.heard}) == 1
    assert len({heard.options[61] for heard in server.heard}) == 2
    for pod, address in given:
        assert ipv4(pod) == {address}
        net.delete(pod)
    until(lambda: server.count(RELEASE) >= 2, "both are given back")


class Foreign:
    """A main plugin of the reference's, with our dhcp beside it in CNI_PATH."""

    def __init__(self, ledger: Ledger, **config: Any) -> None:
        self.config = {"cniVersion": "1.0.0", "name": "lan", "ipam": {"type": "dhcp"}, **config}
        self.plugins = ledger.directory()
        (self.plugins / "dhcp").symlink_to(CHECKOUT / "bin" / "nodeplug-cni")

    def call(self, command: str, pod: Space, **extra: Any) -> Finished:
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.plugins}:{REFERENCE}",
        }
        stdin = json.dumps({**self.config, **extra}).encode()
        return run([f"{REFERENCE}/{self.config['type']}"], env=env, stdin=stdin, timeout=60)


FOREIGN: dict[str, dict[str, Any]] = {
    "macvlan": {"type": "macvlan", "master": "np-up0", "mode": "bridge"},
    "bridge": {"type": "bridge", "bridge": BRIDGE},
}


@pytest.mark.parametrize("plugin", FOREIGN)
@needs("file:/usr/lib/cni/macvlan")
def test_reference_main_plugins_with_our_dhcp(lan: Lan, ledger: Ledger, plugin: str) -> None:
    if plugin == "bridge":
        ledger.link(BRIDGE)
        run(["ip", "link", "add", BRIDGE, "type", "bridge"]).ok()
        run(["ip", "link", "set", BRIDGE, "up"]).ok()
    lan.uplink(master=BRIDGE if plugin == "bridge" else "")
    server = Dnsmasq(lan)
    pod = ledger.netns()
    foreign = Foreign(ledger, **FOREIGN[plugin])
    result = foreign.call("ADD", pod).ok().json()
    assert result["ips"][0]["address"] in ipv4(pod) and default_routes(pod) == {SERVER}
    foreign.call("CHECK", pod, prevResult=result).ok()
    assert len(server.leases()) == 1 and len(leases()) == 1
    foreign.call("DEL", pod, prevResult=result).ok()
    assert leases() == []
    if plugin == "macvlan":  # asks before it takes the link away; bridge after, when nobody can be told
        until(lambda: not server.leases(), "the server has it back")
    foreign.call("DEL", pod).ok()


@pytest.fixture
def reference(lan: Lan, ledger: Ledger) -> Iterator[Path]:
    """The reference's daemon; its socket."""
    path = ledger.directory() / "dhcp.sock"
    daemon: Process = ledger.start([f"{REFERENCE}/dhcp", "daemon", "-socketpath", str(path)])
    until(path.exists, "the daemon listens")
    yield path
    daemon.end()


@needs("file:/usr/lib/cni/dhcp")
@pytest.mark.parametrize("kind", ["static routes", "classless routes"])
def test_dhcp_the_reference_says_and_makes_the_same(lan: Lan, reference: Path, kind: str) -> None:
    server = Faulty(lan)
    server.options[33] = socket.inet_aton("10.0.0.0") + socket.inet_aton("10.5.0.2")
    if kind == "classless routes":
        server.options[121] = b"\x10\x0a\x09" + socket.inet_aton("10.5.0.2") + b"\0" + socket.inet_aton(SERVER)
    pod = lan.pod()
    config = conf("1.0.0", daemonSocketPath=str(reference), provide=[{"option": "host-name", "value": "web"}])
    env = {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "CNI_PATH": REFERENCE}

    def go(command: str) -> Finished:
        stdin = json.dumps(config).encode()
        return run([f"{REFERENCE}/dhcp"], env={**env, "CNI_COMMAND": command}, stdin=stdin, timeout=60).ok()

    theirs = go("ADD").json()
    go("DEL")
    until(lambda: server.count(RELEASE) > 0, "theirs is given back")
    said = {heard.type: heard for heard in server.heard}
    server.heard.clear()
    code, ours, _ = call("ADD", pod, config)
    assert code == 0
    call("DEL", pod, config)
    until(lambda: server.count(RELEASE) > 0, "ours is given back")
    assert ours == {key: value for key, value in theirs.items() if key != "dns" or value}
    for heard in server.heard:
        before = said[heard.type]
        for option in (61, 12, 50, 54):
            assert heard.options.get(option) == before.options.get(option), (heard, option)
        assert heard.chaddr == before.chaddr and heard.ciaddr == before.ciaddr
