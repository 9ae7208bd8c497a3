"""bridge beside the reference plugins: each takes over what the other made, and they share bridges and addresses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.naming import identity
from tests.child import run, until
from tests.cni.calls import environment
from tests.cni.pods import REFERENCE, Network, addresses, host_links, host_local, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange

pytestmark = needs("sandbox", f"file:{REFERENCE}/bridge", "program:iptables")
VERSION = "1.0.0"  # Debian's reference plugins know no later one


@pytest.fixture
def network(ledger: Ledger) -> Network:
    for table in ("ip nat", "ip6 nat", "ip filter", "inet nodeplug"):
        ledger.table(*table.split())
    ledger.adopt("what tuning keeps", lambda: shutil.rmtree("/run/cni", ignore_errors=True))
    return Network(ledger, type="bridge", cniVersion=VERSION, isDefaultGateway=True, ipam=host_local(4, 6))


def theirs(network: Network, command: str, pod: Space, extra: Any = None, **variables: str) -> Any:
    """The answer of the reference plugin, which must succeed; its address managers are the reference's too."""
    env = environment(command, CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path, CNI_PATH=REFERENCE, **variables)
    done = run([f"{REFERENCE}/bridge"], env={**env, "PATH": "/usr/sbin:/usr/bin"}, stdin=network.stdin(extra))
    assert done.code == 0, done.text
    return json.loads(done.stdout) if done.stdout else None


