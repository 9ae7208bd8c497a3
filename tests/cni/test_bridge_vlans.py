"""bridge with VLANs: who reaches whom, and what each port carries. Needs a kernel that filters VLANs."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.pods import Network, addresses, host_local, link, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "vlan-filtering")


def carried(name: str) -> dict[int, set[str]]:
    """The VLANs of a port with their flags."""
    found: dict[int, set[str]] = {}
    for entry in run(["bridge", "-j", "vlan", "show", "dev", name]).ok().json():
        for vlan in entry["vlans"]:
            for number in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1):
                found[number] = set(vlan.get("flags", ()))
    return found


def tagged(*numbers: int) -> dict[int, set[str]]:
    return {number: set() for number in numbers}


def port(pod: Space) -> str:
    return identity("pods", pod.name, "eth0")


ACCESS = {"PVID", "Egress Untagged"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vlan": 100}, {100: ACCESS}),
        ({"vlan": 100, "preserveDefaultVlan": True}, {1: {"Egress Untagged"}, 100: ACCESS}),
        ({"vlan": 1}, {1: ACCESS}),
        ({"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]}, {1: ACCESS, **tagged(101, *range(200, 211))}),
        ({"vlanTrunk": [{"id": 101}], "preserveDefaultVlan": True}, {1: ACCESS, **tagged(101)}),
        (
            {"vlan": 100, "vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]},
            {100: ACCESS, **tagged(101, *range(200, 211))},
        ),
        ({"vlan": 7, "vlanTrunk": [{"minID": 6, "maxID": 8, "id": 9}]}, {7: ACCESS, **tagged(6, 8, 9)}),
        ({"vlanTrunk": [{"minID": 1, "maxID": 4094}]}, {1: ACCESS, **tagged(*range(2, 4095))}),
        ({"vlanTrunk": []}, {1: ACCESS}),
    ],
    ids=[
        *("vlan 100", "vlan 100 with preserveDefaultVlan", "vlan 1", "trunk 101,200-210"),
        *("trunk with preserveDefaultVlan", "vlan 100 and trunk 101,200-210", "vlan within a trunk"),
        *("trunk 1-4094", "empty trunk"),
    ],
)
def test_a_port_carries_the_vlans_of_the_configuration(
    ledger: Ledger, netns: Space, config: dict[str, Any], expected: dict[int, set[str]]
) -> None:
    network = Network(ledger, type="bridge", **config)
    result = network.add(netns)
    assert carried(port(netns)) == expected
    bridge = link("cni0")
    assert bridge is not None
    assert run(["cat", "/sys/class/net/cni0/bridge/vlan_filtering"]).ok().text == "1"
    network.check(netns, result)
    network.delete(netns)


def test_pods_of_one_vlan_reach_each_other_and_no_other(ledger: Ledger) -> None:
    pods = [ledger.netns() for _ in range(3)]
    for n, pod in enumerate(pods):
        ipam = static(f"10.5.0.{n + 2}/24")
        Network(ledger, type="bridge", vlan=100 if n < 2 else 200, ipam=ipam).add(pod)
    server, elsewhere = ledger.echo(pods[1]), ledger.echo(pods[2])
    assert exchange("10.5.0.3", server.port, space=pods[0]) == "10.5.0.2"
    assert not reaches("10.5.0.4", elsewhere.port, space=pods[0], timeout=0.5)


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["v4", "v6", "v4 and v6"])
def test_the_gateway_of_a_vlan_is_a_link_of_its_own(ledger: Ledger, netns: Space, families: tuple[int, ...]) -> None:
    ledger.link("cni0.100")
    network = Network(ledger, type="bridge", vlan=100, isDefaultGateway=True, ipam=host_local(*families))
    result = network.add(netns)
    gateway = link("cni0.100")
    assert gateway is not None
    assert [found["name"] for found in result["interfaces"]] == ["cni0", port(netns), "eth0", "cni0.100"]
    assert result["interfaces"][3] == {"name": "cni0.100", "mac": gateway.mac.hex(":")}
    assert addresses(HERE, "cni0.100") == {
        f"{found['gateway']}/{found['address'].split('/')[1]}" for found in result["ips"]
    }
    assert addresses(HERE, "cni0") == set()
    assert carried(identity("gateway", "cni0", "100")) == {100: ACCESS}
    for found in result["ips"]:
        server = ledger.echo(address="::" if ":" in found["gateway"] else "0.0.0.0")
        assert exchange(found["gateway"], server.port, space=netns) == found["address"].split("/")[0]
    network.check(netns, result)
    network.add(ledger.netns())
    network.delete(netns)
    assert link("cni0.100") is not None, "the gateway is the node's, as the bridge is"


def test_a_gateway_link_that_lost_its_vlan_gets_it_again_with_the_next_pod(ledger: Ledger, netns: Space) -> None:
    ledger.link("cni0.100")
    network = Network(ledger, type="bridge", vlan=100, isGateway=True, ipam=host_local())
    network.add(netns)
    gateway = identity("gateway", "cni0", "100")
    run(["bridge", "vlan", "delete", "vid", "100", "dev", gateway]).ok()
    network.add(ledger.netns())
    assert carried(gateway) == {100: ACCESS}


def test_a_port_whose_vlans_were_changed_fails_check(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", vlan=100, vlanTrunk=[{"id": 7}])
    result = network.add(netns)
    run(["bridge", "vlan", "add", "vid", "8", "dev", port(netns)]).ok()
    assert "has besides 8" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    run(["bridge", "vlan", "delete", "vid", "8", "dev", port(netns)]).ok()
    network.check(netns, result)
    run(["bridge", "vlan", "delete", "vid", "7", "dev", port(netns)]).ok()
    assert "lacks 7" in network.refused("CHECK", netns, {"prevResult": result})["msg"]


def test_a_bridge_that_does_not_filter_is_left_so_and_warned_of(ledger: Ledger, netns: Space) -> None:
    run(["ip", "link", "add", "cni0", "up", "type", "bridge"]).ok()
    network = Network(ledger, type="bridge", vlan=100)
    assert "does not filter VLANs" in network.warnings("ADD", netns)
    assert run(["cat", "/sys/class/net/cni0/bridge/vlan_filtering"]).ok().text == "0"
    assert carried(port(netns)) == {100: ACCESS}
    network.delete(netns)


def test_status_is_ready_where_vlans_are_to_be_had(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", vlan=100)
    assert network.ask("STATUS") == (0, None)
    network.add(netns)
    assert network.ask("STATUS") == (0, None)
