"""Pods' traffic through hosts that drop what they forward, by bytes exchanged: who drops x bridge-nf-call-iptables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from nodeplug.cni.filter.passage import MARK
from tests.child import run
from tests.cni.calls import ask, environment
from tests.cni.hostports import CLIENT, CLIENT6, GATEWAY, HOST, HOST6, NETWORK, Host, Pod, to
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE
from tests.traffic import exchange, reaches

pytestmark = needs("sandbox", "program:nft", "program:conntrack", "program:iptables-nft", "program:iptables-legacy")

FAMILIES = ("iptables", "ip6tables")


def by_iptables(kind: str, *rules: str) -> Callable[[Ledger], None]:
    def drop(ledger: Ledger) -> None:
        for tool, family in (("iptables", "ip"), ("ip6tables", "ip6")):
            if kind == "nft":
                for name in ("filter", "mangle"):
                    ledger.table(family, name)
            else:
                clear = partial(run, [f"{tool}-legacy-restore"], stdin=b"*filter\n:FORWARD ACCEPT\nCOMMIT\n")
                clear().ok()
                ledger.adopt(tool, clear)
            for rule in rules:
                run([f"{tool}-{kind}", *rule.split()]).ok()

    return drop


def by_nft(script: str) -> Callable[[Ledger], None]:
    def drop(ledger: Ledger) -> None:
        for family in ("inet", "ip", "ip6"):
            ledger.table(family, "guard")
        run(["nft", "-f", "-"], stdin=script.encode()).ok()

    return drop


POLICY = "chain forward { type filter hook forward priority filter; policy drop; ct state vmap { invalid : drop }; };"
DROPPERS = {
    "nobody": lambda ledger: None,
    "iptables-nft, policy": by_iptables("nft", "-P FORWARD DROP"),
    "iptables-nft, last rule": by_iptables("nft", "-A FORWARD -j REJECT"),
    "iptables-nft, own chain": by_iptables("nft", "-N guard", "-A guard -j DROP", "-A FORWARD -j guard"),
    "iptables-nft, mangle": by_iptables("nft", "-t mangle -P FORWARD DROP", "-P FORWARD DROP"),
    "iptables-legacy, policy": by_iptables("legacy", "-P FORWARD DROP"),
    "iptables-legacy, last rule": by_iptables("legacy", "-A FORWARD -j REJECT"),
    "nft, policy": by_nft(f"table inet guard {{ {POLICY} }}"),
    "nft, per family": by_nft(f"table ip guard {{ {POLICY} }}\ntable ip6 guard {{ {POLICY} }}"),
    "nft, last rule": by_nft(
        "table inet guard { chain more { counter drop; };"
        "chain forward { type filter hook forward priority filter; ct state invalid drop; jump more; }; }"
    ),
    "two at once": lambda ledger: [
        drop(ledger) for drop in (by_iptables("nft", "-P FORWARD DROP"), by_nft(f"table inet guard {{ {POLICY} }}"))
    ],
}


def firewall(command: str, pod: Pod, **keys: Any) -> tuple[int, Any, str]:
    config = {"cniVersion": "1.1.0", "name": NETWORK, "type": "firewall", "prevResult": pod.result("1.1.0"), **keys}
    env = environment(command, CNI_CONTAINERID=pod.container, CNI_NETNS=pod.space.path)
    return ask("firewall", env, config)


def add(pod: Pod, **keys: Any) -> str:
    code, answer, stderr = firewall("ADD", pod, **keys)
    assert (code, answer) == (0, pod.result("1.1.0"))
    assert firewall("CHECK", pod, **keys)[:2] == (0, None)
    return stderr


def known_outside(host: Host) -> None:
    """Let the client outside know the way to the pods."""
    for net, router in (("10.99.0.0/16", HOST), ("fd99::/64", HOST6)):
        host.outside.run("ip", "route", "add", net, "via", router).ok()


@pytest.fixture
def host(ledger: Ledger) -> Iterator[Host]:
    yield Host.make(ledger)


@pytest.mark.parametrize("bridge_netfilter", [0, 1], ids=["bridged apart", "bridged through iptables"])
@pytest.mark.parametrize("who", DROPPERS)
def test_pods_send_and_get_whoever_drops(ledger: Ledger, host: Host, who: str, bridge_netfilter: int) -> None:
    DROPPERS[who](ledger)
    host.bridge_netfilter(bridge_netfilter)
    pod, other, stranger = host.pod(), host.pod(), host.pod()
    known_outside(host)
    outside = {4: ledger.echo(host.outside), 6: ledger.echo(host.outside, address="::")}
    inside = {4: ledger.echo(pod.space), 6: ledger.echo(pod.space, address="::")}
    if who != "nobody":
        assert not reaches(CLIENT, outside[4].port, space=pod.space, timeout=0.3)
    assert host.portmap("ADD", pod, to(8080, inside[4].port))[0] == 0
    assert add(pod) == "" and add(other) == ""
    # The pod to the world, the world to the pod, by a host port, and to a neighbour.
    assert exchange(CLIENT, outside[4].port, space=pod.space) == pod.address
    assert exchange(CLIENT6, outside[6].port, space=pod.space) == pod.address6
    assert exchange(pod.address, inside[4].port, space=host.outside) == CLIENT
    assert exchange(pod.address6, inside[6].port, space=host.outside) == CLIENT6
    assert exchange(HOST, 8080, space=host.outside) == CLIENT
    assert exchange(pod.address, inside[4].port, space=other.space) == other.address
    assert exchange(pod.address6, inside[6].port, space=other.space) == other.address6
    # Who is none of ours is dropped as before; and nobody is kept from the host.
    if who != "nobody":
        assert not reaches(CLIENT, outside[4].port, space=stranger.space, timeout=0.3)
    for one in (pod, other):
        assert firewall("DEL", one, prevResult=None)[:2] == (0, None)
    if who != "nobody":
        assert not reaches(CLIENT, outside[4].port, space=pod.space, timeout=0.3)
    host.delete(pod)


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_prints_and_loads_what_is_in_it_with_the_same_meaning(ledger: Ledger, host: Host, kind: str) -> None:
    by_iptables(kind, "-P FORWARD DROP", "-A FORWARD -i lo -j ACCEPT")(ledger)
    pods = [host.pod() for _ in range(3)]
    outside = ledger.echo(host.outside)
    known_outside(host)
    saved = []
    for pod in pods:
        add(pod, ingressPolicy="same-bridge")
        saved.append([run([f"{tool}-{kind}", "-S"]).ok().text for tool in FAMILIES])
    assert saved[0] == saved[1] == saved[2], "rules do not grow with pods"
    for listed, own in zip(saved[0], ("ip", "ip6"), strict=True):
        assert listed.splitlines()[3:] == [
            "-N CNI-ADMIN",
            "-N CNI-FORWARD",
            '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
            "-A FORWARD -i lo -j ACCEPT",
            '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN',
            f"-A CNI-FORWARD -m mark --mark {MARK:#x}/{MARK:#x} -m comment --comment"
            ' "nodeplug: what pods send and get" -j ACCEPT',
        ], own
    whole = run([f"iptables-{kind}-save"]).ok().stdout
    run([f"iptables-{kind}-restore"], stdin=whole).ok()
    assert exchange(CLIENT, outside.port, space=pods[0].space) == pods[0].address
    assert firewall("CHECK", pods[0], ingressPolicy="same-bridge")[0] == 0
    run([f"iptables-{kind}", "-F", "FORWARD"]).ok()
    code, answer, _ = firewall("CHECK", pods[0], ingressPolicy="same-bridge")
    assert (code, "drops what the pod sends and gets" in answer["msg"]) == (1, True)
    add(host.pod())
    assert exchange(CLIENT, outside.port, space=pods[0].space) == pods[0].address


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_the_administrators_chain_is_asked_first(ledger: Ledger, host: Host, kind: str) -> None:
    by_iptables(kind, "-P FORWARD DROP", "-N MINE", "-A MINE -p tcp --dport 7001 -j DROP")(ledger)
    pod = host.pod()
    known_outside(host)
    allowed, forbidden = ledger.echo(host.outside, port=7002), ledger.echo(host.outside, port=7001)
    add(pod, iptablesAdminChainName="MINE")
    assert exchange(CLIENT, allowed.port, space=pod.space) == pod.address
    assert not reaches(CLIENT, forbidden.port, space=pod.space, timeout=0.3)
    listed = run([f"iptables-{kind}", "-S", "CNI-FORWARD"]).ok().text
    assert listed.splitlines()[1].endswith("-j MINE")


def test_an_administrators_chain_that_is_named_is_asked_although_nothing_drops(ledger: Ledger, host: Host) -> None:
    by_iptables("nft", "-N MINE", "-A MINE -p tcp --dport 7001 -j DROP", "-P FORWARD ACCEPT")(ledger)
    pod = host.pod()
    known_outside(host)
    forbidden = ledger.echo(host.outside, port=7001)
    add(pod, iptablesAdminChainName="MINE")
    assert not reaches(CLIENT, forbidden.port, space=pod.space, timeout=0.3)


def test_what_an_own_rule_of_somebody_elses_chain_drops_stays_dropped(ledger: Ledger, host: Host) -> None:
    chain = "chain forward { type filter hook forward priority filter; policy drop; tcp dport 7001 drop; };"
    by_nft(f"table inet guard {{ {chain} }}")(ledger)
    pod = host.pod()
    known_outside(host)
    allowed, forbidden = ledger.echo(host.outside, port=7002), ledger.echo(host.outside, port=7001)
    add(pod)
    add(pod)
    assert exchange(CLIENT, allowed.port, space=pod.space) == pod.address
    assert not reaches(CLIENT, forbidden.port, space=pod.space, timeout=0.3)
    listed = run(["nft", "list", "table", "inet", "guard"]).ok().text
    assert listed.count("nodeplug") == 1
    run(["nft", "-f", "-"], stdin=f"delete table inet guard\n{listed}\n".encode()).ok()
    assert exchange(CLIENT, allowed.port, space=pod.space) == pod.address


def test_the_mark_is_not_seen_behind_forwarding(ledger: Ledger, host: Host) -> None:
    by_nft(
        "table inet guard { counter seen { };"
        "chain post { type filter hook postrouting priority srcnat; meta mark & 0x1000 != 0 counter name seen; }; }"
    )(ledger)
    pod = host.pod()
    known_outside(host)
    add(pod)
    assert exchange(CLIENT, ledger.echo(host.outside).port, space=pod.space) == pod.address
    assert "packets 0" in run(["nft", "list", "counter", "inet", "guard", "seen"]).ok().text


@pytest.mark.parametrize("bridge_netfilter", [0, 1], ids=["bridged apart", "bridged through iptables"])
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
@pytest.mark.parametrize("drops", [False, True], ids=["forwarding", "FORWARD DROP"])
def test_ingress_policies(ledger: Ledger, host: Host, policy: str, bridge_netfilter: int, drops: bool) -> None:
    if drops:
        by_iptables("nft", "-P FORWARD DROP")(ledger)
    host.bridge_netfilter(bridge_netfilter)
    pod, neighbour = host.pod(), host.pod()
    far = far_pod(ledger)
    known_outside(host)
    server, outside, at_far = ledger.echo(pod.space), ledger.echo(host.outside), ledger.echo(far.space)
    assert host.portmap("ADD", pod, to(8080, server.port))[0] == 0
    add(pod, ingressPolicy=policy)
    add(neighbour, ingressPolicy=policy)
    add(far)
    assert exchange(CLIENT, outside.port, space=pod.space) == pod.address
    assert exchange(HOST, 8080, space=host.outside) == CLIENT
    assert exchange(pod.address, server.port, space=HERE) == GATEWAY
    assert exchange(far.address, at_far.port, space=pod.space) == pod.address, "what it asks for is answered"
    quick: dict[str, Any] = {"timeout": 0.3}
    assert reaches(pod.address, server.port, space=neighbour.space, **quick) == (policy != "isolated")
    assert reaches(pod.address, server.port, space=far.space, **quick) == (policy == "open")
    assert reaches(pod.address, server.port, space=host.outside, **quick) == (policy == "open" or not drops)
    host.delete(pod)


def far_pod(ledger: Ledger) -> Pod:
    """A pod on another bridge."""
    run(["ip", "link", "add", ledger.link("br-far"), "type", "bridge"]).ok()
    run(["ip", "address", "add", "10.98.0.1/16", "dev", "br-far"]).ok()
    run(["ip", "link", "set", "br-far", "up"]).ok()
    space = ledger.netns()
    run(["ip", "link", "add", ledger.link("far"), "type", "veth", "peer", "name", "eth0", "netns", space.name]).ok()
    run(["ip", "link", "set", "far", "master", "br-far", "up"]).ok()
    space.run("ip", "address", "add", "10.98.0.2/16", "dev", "eth0").ok()
    space.run("ip", "link", "set", "eth0", "up").ok()
    space.run("ip", "route", "add", "default", "via", "10.98.0.1").ok()
    return Pod(space, "far", "10.98.0.2", "fd98::2", "far")
