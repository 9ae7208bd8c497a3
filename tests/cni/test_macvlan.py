"""macvlan: a pod as a station of the node's own network, in every mode, and each key of its table."""

from __future__ import annotations

from typing import Any

import pytest

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


def test_macvlan_passthru_has_the_master_for_itself_with_its_mac_address(
    ledger: Ledger, lan: Lan, netns: Space
) -> None:
    network = macvlan(ledger, mode="passthru")
    result = network.add(netns)
    master = link("lan0")
    assert master and result["interfaces"][0]["mac"] == master.mac.hex(":")
    assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns)
    network.check(netns, result)
    other = ledger.netns()
    error = network.refused("ADD", other)
    assert "cannot make macvlan eth0 on lan0: macvlan add" in error["msg"], error
    assert (other.links(), len(network.leases())) == ({"lo"}, 1)


def test_macvlan_without_ipam_is_layer_2_only(ledger: Ledger, lan: Lan, netns: Space) -> None:
    network = macvlan(ledger, ipam={})
    result = network.add(netns)
    assert set(result) == {"cniVersion", "interfaces"}
    assert addresses(netns) == set()
    netns.run("ip", "address", "add", "10.88.0.9/24", "dev", "eth0").ok()
    assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns) == "10.88.0.9"
    network.check(netns, result)
    network.delete(netns)
    assert netns.links() == {"lo"}


OWN, ENV, ARGS, RUNTIME = (f"02:00:00:00:00:0{n}" for n in range(1, 5))


