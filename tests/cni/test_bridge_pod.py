"""bridge: what a pod's end and its port are like, key by key."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.core.naming import identity
from nodeplug.kernel.rtnl import bridges, links
from tests.child import run
from tests.cni.pods import Network, addresses, host_local, link, routes, setting, static
from tests.ledger import Ledger
from tests.space import HERE, Space
from tests.traffic import exchange, reaches

pytestmark = pytest.mark.needs("sandbox")


def port_of(pod: Space) -> tuple[links.Link, bridges.Port]:
    """The host's end and what the bridge knows of it."""
    found = link(identity("pods", pod.name, "eth0"))
    assert found is not None
    port = bridges.port_of(found)
    assert port is not None
    return found, port


def test_a_pod_without_ipam_has_a_link_and_nothing_else(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge")
    result = network.add(netns)
    assert set(result) == {"cniVersion", "interfaces"}
    assert addresses(netns) == set()
    inside = link("eth0", netns)
    assert inside is not None
    assert inside.operstate == links.OPER_UP
    assert port_of(netns)[1].state == bridges.STATE_FORWARDING
    network.check(netns, result)
    network.delete(netns)


def test_frames_pass_between_pods_without_ipam(ledger: Ledger, netns: Space) -> None:
    network, other = Network(ledger, type="bridge"), ledger.netns()
    for pod, address in ((netns, "10.5.0.1/24"), (other, "10.5.0.2/24")):
        network.add(pod)
        pod.run("ip", "address", "add", address, "dev", "eth0").ok()
    server = ledger.echo(other)
    assert exchange("10.5.0.2", server.port, space=netns) == "10.5.0.1"


@pytest.mark.parametrize("mtu", [68, 1400, 9000, 65535])
def test_mtu_is_the_bridges_and_that_of_both_ends(ledger: Ledger, netns: Space, mtu: int) -> None:
    network = Network(ledger, type="bridge", mtu=mtu)
    network.add(netns)
    found = (link("cni0"), port_of(netns)[0], link("eth0", netns))
    assert [one and one.mtu for one in found] == [mtu, mtu, mtu]


def test_an_existing_bridge_keeps_its_mtu(ledger: Ledger, netns: Space) -> None:
    run(["ip", "link", "add", "cni0", "mtu", "1450", "type", "bridge"]).ok()
    Network(ledger, type="bridge", mtu=1300).add(netns)
    bridge, end = link("cni0"), link("eth0", netns)
    assert [bridge and bridge.mtu, end and end.mtu] == [1300, 1300]  # the kernel lowers it to its ports'
    run(["ip", "link", "set", "cni0", "mtu", "1250"]).ok()
    Network(ledger, type="bridge", mtu=1300).add(ledger.netns())
    bridge = link("cni0")
    assert bridge and bridge.mtu == 1250


@pytest.mark.parametrize("wanted", [False, True])
def test_hairpin_mode_is_the_ports(ledger: Ledger, netns: Space, wanted: bool) -> None:
    network = Network(ledger, type="bridge", hairpinMode=wanted)
    result = network.add(netns)
    assert port_of(netns)[1].hairpin is wanted
    network.check(netns, result)
    run(["bridge", "link", "set", "dev", port_of(netns)[0].name, "hairpin", "off" if wanted else "on"]).ok()
    if wanted:
        assert "hairpin mode" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    else:
        network.check(netns, result)  # as portmap sets it, behind bridge in a chain


@pytest.mark.parametrize("isolated", [False, True])
def test_isolated_ports_reach_the_host_and_not_each_other(ledger: Ledger, netns: Space, isolated: bool) -> None:
    network = Network(ledger, type="bridge", isGateway=True, portIsolation=isolated, ipam=host_local())
    other = ledger.netns()
    result = network.add(netns)
    network.add(other)
    assert port_of(netns)[1].isolated is isolated
    server, at_host = ledger.echo(other), ledger.echo()
    assert exchange("10.88.0.1", at_host.port, space=netns) == "10.88.0.2"
    assert reaches("10.88.0.3", server.port, space=netns, timeout=0.5) is not isolated
    network.check(netns, result)


@pytest.mark.parametrize("promisc", [False, True])
def test_promiscuous_mode_is_the_bridges(ledger: Ledger, netns: Space, promisc: bool) -> None:
    network = Network(ledger, type="bridge", promiscMode=promisc)
    result = network.add(netns)
    bridge = link("cni0")
    assert bridge and bool(bridge.flags & links.IFF_PROMISC) is promisc
    network.check(netns, result)
    network.add(ledger.netns())


def test_a_bridge_that_lost_its_promiscuous_mode_fails_check(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", promiscMode=True)
    result = network.add(netns)
    run(["ip", "link", "set", "cni0", "promisc", "off"]).ok()
    assert "promiscuous" in network.refused("CHECK", netns, {"prevResult": result})["msg"]


ENV, ARGS, RUNTIME = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


@pytest.mark.parametrize(
    ("extra", "variables", "expected"),
    [
        ({}, {"CNI_ARGS": f"MAC={ENV}"}, ENV),
        ({}, {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={ENV}"}, ENV),
        ({"args": {"cni": {"mac": ARGS}}}, {"CNI_ARGS": f"MAC={ENV}"}, ARGS),
        (
            {"args": {"cni": {"mac": ARGS}}, "runtimeConfig": {"mac": RUNTIME}},
            {"CNI_ARGS": f"MAC={ENV}"},
            RUNTIME,
        ),
        ({"runtimeConfig": {"mac": ""}, "args": {"cni": {"mac": ARGS.upper()}}}, {}, ARGS),
        ({"runtimeConfig": {"mac": "02-00-00-00-00-03"}}, {}, RUNTIME),
        ({"runtimeConfig": {"mac": "0200.0000.0003"}}, {}, RUNTIME),
    ],
)
def test_the_mac_address_asked_for_last_in_order_wins(
    ledger: Ledger, netns: Space, extra: dict[str, Any], variables: dict[str, str], expected: str
) -> None:
    result = Network(ledger, type="bridge").add(netns, extra, **variables)
    inside = link("eth0", netns)
    assert inside and inside.mac.hex(":") == expected == result["interfaces"][2]["mac"]


IPAM_DNS = {"nameservers": ["10.0.0.10"], "domain": "pods.example"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, IPAM_DNS),
        ({}, IPAM_DNS),
        ({"nameservers": None, "domain": ""}, IPAM_DNS),
        ({"nameservers": ["192.0.2.1"]}, {"nameservers": ["192.0.2.1"]}),
        ({"search": []}, None),
    ],
)
def test_dns_of_the_configuration_takes_the_place_of_the_address_managers(
    ledger: Ledger, netns: Space, given: Any, expected: Any
) -> None:
    network = Network(ledger, type="bridge", dns=given, ipam=static("10.5.0.2/24", dns=IPAM_DNS))
    assert network.add(netns).get("dns") == expected


def test_a_pod_whose_interface_is_to_stay_down_has_it_down(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", disableContainerInterface=True)
    result = network.add(netns)
    inside = link("eth0", netns)
    assert inside and not inside.up
    network.check(netns, result)
    network.delete(netns)


def test_duplicate_addresses_are_detected_where_asked_for(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", enabledad=True, ipam=static("fd05::2/64"))
    network.add(netns)
    assert setting(netns, "net/ipv6/conf/eth0/accept_dad") == "1"
    (found,) = netns.ip("address", "show", "dev", "eth0")
    assert not any("tentative" in a for a in found["addr_info"])
    other = ledger.netns()
    error = network.refused("ADD", other)
    assert (error["code"], "fd05::2" in error["msg"]) == (100, True)
    assert other.links() == {"lo"}


@pytest.mark.parametrize("enabledad", [False, True])
def test_settings_of_the_pods_link(ledger: Ledger, netns: Space, enabledad: bool) -> None:
    Network(ledger, type="bridge", enabledad=enabledad, ipam=static("10.5.0.2/24", "fd05::2/64")).add(netns)
    assert setting(netns, "net/ipv4/conf/eth0/arp_notify") == "1"
    assert setting(netns, "net/ipv6/conf/eth0/accept_dad") == str(int(enabledad))
    assert setting(HERE, "net/ipv6/conf", port_of(netns)[0].name, "disable_ipv6") == "1"
    assert setting(HERE, "net/ipv6/conf/cni0/accept_ra") == "0"


@pytest.mark.parametrize("address", ["10.5.0.2/24", "fd05::2/64"])
def test_neighbours_learn_at_once_who_has_an_address_now(ledger: Ledger, netns: Space, address: str) -> None:
    """Theirs would else be the MAC address of the pod before, for up to a minute."""
    family = "-6" if ":" in address else "-4"
    near = ledger.netns()
    asker = Network(ledger, type="bridge", ipam=static("10.5.0.9/24", "fd05::9/64"))
    asker.add(near)
    network = Network(ledger, type="bridge", ipam=static(address))
    old = network.add(netns)["interfaces"][2]["mac"]
    anywhere, ip = ("::" if ":" in address else "0.0.0.0"), address.split("/")[0]
    assert exchange(ip, ledger.echo(netns, address=anywhere).port, space=near)
    assert [found["lladdr"] for found in near.ip(family, "neigh", "show", ip)] == [old]
    network.delete(netns)
    new = network.add(ledger.netns())["interfaces"][2]["mac"]
    assert old != new
    assert [found["lladdr"] for found in near.ip(family, "neigh", "show", ip)] == [new]


def test_routes_of_the_address_manager_are_the_pods(ledger: Ledger, netns: Space) -> None:
    ipam = static("10.5.0.2/24,10.5.0.1", routes=[{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.5.0.7"}])
    network = Network(ledger, type="bridge", ipam=ipam)
    result = network.add(netns)
    assert result["routes"] == [{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.5.0.7"}]
    found = routes(netns)
    assert (found["10.9.0.0/16"]["gateway"], found["default"]["gateway"]) == ("10.5.0.1", "10.5.0.7")
    bridge = link("cni0")
    assert bridge is not None
    assert addresses(HERE, "cni0") == set(), "without isGateway the bridge has no address"
    network.check(netns, result)
