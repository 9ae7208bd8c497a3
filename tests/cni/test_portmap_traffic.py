"""Host ports by bytes exchanged: from outside, from the host, from the pod itself and its neighbours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.child import run, until
from tests.cni.hostports import (
    BRIDGE,
    CLIENT,
    CLIENT6,
    GATEWAY,
    GATEWAY6,
    HOST,
    HOST6,
    Host,
    sysctl,
    to,
)
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import HERE
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "program:nft", "program:conntrack")


@pytest.fixture
def host(ledger: Ledger) -> Iterator[Host]:
    yield Host.make(ledger)


@pytest.fixture(params=[0, 1], ids=["bridge-nf 0", "bridge-nf 1"])
def bridged(request: pytest.FixtureRequest, host: Host) -> Host:
    host.bridge_netfilter(request.param)
    return host


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_host_port_is_reached_from_everywhere(bridged: Host, proto: str) -> None:
    pod, sibling = bridged.pod(), bridged.pod()
    bridged.ledger.echo(pod.space, proto=proto, port=80)
    bridged.add(pod, to(8080, 80, proto))
    assert exchange(HOST, 8080, proto=proto, space=bridged.outside) == CLIENT
    assert exchange(HOST, 8080, proto=proto) == HOST
    assert exchange(GATEWAY, 8080, proto=proto) == GATEWAY
    assert exchange("127.0.0.1", 8080, proto=proto) == GATEWAY
    for space in (pod.space, sibling.space):
        for address in (GATEWAY, HOST):
            assert exchange(address, 8080, proto=proto, space=space) == GATEWAY
    bridged.delete(pod)
    for space in (bridged.outside, HERE, pod.space, sibling.space):
        assert not reaches(HOST, 8080, proto=proto, space=space, timeout=0.5)
    assert not reaches("127.0.0.1", 8080, proto=proto, timeout=0.5)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_host_port_is_reached_by_ipv6(bridged: Host, proto: str) -> None:
    pod, sibling = bridged.pod(), bridged.pod()
    bridged.ledger.echo(pod.space, proto=proto, port=80, address="::")
    bridged.add(pod, to(8080, 80, proto))
    assert exchange(HOST6, 8080, proto=proto, space=bridged.outside) == CLIENT6
    assert exchange(HOST6, 8080, proto=proto) == HOST6
    for space in (pod.space, sibling.space):
        for address in (GATEWAY6, HOST6):
            assert exchange(address, 8080, proto=proto, space=space) == GATEWAY6
    bridged.delete(pod)
    assert not reaches(HOST6, 8080, proto=proto, space=bridged.outside, timeout=0.5)


def test_the_hosts_ipv6_loopback_is_refused_at_once(host: Host) -> None:
    pod = host.pod()
    host.ledger.echo(pod.space, port=80, address="::")
    host.add(pod, to(8080, 80))
    with pytest.raises(ConnectionRefusedError):
        exchange("::1", 8080)


@needs("sctp")
def test_a_host_port_of_sctp(bridged: Host) -> None:
    pod = bridged.pod()
    bridged.ledger.echo(pod.space, proto="sctp", port=80)
    bridged.add(pod, to(8080, 80, "sctp"))
    assert exchange(HOST, 8080, proto="sctp", space=bridged.outside) == CLIENT
    assert exchange("127.0.0.1", 8080, proto="sctp") == GATEWAY
    assert exchange(HOST, 8080, proto="sctp", space=pod.space) == GATEWAY


def test_a_hostip_takes_that_address_only(bridged: Host) -> None:
    pod, other = bridged.pod(), bridged.pod()
    bridged.ledger.echo(pod.space, port=80)
    bridged.ledger.echo(other.space, port=80)
    bridged.add(pod, to(8080, 80, host_ip=HOST), to(9090, 80, host_ip="127.0.0.1"))
    bridged.add(other, to(8080, 80, host_ip=GATEWAY))
    assert exchange(HOST, 8080, space=bridged.outside) == CLIENT
    assert not reaches("127.0.0.1", 8080, timeout=0.5)
    assert exchange("127.0.0.1", 9090) == GATEWAY
    assert not reaches(HOST, 9090, space=bridged.outside, timeout=0.5)
    assert exchange(GATEWAY, 8080, space=pod.space) == GATEWAY


def test_masq_all_hides_everybody_and_without_snat_nobody_is_hidden(bridged: Host) -> None:
    pod, open_pod = bridged.pod(), bridged.pod()
    for one in (pod, open_pod):
        bridged.ledger.echo(one.space, port=80)
    bridged.add(pod, to(8080, 80), masqAll=True)
    bridged.add(open_pod, to(8081, 80), snat=False)
    assert exchange(HOST, 8080, space=bridged.outside) == GATEWAY
    assert exchange("127.0.0.1", 8080) == GATEWAY
    assert exchange(HOST, 8080, space=pod.space) == GATEWAY
    assert exchange(HOST, 8081, space=bridged.outside) == CLIENT
    assert not reaches("127.0.0.1", 8081, timeout=0.5)


def test_traffic_of_pods_to_that_port_of_other_hosts_is_left_alone(bridged: Host) -> None:
    pod, sibling = bridged.pod(), bridged.pod()
    bridged.outside.run("ip", "route", "add", "10.99.0.0/16", "via", HOST).ok()
    bridged.ledger.echo(pod.space, port=80)
    bridged.ledger.echo(bridged.outside, port=8080)
    bridged.add(pod, to(8080, 80))
    assert exchange(CLIENT, 8080, space=sibling.space) == sibling.address
    assert exchange(CLIENT, 8080, space=pod.space) == pod.address


def test_another_translation_to_the_pods_port_keeps_its_source(bridged: Host) -> None:
    """A Service's clients on the same bridge are not masqueraded because the pod also has a host port."""
    pod, sibling = bridged.pod(), bridged.pod()
    bridged.ledger.table("ip", "service")
    rules = b"table ip service { chain prerouting { type nat hook prerouting priority dstnat - 5;\n"
    rules += f"ip daddr 10.200.0.1 tcp dport 81 dnat to {pod.address}:80\n}}\n}}\n".encode()
    run(["nft", "-f", "-"], stdin=rules).ok()
    bridged.ledger.echo(pod.space, port=80)
    bridged.add(pod, to(8080, 80))
    if sysctl("net.bridge.bridge-nf-call-iptables") == "1":
        assert exchange("10.200.0.1", 81, space=sibling.space) == sibling.address
    assert exchange(GATEWAY, 8080, space=sibling.space) == GATEWAY


