"""bridge: what a pod's end and its port are like, key by key."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from nodeplug.core.naming import identity
from nodeplug.kernel.rtnl import bridges, links
from tests.child import run
from tests.cni.pods import Network, addresses, host_links, host_local, link, routes, setting, static
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
    assert setting(HERE, "net/ipv6/conf", port_of(netns)[0].name, "accept_ra") == "0"
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


def send_frame(pod: Space, source: bytes) -> None:
    """A broadcast frame with that sender's address."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(b"\xff" * 6 + source + b"\x88\xb5" + b"nodeplug" * 6)

    pod.call(send)


def hears(pod: Space) -> socket.socket:
    def listen() -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        raw.bind(("eth0", 0x88B5))
        raw.settimeout(0.3)
        return raw

    return pod.call(listen)


def guards() -> set[str]:
    """What the nft table lists, as `set: element`."""
    found: set[str] = set()
    for entry in json.loads(run(["nft", "-j", "list", "ruleset", "bridge"]).ok().stdout)["nftables"]:
        if "set" in entry:
            for element in entry["set"].get("elem", []):
                found.add(f"{entry['set']['name']}: {json.dumps(element['elem']['val'])}")
    return found


def test_a_guarded_pod_sends_only_from_its_own_mac_address(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network = Network(ledger, type="bridge", macspoofchk=True, isGateway=True, ipam=host_local())
    free, other = Network(ledger, type="bridge", name="free"), ledger.netns()
    result = network.add(netns)
    free.add(other)
    mine, name = bytes.fromhex(result["interfaces"][2]["mac"].replace(":", "")), result["interfaces"][1]["name"]
    assert exchange("10.88.0.1", ledger.echo().port, space=netns) == "10.88.0.2"
    with hears(other) as ears:
        send_frame(netns, mine)
        assert ears.recv(2048)[6:12] == mine
        send_frame(netns, b"\x02\x00\x00\x00\x00\x66")
        with pytest.raises(TimeoutError):
            ears.recv(2048)
    with hears(netns) as ears:
        send_frame(other, b"\x02\x00\x00\x00\x00\x77")
        assert ears.recv(2048), "a pod that is not guarded may"
    network.check(netns, result)
    assert guards() == {f'guarded: "{name}"', f'allowed: {{"concat": ["{name}", "{mine.hex(":")}"]}}'}
    network.delete(netns)
    assert guards() == set()


def test_guards_are_made_again_with_the_next_pod_when_somebody_flushed_the_rules(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network = Network(ledger, type="bridge", macspoofchk=True)
    result = network.add(netns)
    before = guards()
    run(["nft", "flush", "ruleset"]).ok()
    assert "may send from any MAC address" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.add(ledger.netns())
    assert guards() > before
    network.check(netns, result)
    run(["nft", "flush", "ruleset"]).ok()
    network.delete(netns)


def test_a_guard_goes_with_gc_and_with_a_delete_that_says_nothing_of_it(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network, other = Network(ledger, type="bridge", macspoofchk=True), ledger.netns()
    network.add(netns)
    network.add(other)
    network.delete(netns, {"macspoofchk": False}, CNI_NETNS="")
    assert not any(identity("pods", netns.name, "eth0") in found for found in guards())
    assert len(guards()) == 2
    network.ask("GC", None, {"name": "another", "cni.dev/valid-attachments": []})
    assert len(guards()) == 2
    assert network.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert guards() == set()
    assert host_links() == {"cni0"}


def test_what_a_pod_sends_beyond_its_subnet_is_masqueraded(ledger: Ledger, netns: Space) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4, 6))
    far = ledger.netns()
    run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", far.path]).ok()
    ledger.link("up0")
    for space, ifname, host in ((HERE, "up0", "1"), (far, "eth0", "2")):
        for address in (f"192.0.2.{host}/24", f"2001:db8::{host}/64"):
            space.run("ip", "address", "add", address, "dev", ifname, *(["nodad"] if ":" in address else [])).ok()
        space.run("ip", "link", "set", ifname, "up").ok()
    result, other = network.add(netns), ledger.netns()
    network.add(other)
    for anywhere, outside, inside, source in (
        ("0.0.0.0", "192.0.2.2", "10.88.0.3", "192.0.2.1"),
        ("::", "2001:db8::2", "fd88::3", "2001:db8::1"),
    ):
        assert exchange(outside, ledger.echo(far, address=anywhere).port, space=netns) == source
        seen = exchange(inside, ledger.echo(other, address=anywhere).port, space=netns)
        assert seen in {"10.88.0.2", "fd88::2"}, "neighbours see the pod's own address"
    network.check(netns, result)
    network.delete(netns)
    network.delete(other)
    shown = run(["nft", "list", "ruleset"]).ok().text
    assert "10.88.0.2" not in shown
    assert "fd88::2" not in shown


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_either_backend_may_be_named(ledger: Ledger, netns: Space, backend: str) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=host_local())
    network.check(netns, network.add(netns))
    network.delete(netns)


def test_lost_masquerade_fails_check(ledger: Ledger, netns: Space) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipam=host_local())
    result = network.add(netns)
    run(["nft", "flush", "ruleset"]).ok()
    assert "is not masqueraded" in network.refused("CHECK", netns, {"prevResult": result})["msg"]


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