def test_the_results_of_both_differ_in_names_and_addresses_alone(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    other = ledger.netns()
    ledger.adopt("theirs", lambda: theirs(network, "DEL", other))
    results = [network.add(netns), theirs(network, "ADD", other)]
    shapes = []
    for result in results:
        result.pop("dns", None)
        text = json.dumps(result, sort_keys=True)
        for interface in result["interfaces"][1:]:
            text = text.replace(interface["mac"], "MAC").replace(interface.get("sandbox", "?"), "SANDBOX")
        text = text.replace(result["interfaces"][1]["name"], "HOST")
        for ip in result["ips"]:
            text = text.replace(ip["address"], "ADDRESS")
        shapes.append(json.loads(text))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("masquerade", [False, True])
def test_pods_of_both_reach_each_other_on_one_bridge(
    network: Network, netns: Space, ledger: Ledger, masquerade: bool
) -> None:
    network.config["ipMasq"] = masquerade
    other = ledger.netns()
    ledger.adopt("theirs", lambda: theirs(network, "DEL", other))
    there = theirs(network, "ADD", other)["ips"][0]["address"].split("/")[0]
    here = network.add(netns)["ips"][0]["address"].split("/")[0]
    assert exchange(there, ledger.echo(other).port, space=netns) == here
    assert exchange(here, ledger.echo(netns).port, space=other) == there


WAYS: dict[str, dict[str, Any]] = {
    "with all": {},
    "without result": {"result": False},
    "without netns": {"netns": ""},
    "netns gone": {"gone": True},
    "result of 0.3.1": {"version": "0.3.1"},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_reference_made_is_deleted_by_ours(network: Network, netns: Space, way: str) -> None:
    how = WAYS[way]
    network.config["cniVersion"] = how.get("version", VERSION)
    result = theirs(network, "ADD", netns)
    network.check(netns, result) if how.get("version", VERSION) >= "0.4.0" else None
    if "gone" in how:
        netns.remove()
    extra = {"prevResult": result} if how.get("result", True) and network.config["cniVersion"] >= "0.4.0" else {}
    network.delete(netns, extra, CNI_NETNS=how.get("netns", netns.path))
    until(lambda: host_links() == {"cni0"}, "the end of the pod's link")
    assert network.leases() == set()
    network.delete(netns, extra)


@pytest.mark.parametrize("way", ["with all", "netns gone"])
def test_what_ours_made_is_deleted_by_the_reference(network: Network, netns: Space, way: str) -> None:
    result = network.add(netns)
    theirs(network, "CHECK", netns, {"prevResult": result})
    if "gone" in WAYS[way]:
        netns.remove()
    theirs(network, "DEL", netns, {"prevResult": result})
    until(lambda: host_links() == {"cni0"}, "the end of the pod's link")
    assert network.leases() == set()


def shown() -> str:
    """All rules, without the counters that traffic moves."""
    return run(["nft", "-s", "list", "ruleset"]).ok().text


@pytest.mark.parametrize("key", ["ipMasq", "macspoofchk"])
def test_the_rules_of_the_reference_go_with_its_attachment(
    network: Network, netns: Space, ledger: Ledger, key: str
) -> None:
    ledger.table("bridge", "nat")
    network.config[key] = True
    other = ledger.netns()
    ledger.adopt("theirs", lambda: theirs(network, "DEL", other))
    theirs(network, "ADD", other)
    before = shown()
    result = theirs(network, "ADD", netns)
    assert shown() != before
    network.delete(netns, {"prevResult": result})
    assert shown() == before
    network.delete(netns)
    assert shown() == before


def test_rules_in_the_references_own_nft_table_go_too(network: Network, netns: Space, ledger: Ledger) -> None:
    """As its later versions write them, which Debian 12 has not."""
    network.config["ipMasq"] = True
    ledger.table("inet", "cni_plugins_masquerade")
    prefix = hashlib.sha512(b"pods").hexdigest()[:16]
    mine, other = (hashlib.sha512(f"eth0:{name}".encode()).hexdigest()[:16] for name in (netns.name, "another"))
    chain = "inet cni_plugins_masquerade masq_checks"
    rules = "".join(
        f'add rule {chain} ip saddr 10.88.0.{n} masquerade comment "{prefix}-{hashed}, x"\n'
        for n, hashed in ((7, mine), (8, mine), (9, other))
    )
    table = f"add table inet cni_plugins_masquerade\nadd chain {chain}\n"
    run(["nft", "-f", "-"], stdin=(table + rules).encode()).ok()
    network.delete(netns)
    assert [f"10.88.0.{n}" in shown() for n in (7, 8, 9)] == [False, False, True]


def test_a_link_of_the_reference_in_the_pod_is_refused_and_stays(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    """The name is taken by another network, on another bridge; its own DEL comes later."""
    other = Network(ledger, type="bridge", name="other", bridge="br-other", cniVersion=VERSION, ipam=host_local())
    theirs(other, "ADD", netns)
    before = addresses(netns)
    assert "eth0 already exists" in network.refused("ADD", netns)["msg"]
    network.delete(netns)
    assert addresses(netns) == before
    theirs(other, "DEL", netns)


def test_a_host_link_whose_name_was_given_again_is_left_alone(network: Network, netns: Space, ledger: Ledger) -> None:
    result = theirs(network, "ADD", netns)
    name = result["interfaces"][1]["name"]
    netns.remove()
    run(["ip", "link", "delete", name])
    run(["ip", "link", "add", ledger.link(name), "type", "veth", "peer", "name", "stranger"]).ok()
    network.delete(netns, {"prevResult": result}, CNI_NETNS="")
    assert link(name) is not None


@pytest.mark.parametrize("executed", ["host-local", "static"])
def test_address_managers_of_the_reference_are_executed(
    network: Network, netns: Space, directory: Path, executed: str
) -> None:
    """Under another name, for those of the same name are our own."""
    shutil.copy(f"{REFERENCE}/{executed}", directory / "foreign")
    network.config["ipam"]["type"] = "foreign"
    network.config["ipam"]["addresses"] = [{"address": "10.88.0.7/24", "gateway": "10.88.0.1"}]
    path = {"CNI_PATH": str(directory)}
    result = network.add(netns, **path)
    network.check(netns, result, **path)
    assert {found["address"] for found in result["ips"]} == addresses(netns)
    network.delete(netns, **path)
    assert (network.leases(), netns.links()) == (set(), {"lo"})


def test_an_address_manager_that_dies_half_way_is_asked_to_take_back_what_it_did(
    network: Network, netns: Space, directory: Path
) -> None:
    asked = directory / "asked"
    dying = directory / "dying"
    dying.write_text(f"#!/bin/sh\necho $CNI_COMMAND >> {asked}\n[ $CNI_COMMAND = DEL ] || kill -9 $$\n")
    dying.chmod(0o755)
    network.config["ipam"] = {"type": "dying"}
    error = network.refused("ADD", netns, CNI_PATH=str(directory))
    assert (error["code"], "dying" in error["msg"]) == (999, True)
    assert asked.read_text().split() == ["ADD", "DEL"]
    assert (host_links(), netns.links()) == ({"cni0"}, {"lo"})


def test_a_chain_goes_on_with_the_references_plugins(network: Network, netns: Space) -> None:
    """tuning behind ours sees our host and our pod, and CHECK accepts what it changed."""
    result = network.add(netns)
    tuning = {"type": "tuning", "mac": "02:00:00:00:00:42", "name": "pods", "cniVersion": VERSION}
    env = environment("ADD", CNI_CONTAINERID=netns.name, CNI_NETNS=netns.path, CNI_PATH=REFERENCE)
    stdin = json.dumps({**tuning, "prevResult": result}).encode()
    changed = run([f"{REFERENCE}/tuning"], env=env, stdin=stdin).ok().json()
    assert changed["interfaces"][2]["mac"] == "02:00:00:00:00:42"
    network.check(netns, changed)
    network.delete(netns, {"prevResult": changed})
    assert identity("pods", netns.name, "eth0") not in host_links()