def test_route_localnet_is_on_for_the_hosts_side_of_such_pods_only(host: Host) -> None:
    plain, mapped = host.pod(), host.pod()
    host.add(plain)
    host.add(plain, to(1, 2, host_ip=HOST))
    host.add(plain, to(1, 2, host_ip=HOST6))
    host.add(plain, to(1, 2), snat=False)
    assert sysctl(f"net.ipv4.conf.{BRIDGE}.route_localnet") == "0"
    host.add(mapped, to(8080, 80))
    assert sysctl(f"net.ipv4.conf.{BRIDGE}.route_localnet") == "1"
    for other in ("all", "default", "out", "lo"):
        assert sysctl(f"net.ipv4.conf.{other}.route_localnet") == "0"


def test_route_localnet_stays_off_for_a_link_that_is_no_pods(host: Host) -> None:
    """As behind macvlan, whose pods are routed by the uplink."""
    pod = host.pod()
    HERE.run("ip", "link", "add", host.ledger.link("uplink"), "type", "ifb").ok()
    HERE.run("ip", "link", "set", "uplink", "up").ok()
    HERE.run("ip", "route", "add", "10.55.0.0/16", "dev", "uplink").ok()
    before = {"cniVersion": "1.0.0", "ips": [{"address": "10.55.0.9/16"}]}
    host.add(pod, to(8080, 80), prevResult=before)
    assert sysctl("net.ipv4.conf.uplink.route_localnet") == "0"


def test_a_step_that_fails_takes_all_of_the_add_back(host: Host) -> None:
    pod = host.pod()
    host.ledger.adopt("read-only /proc/sys", lambda: run(["umount", "/proc/sys"]))
    run(["mount", "--bind", "/proc/sys", "/proc/sys"]).ok()
    run(["mount", "-o", "remount,bind,ro", "/proc/sys"]).ok()
    error = host.wrong("ADD", pod, to(8080, 80))
    assert "Read-only file system" in error["msg"] and "route_localnet" in error["msg"]
    assert "8080" not in run(["nft", "list", "ruleset"]).ok().text
    run(["umount", "/proc/sys"]).ok()
    host.add(pod, to(8080, 80))


