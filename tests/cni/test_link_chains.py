"""ptp, macvlan and tap at the head of chains, run as a runtime runs them: each an executable, results handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.chains import Chain
from tests.cni.lans import Lan
from tests.cni.pods import addresses, host_links, link, routes, setting
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "program:nft")
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 800_000}


def chain(ledger: Ledger, *plugins: dict[str, Any], version: str = "1.1.0") -> Chain:
    for table in ("inet nodeplug", "ip filter"):
        ledger.table(*table.split())
    ledger.adopt("what tuning keeps", lambda: run(["rm", "-rf", "/run/cni"]))
    return Chain(ledger, {"cniVersion": version, "name": "pods", "plugins": list(plugins)})


def managed(ledger: Ledger, *subnets: str, directory: Path | None = None) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}] for subnet in subnets or ("10.88.0.0/24",)]
    data = str(directory or ledger.directory())
    return {"type": "host-local", "dataDir": data, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}


def test_ptp_with_host_ports_as_kind_configures_its_nodes(ledger: Ledger, netns: Space) -> None:
    """Version 0.3.1, no masquerade, leases on a tmpfs."""
    leases = ledger.directory()
    ptp = {"type": "ptp", "ipMasq": False, "ipam": managed(ledger, directory=leases)}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    made, other = chain(ledger, ptp, portmap, version="0.3.1"), ledger.netns()
    result = made.add(netns, **PORTS)
    made.add(other)
    server = ledger.echo(netns, port=80)
    own = result["ips"][0]["address"].split("/")[0]
    assert exchange(own, server.port, space=other) == addresses(other).pop().split("/")[0]
    assert reaches("127.0.0.1", 8080)
    assert reaches("10.88.0.1", 8080, space=other)
    assert reaches("10.88.0.1", 8080, space=netns), "a pod reaches itself by its host port"
    made.delete(netns, **PORTS)
    assert not reaches("127.0.0.1", 8080, timeout=0.5)
    made.delete(other)
    assert (host_links(), list(leases.glob("pods/10.*"))) == (set(), [])


def test_ptp_with_every_chained_plugin_behind_it(ledger: Ledger, netns: Space) -> None:
    made = chain(
        ledger,
        {"type": "ptp", "ipMasq": True, "ipam": managed(ledger, "10.88.0.0/24", "fd88::/64")},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", **RATES},
        {"type": "firewall", "backend": "iptables"},
        {"type": "tuning", "mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}},
    )
    run(
        [
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        ]
    ).ok()
    made.status()
    result = made.add(netns, **PORTS)
    end, inside = identity("pods", netns.name, "eth0"), link("eth0", netns)
    assert inside and (inside.mtu, setting(netns, "net/ipv4/conf/eth0/arp_ignore")) == (1400, "1")
    assert [interface["name"] for interface in result["interfaces"]][:2] == [end, "eth0"]
    assert "tbf" in run(["tc", "qdisc", "show", "dev", end]).ok().text
    assert reaches("127.0.0.1", 8080) is False
    server = ledger.echo(netns, port=80)
    assert exchange("127.0.0.1", 8080) == "10.88.0.1"
    assert server.port == 80
    made.check(netns, **PORTS)
    made.gc((netns.name, "eth0"))
    made.check(netns, **PORTS)
    made.delete(netns, **PORTS)
    assert (host_links(), netns.links()) == (set(), {"lo"})


@needs("link:macvlan")
def test_macvlan_with_what_can_stand_behind_it(ledger: Ledger, netns: Space) -> None:
    lan = Lan(ledger)
    made = chain(
        ledger,
        {"type": "macvlan", "master": "lan0", "ipam": managed(ledger)},
        {"type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:42", "promisc": True},
        {"type": "sbr", "addSourceHints": True},
    )
    result = made.add(netns, "net1")
    assert result["interfaces"][0]["mac"] == "02:00:00:00:00:42"
    own = result["ips"][0]["address"].split("/")[0]
    assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns) == own
    assert "default" not in routes(netns)
    made.check(netns, "net1")
    made.delete(netns, "net1")
    assert netns.links() == {"lo"}


@needs("link:macvlan")
def test_bandwidth_behind_macvlan_says_that_it_cannot(ledger: Ledger, netns: Space) -> None:
    Lan(ledger)
    leases = ledger.directory()
    macvlan = {"type": "macvlan", "master": "lan0", "ipam": managed(ledger, directory=leases)}
    made = chain(ledger, macvlan, {"type": "bandwidth", **RATES})
    with pytest.raises(Exception, match="has no veth peer: it is of kind 'macvlan'"):
        made.add(netns)
    made.delete(netns)
    assert (netns.links(), list(leases.glob("pods/10.*"))) == ({"lo"}, [])


@needs("file:/dev/net/tun")
def test_tap_in_a_bridge_that_is_there_before_it(ledger: Ledger, netns: Space) -> None:
    netns.run("ip", "link", "add", "br0", "type", "bridge").ok()
    made = chain(ledger, {"type": "tap", "bridge": "br0", "multiQueue": True}, {"type": "tuning", "txQLen": 77})
    made.add(netns, "tap0")
    found, bridge = link("tap0", netns), link("br0", netns)
    assert found and bridge and (found.master, found.txqlen) == (bridge.index, 77)
    made.check(netns, "tap0")
    made.delete(netns, "tap0")
    assert netns.links() == {"lo", "br0"}
    assert HERE.links() == {"lo"}
