"""bridge: CHECK tells what has become of a pod, GC collects what none needs, STATUS whether an ADD can succeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.pods import Network, host_links, host_local
from tests.ledger import Ledger
from tests.space import Space
from tests.traffic import reaches

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture
def network(ledger: Ledger) -> Network:
    ledger.table("inet", "nodeplug")
    return Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4, 6))


def kept() -> set[str]:
    """The files of the filter table's index."""
    directory = Path(paths.RUN, "cni", "filter")
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def nothing_left(network: Network) -> bool:
    return (host_links(), network.leases(), kept()) == ({"cni0"}, set(), set())


def valid(*pods: Space) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": pod.name, "ifname": "eth0"} for pod in pods]}


def test_gc_removes_what_no_valid_attachment_has_and_keeps_what_one_has(network: Network, ledger: Ledger) -> None:
    living, lost, dead = ledger.netns(), ledger.netns(), ledger.netns()
    results = [network.add(pod) for pod in (living, lost, dead)]
    dead.remove()
    assert network.ask("GC", None, valid(living)) == (0, None)
    addresses_of = [{found["address"].split("/")[0] for found in result["ips"]} for result in results]
    assert network.leases() == addresses_of[0]
    assert host_links() == {"cni0", identity("pods", living.name, "eth0")}
    assert kept() == {identity("pods", living.name, "eth0") + ".masquerade"}
    network.check(living, results[0])
    assert reaches("10.88.0.1", ledger.echo().port, space=living)


def test_gc_leaves_other_networks_alone(network: Network, netns: Space, ledger: Ledger) -> None:
    other = Network(ledger, type="bridge", name="other", isGateway=True, ipMasq=True, ipam=host_local())
    other.config["ipam"]["ranges"] = [[{"subnet": "10.99.0.0/24"}]]
    other.config["bridge"] = ledger.link("cni9")
    pod = ledger.netns()
    network.add(netns)
    result = other.add(pod)
    assert network.ask("GC", None, valid()) == (0, None)
    assert nothing_left(network) is False
    assert netns.links() == {"lo"}
    other.check(pod, result)


def test_gc_without_a_list_removes_nothing(network: Network, netns: Space) -> None:
    result = network.add(netns)
    assert network.ask("GC", None) == (0, None)
    network.check(netns, result)


def test_gc_touches_no_link_whose_label_is_not_its_own(network: Network, netns: Space, ledger: Ledger) -> None:
    """Only the name that belongs to a label proves it: anybody can write an alias."""
    for name, alias in (
        ("stranger", "pods/x/eth0"),
        ("np" + "a" * 13, "pods/x/eth0"),
        (identity("pods", "y", "e"), ""),
    ):
        run(["ip", "link", "add", ledger.link(name), "type", "veth"]).ok()
        if alias:
            run(["ip", "link", "set", name, "alias", alias]).ok()
    before = host_links()
    assert network.ask("GC", None, valid()) == (0, None)
    assert host_links() == before
    for name in before:
        run(["ip", "link", "delete", name])


DAMAGE = {
    "no bridge": (["ip", "link", "delete", "cni0"], "no bridge cni0"),
    "no port": (["ip", "link", "set", "PORT", "nomaster"], "is no port of bridge cni0"),
    "no link": (["ip", "link", "delete", "PORT"], "has no veth eth0"),
    "other bridge": (
        ["sh", "-c", "ip link add br-x type bridge; ip link set PORT master br-x"],
        "is no port of bridge",
    ),
}
INSIDE = {
    "address": (["ip", "address", "delete", "10.88.0.2/24", "dev", "eth0"], "has not the address 10.88.0.2/24"),
    "address v6": (["ip", "-6", "address", "flush", "dev", "eth0"], "has not the address fd88::2/64"),
    "route": (["ip", "route", "delete", "default"], "has not the route 0.0.0.0/0 via 10.88.0.1"),
    "route v6": (["ip", "-6", "route", "delete", "default"], "has not the route ::/0 via fd88::1"),
    "mac": (["ip", "link", "set", "eth0", "address", "02:00:00:00:00:09"], "has the MAC address 02:00:00:00:00:09"),
    "name": (["sh", "-c", "ip link set eth0 down; ip link set eth0 name x"], "has no veth eth0"),
}


@pytest.mark.parametrize("what", [*DAMAGE, *INSIDE])
def test_check_tells_what_is_not_as_add_made_it(network: Network, netns: Space, ledger: Ledger, what: str) -> None:
    ledger.link("br-x")
    result = network.add(netns)
    network.check(netns, result)
    command, says = {**DAMAGE, **INSIDE}[what]
    command = [word.replace("PORT", result["interfaces"][1]["name"]) for word in command]
    run(command, netns=netns.path if what in INSIDE else "").ok()
    error = network.refused("CHECK", netns, {"prevResult": result})
    assert error["code"] == 100
    assert says in error["msg"], error


def test_check_minds_nothing_that_plugins_behind_it_change(network: Network, netns: Space) -> None:
    """tuning sets another MAC address and says so, sbr moves routes to another table, others add interfaces."""
    result = network.add(netns)
    netns.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:09").ok()
    result["interfaces"][2]["mac"] = "02:00:00:00:00:09"
    result["interfaces"].append({"name": "bwp0123456789", "mac": "02:00:00:00:00:0a"})
    netns.run("ip", "route", "delete", "default").ok()
    netns.run("ip", "route", "add", "default", "via", "10.88.0.1", "table", "100").ok()
    netns.run("ip", "address", "add", "10.77.0.1/32", "dev", "eth0").ok()
    network.check(netns, result)


def test_check_needs_a_result_that_names_the_pods_interface(network: Network, netns: Space) -> None:
    result = network.add(netns)
    for interfaces in ([], result["interfaces"][:2], [*result["interfaces"][:2], {"name": "eth0"}]):
        error = network.refused("CHECK", netns, {"prevResult": {**result, "interfaces": interfaces, "ips": []}})
        assert "prevResult names no interface" in error["msg"]


def test_check_in_another_pod_fails(network: Network, netns: Space, ledger: Ledger) -> None:
    result = network.add(netns)
    other = ledger.netns()
    network.add(other)
    error = network.refused("CHECK", other, {"prevResult": result}, CNI_CONTAINERID=netns.name)
    assert "CNI_NETNS is" in error["msg"]


def test_status_is_ready_before_and_after_the_first_pod(network: Network, netns: Space) -> None:
    assert network.ask("STATUS") == (0, None)
    network.add(netns)
    before = run(["ip", "address"]).ok().text
    assert network.ask("STATUS") == (0, None)
    assert run(["ip", "address"]).ok().text == before


def test_status_says_what_keeps_every_add_from_succeeding(network: Network, ledger: Ledger) -> None:
    run(["ip", "link", "add", "cni0", "type", "veth", "peer", "name", "x"]).ok()
    error = network.refused("STATUS")
    assert (error["code"], "not a bridge" in error["msg"]) == (50, True)
    run(["ip", "link", "delete", "cni0"]).ok()
    error = network.refused("STATUS", None, {"ipam": {"type": "no-such-manager"}})
    assert (error["code"], "no-such-manager" in error["msg"]) == (50, True)
    script = f"{network.plugins}/bridge"
    done = run(["setpriv", "--bounding-set=-net_admin", script], env=network.env("STATUS", None), stdin=network.stdin())
    assert (done.code, done.json()["code"]) == (1, 50)