def test_a_pod_does_not_reach_the_hosts_loopback_through_its_gateway(bridged: Host) -> None:
    pod = bridged.pod()
    port = bridged.ledger.echo(HERE, address="127.0.0.1").port
    bridged.add(pod, to(8080, 80))
    pod.space.run("ip", "route", "replace", "127.0.0.0/8", "via", GATEWAY, "dev", "eth0").ok()
    pod.space.run("ip", "route", "flush", "table", "local", "127.0.0.0/8")
    pod.space.run("ip", "addr", "flush", "dev", "lo")
    pod.space.run("sysctl", "-w", "net.ipv4.conf.all.route_localnet=1").ok()
    before = _dropped("to 127.0.0.0/8")
    assert not reaches("127.0.0.1", port, space=pod.space, timeout=0.5)
    assert not reaches("127.0.0.1", 8080, space=pod.space, timeout=0.5)
    assert _dropped("to 127.0.0.0/8") > before, "the packets came to the host, and were dropped there"
    run(["nft", "flush", "chain", "inet", "nodeplug", "raw"]).ok()
    assert exchange("127.0.0.1", port, space=pod.space), "without that chain they arrive"


def _dropped(title: str) -> int:
    """Packets that the host received from the bridge for 127.0.0.0/8, by a counter placed before nodeplug's chain."""
    listed = run(["nft", "-j", "list", "table", "inet", "watch"])
    if listed.code:
        script = (
            "table inet watch { chain raw { type filter hook prerouting priority -310;\n"
            'iif != lo ip daddr 127.0.0.0/8 counter comment "to 127.0.0.0/8"\n}\n}\n'
        )
        run(["nft", "-f", "-"], stdin=script.encode()).ok()
        return 0
    found = [item["rule"] for item in listed.json()["nftables"] if "rule" in item]
    (rule,) = [rule for rule in found if rule.get("comment") == title]
    return next(int(part["counter"]["packets"]) for part in rule["expr"] if "counter" in part)


@pytest.fixture(autouse=True)
def _no_watch() -> Iterator[None]:
    yield
    run(["nft", "delete", "table", "inet", "watch"])


def test_a_flushed_ruleset_comes_back_with_the_next_add_and_by_repair(bridged: Host) -> None:
    pod, later = bridged.pod(), bridged.pod()
    bridged.ledger.echo(pod.space, port=80)
    bridged.add(pod, to(8080, 80))
    assert bridged.portmap("CHECK", pod, to(8080, 80))[0] == 0
    run(["nft", "flush", "ruleset"]).ok()
    assert not reaches(HOST, 8080, space=bridged.outside, timeout=0.5)
    assert "tcp . 8080 is not in ports4" in bridged.wrong("CHECK", pod, to(8080, 80))["msg"]
    bridged.add(later, to(8081, 80))
    assert exchange(HOST, 8080, space=bridged.outside) == CLIENT
    assert bridged.portmap("CHECK", pod, to(8080, 80))[0] == 0
    run(["nft", "flush", "ruleset"]).ok()
    _repair()
    assert exchange(HOST, 8080, space=bridged.outside) == CLIENT
    assert bridged.portmap("CHECK", pod, to(8080, 80))[0] == 0


def _repair() -> None:
    done = run([CHECKOUT / "bin" / "nodeplug", "cni", "repair", "--json"]).ok()
    assert done.json()["table"] == "inet nodeplug"


def test_a_udp_client_that_never_stops_finds_the_pod_when_it_comes_and_the_next_one_after_it(host: Host) -> None:
    first, second = host.pod(), host.pod()
    for pod in (first, second):
        host.ledger.echo(pod.space, proto="udp", port=53)
    with contextlib.suppress(OSError):  # a flow to a port nobody has
        exchange(HOST, 53, proto="udp", space=host.outside, source=(CLIENT, 5000), timeout=0.3)
    host.add(first, to(53, 53, "udp"))
    assert exchange(HOST, 53, proto="udp", space=host.outside, source=(CLIENT, 5000)) == CLIENT
    host.delete(first)
    assert not reaches(HOST, 53, proto="udp", space=host.outside, timeout=0.3)
    with contextlib.suppress(OSError):
        exchange(HOST, 53, proto="udp", space=host.outside, source=(CLIENT, 5000), timeout=0.3)
    host.add(second, to(53, 53, "udp"))
    assert exchange(HOST, 53, proto="udp", space=host.outside, source=(CLIENT, 5000)) == CLIENT


