"""vlan: a pod in a VLAN of the node's network, and each key of its table."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.kernel.rtnl import uppers
from tests.cni.calls import VERSIONS
from tests.cni.lans import Lan
from tests.cni.pods import Network, host_local, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox")
with_vlans = needs("link:vlan")


def vlan(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, **{"type": "vlan", "master": "lan0", "vlanId": 100, "ipam": host_local(), **config})


@with_vlans
def test_vlan_pod_talks_to_its_vlan_and_to_no_other(ledger: Ledger, netns: Space) -> None:
    """In every version; the station outside has a VLAN of the same number, and one of another."""
    lan = Lan(ledger)
    for number, address in ((100, "10.88.0.1/24"), (101, "10.88.1.1/24")):
        lan.station.run("ip", "link", "add", f"v{number}", "link", "eth0", "type", "vlan", "id", str(number)).ok()
        lan.station.run("ip", "address", "flush", "dev", "eth0")
        lan.station.run("ip", "address", "add", address, "dev", f"v{number}").ok()
        lan.station.run("ip", "link", "set", f"v{number}", "up").ok()
    server = ledger.echo(lan.station)
    for version in VERSIONS:
        network = vlan(ledger, cniVersion=version)
        result = network.add(netns)
        found, master = link("eth0", netns), link("lan0")
        assert found and master and (uppers.vlan_id(found), found.parent) == (100, master.index)
        if version >= "0.3.0":
            assert result["interfaces"] == [{"name": "eth0", "mac": found.mac.hex(":"), "sandbox": netns.path}]
            assert [ip["interface"] for ip in result["ips"]] == [0]
        if version >= "0.4.0":
            network.check(netns, result)
        if version == VERSIONS[-1]:
            assert exchange("10.88.0.1", server.port, space=netns) == result["ips"][0]["address"].split("/")[0]
            netns.run("ip", "address", "add", "10.88.1.9/24", "dev", "eth0").ok()
            assert not reaches("10.88.1.1", server.port, space=netns, timeout=0.5)
        network.delete(netns)
        assert (netns.links(), network.leases()) == ({"lo"}, set())


@with_vlans
def test_vlan_mtu_is_given_or_inherited_and_never_larger(ledger: Ledger, netns: Space) -> None:
    Lan(ledger, mtu=1400)
    network = vlan(ledger)
    for mtu, expected in ((None, 1400), (0, 1400), (1400, 1400), (1300, 1300)):
        network.add(netns, {"mtu": mtu})
        found = link("eth0", netns)
        assert found and found.mtu == expected
        network.delete(netns)
    for mtu, said in ((1401, "invalid MTU 1401, must be [0, master MTU(1400)]"), (-100, "got -100")):
        error = network.refused("ADD", netns, {"mtu": mtu})
        assert (error["code"], said in error["details"]) == (7, True), error


@with_vlans
def test_vlan_is_once_on_a_master_and_check_knows_the_number_and_the_master(ledger: Ledger, netns: Space) -> None:
    Lan(ledger)
    Lan(ledger, master="lan1")
    network, other = vlan(ledger), ledger.netns()
    result = network.add(netns)
    error = network.refused("ADD", other)
    assert (error["code"], "VLAN 100 of lan0" in error["details"]) == (100, True), error
    assert (other.links(), len(network.leases())) == ({"lo"}, 1)
    for extra, said in (
        ({"vlanId": 101}, "eth0 is VLAN 100, not 101"),
        ({"master": "lan1"}, "eth0 does not sit on lan1"),
        ({"master": "lan2"}, "failed to lookup master 'lan2'"),
    ):
        assert said in network.refused("CHECK", netns, {"prevResult": result, **extra})["msg"]
    network.add(other, {"master": "lan1"})


@with_vlans
def test_vlan_with_a_master_in_the_pod(ledger: Ledger, netns: Space) -> None:
    Lan(ledger, home=netns, master="net0")
    network = vlan(ledger, master="net0", linkInContainer=True)
    assert network.ask("STATUS") == (0, None)
    result = network.add(netns)
    found, master = link("eth0", netns), link("net0", netns)
    assert found and master and found.parent == master.index
    network.check(netns, result)
    network.delete(netns)
    assert netns.links() == {"lo", "net0"}
    error = network.refused("ADD", netns, {"linkInContainer": False})
    assert error["msg"] == "failed to lookup master 'net0': the host has no such link"


@with_vlans
def test_vlan_delete_and_status_when_the_master_has_gone(ledger: Ledger, netns: Space) -> None:
    lan = Lan(ledger)
    network = vlan(ledger)
    result = network.add(netns)
    lan.home.run("ip", "link", "delete", "lan0").ok()
    network.delete(netns, {"prevResult": result})
    network.delete(netns)
    assert (netns.links(), network.leases()) == ({"lo"}, set())
    error = network.refused("STATUS")
    assert (error["code"], error["msg"]) == (50, "failed to lookup master 'lan0': the host has no such link")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"master": None}, "$.master: required, but missing"),
        ({"master": ""}, "$.master: "),
        ({"vlanId": -1}, "$.vlanId: expected a whole number from 0 to 4094, got -1"),
        ({"vlanId": 4095}, "$.vlanId: expected a whole number from 0 to 4094, got 4095"),
        ({"vlanId": "100"}, "$.vlanId: "),
        ({"ipam": {}}, "$.ipam.type: required, but missing"),
    ],
)
def test_vlan_wrong_keys_are_told_by_their_paths(ledger: Ledger, netns: Space, keys: dict[str, Any], said: str) -> None:
    network = vlan(ledger, **keys)
    for command in ("ADD", "STATUS"):
        error = network.refused(command, netns if command == "ADD" else None)
        assert (error["code"], said in error["details"]) == (7, True), error
    assert netns.links() == {"lo"}
