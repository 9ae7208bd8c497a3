"""ipvlan: pods that share their master's MAC address, in every mode, chained and not."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.kernel.rtnl import uppers
from tests.cni.calls import VERSIONS
from tests.cni.chains import result as result_of
from tests.cni.lans import Lan
from tests.cni.pods import Network, addresses, host_local, link, routes, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import exchange

pytestmark = needs("sandbox")
with_ipvlan = needs("link:ipvlan")


def ipvlan(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, **{"type": "ipvlan", "master": "lan0", "ipam": host_local(), **config})


@with_ipvlan
def test_ipvlan_add_check_delete_in_every_version(ledger: Ledger, netns: Space) -> None:
    lan = Lan(ledger)
    for version in VERSIONS:
        network = ipvlan(ledger, cniVersion=version)
        result = network.add(netns)
        found, master = link("eth0", netns), link("lan0")
        assert found and master and (uppers.ipvlan_mode(found), found.mac) == ("l2", master.mac)
        if version >= "0.3.0":
            assert result["interfaces"] == [{"name": "eth0", "mac": found.mac.hex(":"), "sandbox": netns.path}]
        if version >= "0.4.0":
            network.check(netns, result)
        if version == VERSIONS[-1]:
            own = result["ips"][0]["address"].split("/")[0]
            assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns) == own
        network.delete(netns)
        assert (netns.links(), network.leases()) == ({"lo"}, set())


@with_ipvlan
def test_ipvlan_modes_and_mtu_and_what_check_knows_of_them(ledger: Ledger, netns: Space) -> None:
    Lan(ledger, mtu=1400)
    Lan(ledger, master="lan1")
    network = ipvlan(ledger)
    for mode, mtu, expected in (("l2", 0, 1400), ("l3", 1300, 1300), ("l3s", 1400, 1400), ("", None, 1400)):
        result = network.add(netns, {"mode": mode, "mtu": mtu})
        found = link("eth0", netns)
        assert found and (uppers.ipvlan_mode(found), found.mtu) == (mode or "l2", expected)
        network.check(netns, result, {"mode": mode})
        for extra, said in (
            ({"mode": "l3" if mode == "l3s" else "l3s"}, "eth0 is in mode"),
            ({"mode": mode, "master": "lan1"}, "eth0 does not sit on lan1"),
        ):
            assert said in network.refused("CHECK", netns, {"prevResult": result, **extra})["msg"]
        network.delete(netns)
    error = network.refused("ADD", netns, {"mtu": 1401})
    assert "invalid MTU 1401, must be [0, master MTU(1400)]" in error["details"]


@with_ipvlan
def test_ipvlan_chained_sits_on_the_link_before_it_and_takes_its_addresses(ledger: Ledger, netns: Space) -> None:
    """A plugin that makes a link on the host, such as a VLAN of the uplink, comes before."""
    Lan(ledger)
    way = {"dst": "10.7.0.0/16", "gw": "10.88.0.9"}
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lan0"}],
        "ips": [{"address": "10.88.0.5/24", "gateway": "10.88.0.1", "interface": 0}],
        "routes": [way],
    }
    chained = ipvlan(ledger, master="", ipam={})
    result = chained.add(netns, {"prevResult": before})
    assert (addresses(netns), routes(netns)["10.7.0.0/16"]["gateway"]) == ({"10.88.0.5/24"}, "10.88.0.9")
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0"]
    assert (result["ips"], result["routes"]) == ([{**before["ips"][0], "interface": 0}], [way])
    chained.check(netns, result)
    assert chained.ask("STATUS") == (0, None)
    chained.delete(netns, {"prevResult": result})
    assert netns.links() == {"lo"}
    managed = ipvlan(ledger, master="")
    managed.add(netns, {"prevResult": before})
    assert addresses(netns) == {"10.88.0.2/24"}


@with_ipvlan
def test_ipvlan_without_a_master_and_with_one_in_the_pod(ledger: Ledger, netns: Space) -> None:
    Lan(ledger)
    network = ipvlan(ledger, master="")
    assert network.refused("ADD", netns)["msg"].startswith("no default route interface found")
    Lan(ledger, master="lan1").route_by_default()
    result = network.add(netns)
    found, master = link("eth0", netns), link("lan1")
    assert found and master and found.parent == master.index
    HERE.run("ip", "route", "delete", "default").ok()
    network.check(netns, result)
    network.delete(netns)  # the reference looks for the default route again, and fails
    assert (netns.links(), network.leases()) == ({"lo"}, set())
    Lan(ledger, home=netns, master="net0")
    within = ipvlan(ledger, master="net0", linkInContainer=True)
    within.check(netns, within.add(netns))
    within.delete(netns)
    assert netns.links() == {"lo", "net0"}


@with_ipvlan
def test_ipvlan_delete_and_status_when_the_master_has_gone(ledger: Ledger, netns: Space) -> None:
    Lan(ledger)
    network = ipvlan(ledger)
    result = network.add(netns)
    HERE.run("ip", "link", "delete", "lan0").ok()
    network.delete(netns, {"prevResult": result})
    assert (netns.links(), network.leases()) == ({"lo"}, set())
    assert network.refused("STATUS")["code"] == 50


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mode": "l4"}, '$.mode: expected one of "l2", "l3", "l3s"'),
        ({"mtu": -1}, "$.mtu: "),
        ({"ipam": {}}, "$.ipam.type: required, but missing"),
    ],
)
def test_ipvlan_wrong_keys_are_told_by_their_paths(
    ledger: Ledger, netns: Space, keys: dict[str, Any], said: str
) -> None:
    error = ipvlan(ledger, **keys).refused("ADD", netns)
    assert (error["code"], said in error["details"]) == (7, True), error


def test_ipvlan_chained_needs_a_single_named_interface_before_it(ledger: Ledger, netns: Space) -> None:
    several = result_of(netns, "10.88.0.5/24", host=("lan0",))
    for before, count in ((several, 2), ({**several, "interfaces": []}, 0)):
        error = ipvlan(ledger, master="", ipam=static("10.5.0.2/24")).refused("ADD", netns, {"prevResult": before})
        assert (error["code"], f"prevResult has {count} interfaces" in error["msg"]) == (7, True), error