def test_a_neighbours_dns_flow_survives_a_udp_host_port_53(host: Host) -> None:
    """It goes to another host, from one port, with an answer that depends on the tracked translation."""
    asking, pod = host.pod(), host.pod()
    host.ledger.table("ip", "masq")
    rules = b"table ip masq { chain postrouting { type nat hook postrouting priority srcnat;\nmasquerade random\n}\n}\n"
    run(["nft", "-f", "-"], stdin=rules).ok()
    host.ledger.echo(host.outside, proto="udp", port=53)
    source = (asking.address, 4000)
    assert exchange(CLIENT, 53, proto="udp", space=asking.space, source=source) == HOST
    before = _flow(asking.address)
    host.add(pod, to(53, 53, "udp"))
    host.delete(pod)
    assert exchange(CLIENT, 53, proto="udp", space=asking.space, source=source) == HOST
    assert _flow(asking.address) == before


def _flow(address: str) -> str:
    """The id of the one flow from an address."""
    (line,) = run(["conntrack", "-L", "-o", "id", "-p", "udp", "-s", address]).ok().text.splitlines()
    return line.rpartition("id=")[2]


def test_the_pods_own_port_gets_the_hairpin_flag_and_no_other(host: Host) -> None:
    pod, sibling = host.pod(), host.pod()
    host.add(sibling)
    host.add(pod, to(8080, 80))
    hairpin = {name: link["linkinfo"]["info_slave_data"]["hairpin"] for name, link in _ports().items()}
    assert hairpin == {pod.port: True, sibling.port: False}
    run(["bridge", "link", "set", "dev", pod.port, "hairpin", "off"]).ok()
    assert "has no hairpin flag" in host.wrong("CHECK", pod, to(8080, 80))["msg"]


def _ports() -> dict[str, dict]:  # type: ignore[type-arg]
    return {link["ifname"]: link for link in HERE.ip("link", "show", "master", BRIDGE)}


def test_a_forward_policy_of_drop_stops_it_and_the_add_says_why(host: Host) -> None:
    pod = host.pod()
    host.ledger.echo(pod.space, port=80)
    host.ledger.table("ip", "filter")
    script = b"table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }\n"
    run(["nft", "-f", "-"], stdin=script).ok()
    warned = host.add(pod, to(8080, 80))
    assert "chain FORWARD of the nft table ip filter drops by default" in warned
    assert "firewall" in warned
    assert not reaches(HOST, 8080, space=host.outside, timeout=0.5)


def test_conditions_limit_who_reaches_the_port(bridged: Host) -> None:
    pod, sibling = bridged.pod(), bridged.pod()
    bridged.ledger.echo(pod.space, port=80)
    bridged.add(pod, to(8080, 80), conditionsV4=["ip", "saddr", CLIENT])
    assert exchange(HOST, 8080, space=bridged.outside) == CLIENT
    assert not reaches(HOST, 8080, space=sibling.space, timeout=0.5)
    assert bridged.portmap("CHECK", pod, to(8080, 80), conditionsV4=["ip", "saddr", CLIENT])[0] == 0
    bridged.add(pod, to(8080, 80), conditionsV4=["-s", f"10.98.0.1,{CLIENT}"])
    assert exchange(HOST, 8080, space=bridged.outside) == CLIENT
    assert not reaches(HOST, 8080, space=sibling.space, timeout=0.5)
    bridged.add(pod, to(8080, 80), conditionsV4=["!", "-s", CLIENT], conditionsV6=["-s", CLIENT6])
    assert not reaches(HOST, 8080, space=bridged.outside, timeout=0.5)
    assert exchange(HOST, 8080, space=sibling.space) == GATEWAY
    run(["nft", "flush", "ruleset"]).ok()
    _repair()
    assert exchange(HOST, 8080, space=sibling.space) == GATEWAY
    bridged.delete(pod)
    assert not reaches(HOST, 8080, space=sibling.space, timeout=0.5)
    listed = run(["nft", "list", "ruleset"]).ok().text
    assert "chain np" not in listed


def test_a_connection_outlives_the_add_of_another_pod(host: Host) -> None:
    pod, other = host.pod(), host.pod()
    host.ledger.echo(pod.space, port=80)
    host.add(pod, to(8080, 80))
    until(lambda: reaches(HOST, 8080, space=host.outside), "the first exchange")
    host.add(other, to(8081, 80), to(8082, 80, "udp"))
    host.delete(other)
    assert exchange(HOST, 8080, space=host.outside) == CLIENT