@pytest.mark.parametrize(
    ("keys", "variables", "expected"),
    [
        ({"mac": OWN}, {}, OWN),
        ({"mac": OWN}, {"CNI_ARGS": f"MAC={ENV}"}, ENV),
        ({"mac": OWN}, {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={ENV}"}, ENV),
        ({"mac": OWN, "args": {"cni": {"mac": ARGS}}}, {"CNI_ARGS": f"MAC={ENV}"}, ARGS),
        ({"args": {"cni": {"mac": ARGS}}, "runtimeConfig": {"mac": RUNTIME}}, {"CNI_ARGS": f"MAC={ENV}"}, RUNTIME),
        ({"runtimeConfig": {"mac": ""}, "mac": OWN.replace(":", "-")}, {}, OWN),
    ],
)
def test_macvlan_mac_address_comes_from_who_goes_before_the_others(
    ledger: Ledger, lan: Lan, netns: Space, keys: dict[str, Any], variables: dict[str, str], expected: str
) -> None:
    result = macvlan(ledger, ipam={}, **keys).add(netns, **variables)
    found = link("eth0", netns)
    assert found and found.mac.hex(":") == expected == result["interfaces"][0]["mac"]


@pytest.mark.parametrize(("mtu", "expected"), [(None, 1400), (0, 1400), (1400, 1400), (1280, 1280), (68, 68)])
def test_macvlan_mtu_is_given_or_that_of_the_master(
    ledger: Ledger, netns: Space, mtu: int | None, expected: int
) -> None:
    Lan(ledger, mtu=1400)
    macvlan(ledger, mtu=mtu).add(netns)
    found = link("eth0", netns)
    assert found and found.mtu == expected


@pytest.mark.parametrize(
    ("keys", "path", "said"),
    [
        ({"mtu": 1501}, "$.mtu", "invalid MTU 1501, must be [0, master MTU(1500)]"),
        ({"mtu": -1}, "$.mtu", "got -1"),
        ({"mtu": "1500"}, "$.mtu", "got a string"),
        ({"mode": "bridged"}, "$.mode", 'got "bridged"; did you mean bridge'),
        ({"mac": "nonsense"}, "$.mac", "is not the MAC address"),
        ({"bcqueuelen": -1}, "$.bcqueuelen", "got -1"),
        ({"master": "a/b"}, "$.master", "it holds /"),
        ({"linkInContainer": "yes"}, "$.linkInContainer", "expected true or false"),
        ({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}, "$.runtimeConfig.mac", "of one station"),
        ({"mtu": 1279, "ipam": static("fd88::2/64")}, "", "IPv6 needs an MTU of 1280"),
    ],
)
def test_macvlan_wrong_keys_are_told_by_their_paths(
    ledger: Ledger, lan: Lan, netns: Space, keys: dict[str, Any], path: str, said: str
) -> None:
    network = macvlan(ledger, **keys)
    error = network.refused("ADD", netns)
    assert error["code"] == 7
    told = error["details"] if path else error["msg"]
    assert (path in told, said in told) == (True, True), error
    assert (netns.links(), network.leases()) == ({"lo"}, set())


def test_macvlan_cni_args_without_meaning_are_refused(ledger: Ledger, lan: Lan, netns: Space) -> None:
    for args in ("MAC=nonsense", "K8S_POD_NAME=x"):
        error = macvlan(ledger).refused("ADD", netns, CNI_ARGS=args)
        assert (error["code"], "CNI_ARGS" in error["msg"]) == (4, True)


@pytest.mark.parametrize(
    ("address", "gateway"),
    [("10.99.0.2/24", "10.99.0.1"), ("fd99::2/64", "fd99::1"), ("203.0.113.9/24", "203.0.113.2")],
)
def test_macvlan_without_a_master_sits_on_the_link_of_the_default_route(
    ledger: Ledger, lan: Lan, netns: Space, address: str, gateway: str
) -> None:
    """Also where the address that is asked about has a route of its own."""
    other = Lan(ledger, master="lan1")
    network = macvlan(ledger, master="")
    assert network.refused("ADD", netns)["msg"].startswith("no default route interface found")
    assert network.refused("STATUS")["code"] == 50
    other.route_by_default(address, gateway)
    result = network.add(netns)
    found, master = link("eth0", netns), link("lan1")
    assert found and master and found.parent == master.index
    network.check(netns, result)
    assert network.ask("STATUS") == (0, None)


def test_macvlan_default_route_of_least_metric_counts(ledger: Ledger, lan: Lan, netns: Space) -> None:
    other = Lan(ledger, master="lan1")
    lan.home.run("ip", "address", "add", "203.0.113.7/24", "dev", "lan0").ok()
    lan.home.run("ip", "route", "add", "default", "via", "203.0.113.1", "dev", "lan0", "metric", "200").ok()
    lan.home.run("ip", "route", "add", "unreachable", "default", "metric", "10").ok()
    other.home.run("ip", "route", "add", "default", "dev", "lan1", "metric", "100").ok()
    macvlan(ledger, master="").add(netns)
    found, master = link("eth0", netns), link("lan1")
    assert found and master and found.parent == master.index


def test_macvlan_with_a_master_in_the_pod(ledger: Ledger, netns: Space) -> None:
    lan = Lan(ledger, home=netns, master="net0", mtu=1400)
    lan.route_by_default()
    network = macvlan(ledger, master="net0", linkInContainer=True)
    assert "failed to lookup master 'net0'" in network.refused("ADD", ledger.netns())["msg"]
    assert network.ask("STATUS") == (0, None)
    error = network.refused("ADD", netns, {"mtu": 1401})
    assert "master MTU(1400)" in error["details"]
    for extra in ({}, {"master": ""}):
        result = network.add(netns, extra)
        found, master = link("eth0", netns), link("net0", netns)
        assert found and master and (found.parent, found.mtu) == (master.index, 1400)
        assert exchange("10.88.0.1", ledger.echo(lan.station).port, space=netns)
        network.check(netns, result, extra)
        network.delete(netns)
        assert netns.links() == {"lo", "net0"}


def test_macvlan_delete_and_status_when_the_master_has_gone(ledger: Ledger, lan: Lan, netns: Space) -> None:
    """The kernel took the link along."""
    network = macvlan(ledger)
    result = network.add(netns)
    lan.home.run("ip", "link", "delete", "lan0").ok()
    network.delete(netns, {"prevResult": result})
    network.delete(netns)
    assert (netns.links(), network.leases()) == ({"lo"}, set())
    error = network.refused("ADD", netns)
    assert (error["code"], error["msg"]) == (5, "failed to lookup master 'lan0': the host has no such link")
    error = network.refused("STATUS")
    assert (error["code"], error["msg"]) == (50, "failed to lookup master 'lan0': the host has no such link")


def test_macvlan_check_names_another_mode_or_master(ledger: Ledger, lan: Lan, netns: Space) -> None:
    Lan(ledger, master="lan1")
    network = macvlan(ledger)
    answer = network.add(netns)
    for extra, said in (
        ({"mode": "vepa"}, "eth0 is in mode bridge, not vepa"),
        ({"master": "lan1"}, "eth0 does not sit on lan1"),
        ({"master": "lan2"}, "failed to lookup master 'lan2'"),
    ):
        assert said in network.refused("CHECK", netns, {"prevResult": answer, **extra})["msg"]


def test_macvlan_on_a_macvlan_is_checked_by_what_carries_both(ledger: Ledger, lan: Lan, netns: Space) -> None:
    run = lan.home.run
    run("ip", "link", "add", ledger.link("upper"), "link", "lan0", "type", "macvlan", "mode", "bridge").ok()
    network = macvlan(ledger, master="upper")
    network.check(netns, network.add(netns))


def test_macvlan_queue_for_frames_to_all_is_as_long_as_asked(ledger: Ledger, lan: Lan, netns: Space) -> None:
    macvlan(ledger, bcqueuelen=4321).add(netns)
    found = link("eth0", netns)
    assert found and uppers.broadcast_queue(found) == 4321


@pytest.mark.parametrize("address", ["10.88.0.7/24", "fd88::7/64"])
def test_macvlan_neighbours_learn_at_once_who_has_an_address_now(
    ledger: Ledger, lan: Lan, netns: Space, address: str
) -> None:
    family, ip = "-6" if ":" in address else "-4", address.split("/")[0]
    network = macvlan(ledger, ipam=static(address))
    old = network.add(netns)["interfaces"][0]["mac"]
    anywhere = "::" if ":" in address else "0.0.0.0"
    assert exchange(ip, ledger.echo(netns, address=anywhere).port, space=lan.station)
    assert [found["lladdr"] for found in lan.station.ip(family, "neigh", "show", ip)] == [old]
    network.delete(netns)
    new = network.add(ledger.netns())["interfaces"][0]["mac"]
    assert old != new
    assert [found["lladdr"] for found in lan.station.ip(family, "neigh", "show", ip)] == [new]


def test_macvlan_address_that_a_station_has_is_refused(ledger: Ledger, lan: Lan, netns: Space) -> None:
    error = macvlan(ledger, ipam=static("fd88::1/64")).refused("ADD", netns)
    assert (error["code"], "somebody else in the network has the address fd88::1" in error["msg"]) == (100, True)
    assert netns.links() == {"lo"}


def test_macvlan_settings_and_routes_of_the_pod(ledger: Ledger, lan: Lan, netns: Space) -> None:
    ipam = static("10.88.0.2/24,10.88.0.1", routes=[{"dst": "0.0.0.0/0"}, {"dst": "10.7.0.0/16", "gw": "10.88.0.9"}])
    macvlan(ledger, ipam=ipam).add(netns)
    found = routes(netns)
    assert (found["default"]["gateway"], found["10.7.0.0/16"]["gateway"]) == ("10.88.0.1", "10.88.0.9")
    assert setting(netns, "net/ipv4/conf/eth0/arp_notify") == "1"


IPAM_DNS = {"nameservers": ["10.0.0.10"], "domain": "pods.example"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, IPAM_DNS), ({"nameservers": ["192.0.2.1"]}, {"nameservers": ["192.0.2.1"]}), ({"search": []}, None)],
)
def test_macvlan_dns_of_the_configuration_takes_the_place_of_the_address_managers(
    ledger: Ledger, lan: Lan, netns: Space, given: Any, expected: Any
) -> None:
    network = macvlan(ledger, dns=given, ipam=static("10.88.0.2/24", dns=IPAM_DNS))
    assert network.add(netns).get("dns") == expected
