"""ptp, macvlan, ipvlan and vlan beside the reference plugins: the same pods, and each deletes what the other made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodeplug.core.naming import identity
from tests.child import run, until
from tests.cni.calls import environment
from tests.cni.lans import Lan
from tests.cni.pods import REFERENCE, Network, addresses, host_links, host_local, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import exchange

pytestmark = needs("sandbox", f"file:{REFERENCE}/ptp", "program:iptables")
VERSION = "1.0.0"  # Debian's reference plugins know no later one
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.88.0.1"}]
BOTH = host_local(4, 6, routes=[*ROUTES, {"dst": "::/0"}])  # the reference waits two seconds for IPv6 addresses
CONFIGS: dict[str, dict[str, Any]] = {
    "ptp": {"mtu": 1400, "ipMasq": True},
    "macvlan": {"master": "lan0", "mtu": 1400, "dns": {"nameservers": ["192.0.2.1"]}},
    "ipvlan": {"master": "lan0", "mode": "l3"},
    "vlan": {"master": "lan0", "vlanId": 100, "mtu": 1400},
}
each = pytest.mark.parametrize("plugin", ["ptp", pytest.param("macvlan", marks=needs("link:macvlan"))])
ELSEWHERE = [pytest.param(plugin, marks=needs(f"link:{plugin}")) for plugin in ("ipvlan", "vlan")]


def made(ledger: Ledger, plugin: str, **config: Any) -> Network:
    for table in ("ip nat", "ip6 nat", "inet nodeplug"):
        ledger.table(*table.split())
    Lan(ledger)
    ipam = host_local(routes=ROUTES)
    return Network(ledger, type=plugin, **{"cniVersion": VERSION, **CONFIGS[plugin], "ipam": ipam, **config})


def theirs(network: Network, command: str, pod: Space, extra: Any = None, **variables: str) -> Any:
    """The answer of the reference plugin, which must succeed; its address managers are the reference's too."""
    names = {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_PATH": REFERENCE}
    env = environment(command, **{**names, **variables})
    program = f"{REFERENCE}/{network.config['type']}"
    done = run([program], env={**env, "PATH": "/usr/sbin:/usr/bin"}, stdin=network.stdin(extra), timeout=60)
    assert done.code == 0, done.text
    return json.loads(done.stdout) if done.stdout else None


def shape(result: dict[str, Any]) -> Any:
    """The result without names and numbers that nobody chose."""
    interfaces = result["interfaces"]
    found = [{**one, "mac": "MAC", **({} if one.get("sandbox") else {"name": "HOST"})} for one in interfaces]
    return {**result, "interfaces": found, "dns": result.get("dns") or {}}


def inside(pod: Space) -> Any:
    """What the pod has, as a program in it sees it."""
    found = link("eth0", pod)
    assert found is not None
    ways = []
    for family in ("-4", "-6"):
        for route in pod.ip(family, "route", "show"):
            kept = {name: route.get(name) for name in ("dst", "gateway", "dev", "scope", "prefsrc", "metric")}
            ways.append(json.dumps(kept, sort_keys=True))
    return addresses(pod), sorted(ways), found.kind, found.mtu, found.up


@pytest.mark.parametrize("plugin", ["ptp", pytest.param("macvlan", marks=needs("link:macvlan")), *ELSEWHERE])
def test_the_same_configuration_makes_the_same_pod(ledger: Ledger, netns: Space, plugin: str) -> None:
    """One pod, made by both in turn, so that the address is the same too; the second is deleted by the first."""
    network = made(ledger, plugin, **({"ipam": BOTH} if plugin in ("ptp", "macvlan") else {}))
    result = network.add(netns, CNI_CONTAINERID="one")
    ours = shape(result), inside(netns)
    network.delete(netns, {"prevResult": result}, CNI_CONTAINERID="one")
    for name in (network.leases_in / "pods").glob("last_reserved_ip.*"):
        name.unlink()
    ledger.adopt("theirs", lambda: theirs(network, "DEL", netns, CNI_CONTAINERID="one"))
    result = theirs(network, "ADD", netns, CNI_CONTAINERID="one")
    assert (shape(result), inside(netns)) == ours
    network.check(netns, result, CNI_CONTAINERID="one")
    network.delete(netns, {"prevResult": result}, CNI_CONTAINERID="one")
    assert (netns.links(), network.leases()) == ({"lo"}, set())


@each
@pytest.mark.parametrize("way", ["with a result", "without", "netns gone"])
def test_what_the_reference_made_is_deleted_by_ours(ledger: Ledger, netns: Space, plugin: str, way: str) -> None:
    network = made(ledger, plugin)
    result = theirs(network, "ADD", netns)
    network.check(netns, result)
    if way == "netns gone":
        netns.remove()
    network.delete(netns, {"prevResult": result} if way == "with a result" else {})
    until(lambda: host_links() == {"lan0"}, "the end of the pod's link")
    assert network.leases() == set()
    assert way == "netns gone" or netns.links() == {"lo"}
    assert netns.name not in run(["nft", "-s", "list", "ruleset"]).ok().text, "its rules went too"
    network.delete(netns)


@each
@pytest.mark.parametrize("way", ["with a result", "netns gone"])
def test_what_ours_made_is_deleted_by_the_reference(ledger: Ledger, netns: Space, plugin: str, way: str) -> None:
    """Without ipMasq, whose chain the reference misses where iptables is of nf_tables."""
    network = made(ledger, plugin, **({"ipMasq": False} if plugin == "ptp" else {}))
    result = network.add(netns)
    theirs(network, "CHECK", netns, {"prevResult": result})
    if way == "netns gone":
        netns.remove()
    theirs(network, "DEL", netns, {"prevResult": result})
    until(lambda: host_links() == {"lan0"}, "the end of the pod's link")
    assert network.leases() == set()


def test_ptp_pods_of_both_reach_each_other(ledger: Ledger, netns: Space) -> None:
    network, other = made(ledger, "ptp"), ledger.netns()
    ledger.adopt("theirs", lambda: theirs(network, "DEL", other))
    there = theirs(network, "ADD", other)["ips"][0]["address"].split("/")[0]
    here = network.add(netns)["ips"][0]["address"].split("/")[0]
    assert exchange(there, ledger.echo(other).port, space=netns) == here
    assert exchange(here, ledger.echo(netns).port, space=other) == there


def test_ptp_of_a_version_without_results_for_delete_takes_the_references_link(ledger: Ledger, netns: Space) -> None:
    """kindnet's configuration is of 0.3.1. A veth that is no pod's of a point-to-point network stays."""
    network = made(ledger, "ptp", cniVersion="0.3.1")
    theirs(network, "ADD", netns)
    other = ledger.netns()
    HERE.run("ip", "link", "add", ledger.link("own"), "type", "veth", "peer", "name", "eth0", "netns", other.name).ok()
    network.delete(netns)
    network.delete(other)
    assert (netns.links(), other.links(), host_links()) == ({"lo"}, {"lo", "eth0"}, {"lan0", "own"})


def test_ptp_host_link_whose_name_was_given_again_is_left_alone(ledger: Ledger, netns: Space) -> None:
    network = made(ledger, "ptp")
    result = theirs(network, "ADD", netns)
    name = result["interfaces"][0]["name"]
    netns.remove()
    run(["ip", "link", "delete", name])
    run(["ip", "link", "add", ledger.link(name), "type", "veth", "peer", "name", "stranger"]).ok()
    network.delete(netns, {"prevResult": result}, CNI_NETNS="")
    assert link(name) is not None
    assert identity("pods", netns.name, "eth0") not in host_links()
