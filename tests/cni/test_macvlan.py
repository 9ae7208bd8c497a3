"""macvlan: a pod as a station of the node's own network, in every mode, and each key of its table."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.cni.plugins import podlink
from nodeplug.kernel.rtnl import uppers
from tests.cni.calls import VERSIONS
from tests.cni.lans import Lan
from tests.cni.pods import Network, addresses, host_local, link, routes, setting, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "link:macvlan")


@pytest.fixture
def lan(ledger: Ledger) -> Lan:
    return Lan(ledger)


def macvlan(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, **{"type": "macvlan", "master": "lan0", "ipam": host_local(), **config})


@pytest.mark.parametrize("version", VERSIONS)
def test_macvlan_add_check_delete_in_every_version(ledger: Ledger, lan: Lan, netns: Space, version: str) -> None:
    network = macvlan(ledger, cniVersion=version)
    result = network.add(netns)
    assert addresses(netns) == {"10.88.0.2/24"}
    if version >= "0.3.0":
        inside = link("eth0", netns)
        assert inside is not None
        assert result["interfaces"] == [{"name": "eth0", "mac": inside.mac.hex(":"), "sandbox": netns.path}]
        assert [ip["interface"] for ip in result["ips"]] == [0]
    if version >= "0.4.0":
        network.check(netns, result)
    network.delete(netns)
    assert (netns.links(), network.leases()) == ({"lo"}, set())


def test_macvlan_pod_reaches_the_network_of_its_master(ledger: Ledger, lan: Lan, netns: Space) -> None:
    network = macvlan(ledger, ipam=host_local(4, 6))
    result = network.add(netns)
    own = [ip["address"].split("/")[0] for ip in result["ips"]]
    there = ledger.echo(lan.station)
    there6 = ledger.echo(lan.station, address="::")
    assert exchange("10.88.0.1", there.port, space=netns) == own[0]
    assert exchange("fd88::1", there6.port, space=netns) == own[1]
    assert exchange(own[0], ledger.echo(netns).port, space=lan.station) == "10.88.0.1"


@pytest.mark.parametrize(("mode", "reached"), [("bridge", True), ("", True), ("private", False), ("vepa", False)])
def test_macvlan_mode_says_whom_a_pod_reaches(ledger: Ledger, lan: Lan, netns: Space, mode: str, reached: bool) -> None:
    network, other = macvlan(ledger, mode=mode), ledger.netns()
    results = [network.add(pod) for pod in (netns, other)]
    found = link("eth0", netns)
    assert found and uppers.macvlan_mode(found) == (mode or "bridge")
    there = results[1]["ips"][0]["address"].split("/")[0]
    assert reaches(there, ledger.echo(other).port, space=netns, timeout=0.5) is reached
    assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns)
    network.check(netns, results[0])
