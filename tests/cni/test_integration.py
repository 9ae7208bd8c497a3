"""Networks as an operator has them, by the command line and by a runtime, seen from their pods."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.chains import Chain
from tests.cni.pods import addresses, host_links, host_local
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space
from tests.traffic import exchange

pytestmark = needs("sandbox", "program:nft")
NODEPLUG = CHECKOUT / "bin" / "nodeplug"


def test_bridge_by_the_command_line(ledger: Ledger, netns: Space, directory: Path) -> None:
    """`nodeplug cni` in place of cnitool: an address that answers, CHECK, and nothing left behind."""
    plugins, conf = directory / "bin", directory / "10-pods.conflist"
    plugins.mkdir()
    for name in ("bridge", "host-local"):
        (plugins / name).symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    bridge = {
        "type": "bridge",
        "bridge": ledger.link("cni0"),
        "isGateway": True,
        "ipam": {"dataDir": str(directory), **host_local(4, 6)},
    }
    conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}))
    where = ["--conf", conf, "--path", plugins, "--cache-dir", directory / "cache", "--netns", netns.name]
    result = run([NODEPLUG, "cni", "add", *where, "--json"]).ok().json()
    assert {ip["address"] for ip in result["ips"]} == addresses(netns) == {"10.88.0.2/24", "fd88::2/64"}
    assert exchange("10.88.0.1", ledger.echo().port, space=netns) == "10.88.0.2"
    run([NODEPLUG, "cni", "check", *where]).ok()
    run([NODEPLUG, "cni", "del", *where]).ok()
    assert (netns.links(), host_links(), list(directory.glob("pods/10.*"))) == ({"lo"}, {"cni0"}, [])


def transfer(pod: Space, address: str, size: int) -> None:
    """That many bytes from the host to the pod, all of which arrive."""
    server = pod.call(socket.socket)
    with server, socket.socket() as client:
        server.bind((address, 0))
        server.listen(1)
        client.settimeout(20)
        client.connect(server.getsockname())
        stream, _ = server.accept()
        with stream:
            stream.settimeout(20)
            client.setblocking(False)
            left, block = size, bytes(size)
            sent = 0
            while left:
                try:
                    sent += client.send(block[sent:]) if sent < size else 0
                except BlockingIOError:
                    pass
                left -= len(stream.recv(1 << 20))


def limits(end: str) -> dict[str, int]:
    """Of the host's end of a pod: rate (bytes a second) and how often a packet had to wait; nothing without a limit."""
    shown = run(["tc", "-s", "-j", "qdisc", "show", "dev", end]).ok().json()
    return {"rate": item["options"]["rate"], "waits": item["overlimits"]} if (item := _tbf(shown)) else {}


def _tbf(shown: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((item for item in shown if item["kind"] == "tbf"), None)


MAIN = {
    "ptp": {"type": "ptp", "ipMasq": True, "mtu": 512},
    "bridge": {"type": "bridge", "isGateway": True, "mtu": 512},
}


@needs("program:tc", "link:ifb")
@pytest.mark.parametrize("plugin", MAIN)
def test_bandwidth_limits_only_the_restricted_pod_of_a_network(ledger: Ledger, netns: Space, plugin: str) -> None:
    """One network for both: what is asked of it for one pod is no business of the other's. bridge names more links."""
    ledger.table("inet", "nodeplug")
    ipam = {"dataDir": str(ledger.directory()), **host_local(routes=[{"dst": "0.0.0.0/0"}])}
    plugins = [{**MAIN[plugin], "ipam": ipam}, {"type": "bandwidth", "capabilities": {"bandwidth": True}}]
    made = Chain(ledger, {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
    rates = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000}
    free = ledger.netns()
    for pod, result in ((netns, made.add(netns, bandwidth=rates)), (free, made.add(free))):
        address = result["ips"][0]["address"].split("/")[0]
        assert exchange(address, ledger.echo(pod).port) == "10.88.0.1"
        transfer(pod, address, 200_000)
    end, other = (identity("pods", pod.name, "eth0") for pod in (netns, free))
    ifbs = {name for name in host_links() if name not in (end, other, "cni0")}
    found = limits(end)
    assert (found["rate"], found["waits"] > 0) == (1_000_000, True)
    assert ([limits(name)["rate"] for name in ifbs], limits(other)) == ([1_000_000], {})
    made.check(netns, bandwidth=rates)
    made.check(free)
    made.delete(netns, bandwidth=rates)
    made.delete(free)
    assert host_links() - {"cni0"} == set()
