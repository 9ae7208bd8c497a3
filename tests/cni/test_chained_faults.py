"""The chained plugins met by faults: killed or failed at each step, the next call takes back what remains."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni import faults
from tests.cni.chains import result, wire
from tests.cni.pods import Network, host_links
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = [needs("sandbox", "program:nft", "program:iptables-nft", "link:ifb"), pytest.mark.timeout(300)]

KILLED = -9
CONFIGS: dict[str, dict[str, Any]] = {
    "tuning": {"mtu": 1400, "mac": "02:00:00:00:00:99", "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}},
    "bandwidth": {
        f"{way}{what}": value
        for way in ("ingress", "egress")
        for what, value in (("Rate", 8_000_000), ("Burst", 800_000))
    },
    "sbr": {},
    "firewall": {"ingressPolicy": "same-bridge"},
}


class Node:
    """A pod on a veth, and one plugin."""

    def __init__(self, ledger: Ledger, plugin: str) -> None:
        ledger.table("inet", "nodeplug")
        ledger.table("ip", "filter")
        ledger.adopt("kept", lambda: run(["rm", "-rf", "/run/cni", f"{paths.RUN}/cni"]))
        run(["iptables-nft", "-P", "FORWARD", "DROP"]).ok()
        self.plugin = plugin
        self.pod = ledger.netns()
        self.ledger = ledger
        self.connect()
        self.network = Network(ledger, type=plugin, **CONFIGS[plugin])
        self.given = {"prevResult": result(self.pod, "10.1.0.2/24,10.1.0.1", host=(self.end,))}

    def connect(self) -> None:
        """Give the pod its interface."""
        self.end = wire(self.ledger, self.pod, "eth0", "10.1.0.2/24")

    def faulty(self, command: str, step: int, fault: str | int) -> Finished:
        config = {**self.network.config, **(self.given if command == "ADD" else {})}
        program = faults.program(step, fault, self.plugin)
        return run(program, env=self.network.env(command, self.pod), stdin=json.dumps(config).encode())

    def kept(self) -> dict[str, Any]:
        """What an attachment leaves that outlives its interface."""
        return {
            "links": host_links(),
            "files": {
                str(path)
                for top in ("/run/cni", f"{paths.RUN}/cni")
                for path in Path(top).rglob("*")
                if path.is_file() and path.suffix != ".lock" and not path.name.startswith((".", "reference."))
            },
            "elements": elements(),
            "rules": [rule["src"] for rule in self.pod.ip("rule", "show")],
        }

    def everything(self) -> dict[str, Any]:
        """That, and what is of the interface itself."""
        (link,) = self.pod.ip("link", "show", "dev", "eth0")
        tables = self.pod.run("ip", "-j", "-4", "route", "show", "table", "all").json()
        return {
            **self.kept(),
            "link": (link["address"], link["mtu"]),
            "routes": sorted(json.dumps(route, sort_keys=True) for route in tables),
            "shaping": run(["tc", "qdisc", "show", "dev", self.end]).ok().text,
            "setting": self.pod.call(lambda: Path("/proc/sys/net/ipv4/conf/eth0/arp_ignore").read_text()),
        }


def elements() -> set[str]:
    found: set[str] = set()
    for entry in json.loads(run(["nft", "-j", "list", "ruleset"]).ok().stdout)["nftables"]:
        if "set" in entry:
            found |= {f"{entry['set']['name']} {json.dumps(element)}" for element in entry["set"].get("elem", [])}
    return found


@pytest.mark.parametrize("plugin", CONFIGS)
def test_an_add_that_is_killed_at_any_step_is_taken_back_by_delete(ledger: Ledger, plugin: str) -> None:
    node = Node(ledger, plugin)
    before = node.kept()
    step = 0
    while (done := node.faulty("ADD", step, "kill")).code == KILLED:
        node.network.delete(node.pod)
        assert node.kept() == before, f"killed at step {step}"
        step += 1
    assert (done.code, step > 2) == (0, True)
    node.network.delete(node.pod)
    assert node.kept() == before


@pytest.mark.parametrize("plugin", CONFIGS)
def test_an_add_that_is_killed_at_any_step_can_be_made_again(ledger: Ledger, plugin: str) -> None:
    node = Node(ledger, plugin)
    before = node.kept()
    for step in range(0, 100, 2):
        killed = node.faulty("ADD", step, "kill").code == KILLED
        answer = node.network.add(node.pod, node.given)
        node.network.check(node.pod, answer)
        node.network.delete(node.pod)
        assert node.kept() == before, f"killed at step {step}"
        if not killed:
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("plugin", CONFIGS)
def test_an_add_that_fails_at_any_step_undoes_what_it_did(ledger: Ledger, plugin: str) -> None:
    node = Node(ledger, plugin)
    if plugin == "firewall":  # the table and iptables' chains are the node's, and stay
        node.network.add(node.pod, node.given)
        node.network.delete(node.pod)
    failed = 0
    steps = node.faulty("ADD", 0, "count").stderr.count(b"step ")
    node.network.delete(node.pod)
    node.pod.run("ip", "link", "delete", "eth0").ok()
    node.connect()
    before = node.everything()
    for step in range(steps):
        done = node.faulty("ADD", step, errno.EIO)
        if done.code == 0:  # the step was one that can be done without
            node.network.delete(node.pod)
            node.pod.run("ip", "link", "delete", "eth0").ok()
            node.connect()
            before = node.everything()
        else:
            failed += 1
            assert "Input/output error" in done.text, done.text
            assert node.everything() == before, f"failed at step {step}: {done.text}"
    assert failed > steps // 2


@pytest.mark.parametrize("plugin", CONFIGS)
def test_a_delete_that_is_killed_at_any_step_is_finished_by_the_next(ledger: Ledger, plugin: str) -> None:
    node = Node(ledger, plugin)
    before = node.kept()
    for step in range(100):
        node.network.add(node.pod, node.given)
        killed = node.faulty("DEL", step, "kill").code == KILLED
        node.network.delete(node.pod)
        assert node.kept() == before, f"killed at step {step}"
        if not killed:
            return
    pytest.fail("it never came to its end")


def test_pods_that_come_at_once_open_iptables_once(ledger: Ledger) -> None:
    nodes = [Node(ledger, "firewall") for _ in range(6)]
    with ThreadPoolExecutor(len(nodes)) as pool:
        codes = list(pool.map(lambda node: node.faulty("ADD", 1000, "kill").code, nodes))
    assert codes == [0] * len(nodes)
    listed = run(["iptables-nft", "-S"]).ok().text.splitlines()
    assert [line for line in listed if line.startswith("-A FORWARD")] == [
        '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD'
    ]
    assert sum(line.startswith("-A CNI-FORWARD") for line in listed) == 2
    for node in nodes:
        node.network.delete(node.pod)
    assert elements() == set()
