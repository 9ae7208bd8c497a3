"""bridge: the bridge itself, and the host as the pods' gateway."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from nodeplug.kernel.rtnl import links
from tests.child import run
from tests.cni.pods import Network, addresses, host_local, link, routes, setting, static
from tests.ledger import Ledger
from tests.space import HERE, Space
from tests.traffic import exchange, reaches

pytestmark = pytest.mark.needs("sandbox")
V4, V6 = "10.5.0.2/24,10.5.0.1", "fd05::2/64,fd05::1"
FORWARDING = (("net/ipv4/ip_forward",), ("net/ipv6/conf/all/forwarding",))


def ip(*words: str) -> None:
    run(["ip", *words]).ok()


def switch_forwarding(value: str) -> None:
    for (path,) in FORWARDING:
        run(["sh", "-c", f"echo {value} > /proc/sys/{path}"]).ok()


def test_a_bridge_is_made_up_and_with_a_mac_address_of_its_own(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", bridge="br-test")
    result = network.add(netns)
    bridge = link("br-test")
    assert bridge is not None
    assert (bridge.kind, bridge.up) == ("bridge", True)
    assert result["interfaces"][0] == {"name": "br-test", "mac": bridge.mac.hex(":")}


def test_the_bridges_mac_address_stays_as_pods_come_and_go(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge")
    before = network.add(netns)["interfaces"][0]["mac"]
    others = [ledger.netns() for _ in range(3)]
    for n, pod in enumerate(others):
        assert network.add(pod, {"runtimeConfig": {"mac": f"02:00:00:00:00:0{n}"}})["interfaces"][0]["mac"] == before
    for pod in (netns, *others):
        network.delete(pod)
        bridge = link("cni0")
        assert bridge and bridge.mac.hex(":") == before


def test_a_bridge_that_somebody_else_made_is_used_and_keeps_its_mac_address_as_a_gateway(
    ledger: Ledger, netns: Space
) -> None:
    ip("link", "add", "cni0", "type", "bridge")
    network = Network(ledger, type="bridge", isGateway=True, ipam=static(V4))
    before = network.add(netns)["interfaces"][0]["mac"]
    network.config["ipam"] = static("10.5.0.3/24,10.5.0.1")
    assert (
        network.add(ledger.netns(), {"runtimeConfig": {"mac": "02:00:00:00:00:01"}})["interfaces"][0]["mac"] == before
    )
    network.delete(netns)
    bridge = link("cni0")
    assert bridge and bridge.mac.hex(":") == before


def test_a_bridge_that_is_down_is_set_up(ledger: Ledger, netns: Space) -> None:
    ip("link", "add", "cni0", "type", "bridge")
    Network(ledger, type="bridge").add(netns)
    bridge = link("cni0")
    assert bridge and bridge.up


def test_many_first_pods_at_once_all_get_the_one_bridge(ledger: Ledger) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipam=host_local(4, 6))
    ledger.table("inet", "nodeplug")
    pods = [ledger.netns() for _ in range(20)]
    results: dict[str, Any] = {}
    failures: list[Any] = []

    def add(pod: Space) -> None:
        done = network.executable("ADD", pod)
        if done.code == 0:
            results[pod.name] = done.json()
        else:
            failures.append(done.text)

    for pod in pods:
        ledger.adopt(f"attachment of {pod.name}", lambda pod=pod: network.ask("DEL", pod))
    threads = [threading.Thread(target=add, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({found["ips"][0]["address"] for found in results.values()}) == 20
    assert len({found["interfaces"][0]["mac"] for found in results.values()}) == 1
    assert addresses(HERE, "cni0") == {"10.88.0.1/24", "fd88::1/64"}
    server = ledger.echo(pods[0])
    target = results[pods[0].name]["ips"][0]["address"].split("/")[0]
    assert all(reaches(target, server.port, space=pod) for pod in pods)
    removed = [threading.Thread(target=network.executable, args=("DEL", pod)) for pod in pods]
    for thread in removed:
        thread.start()
    for thread in removed:
        thread.join()
    assert network.leases() == set()
    assert HERE.links() == {"lo", "cni0"}
    assert [pod.links() for pod in pods] == [{"lo"}] * 20


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        ([V4], {"10.5.0.1/24"}),
        ([V6], {"fd05::1/64"}),
        ([V4, V6], {"10.5.0.1/24", "fd05::1/64"}),
        ([V4, "10.6.0.2/16"], {"10.5.0.1/24", "10.6.0.1/16"}),
        (["10.5.0.2/24", "fd05::2/64"], {"10.5.0.1/24", "fd05::1/64"}),
        (["10.5.0.200/25", "fd05:0:0:1::ff/120"], {"10.5.0.129/25", "fd05:0:0:1::1/120"}),
        (["10.5.0.2/24,10.5.0.254"], {"10.5.0.254/24"}),
    ],
    ids=["v4", "v6", "v4 and v6", "two of v4", "the first of the subnet", "the first of a small subnet", "another"],
)
def test_the_gateways_are_on_the_bridge_and_used_for_routes(
    ledger: Ledger, netns: Space, ipam: list[str], expected: set[str]
) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=static(*ipam))
    result = network.add(netns)
    assert addresses(HERE, "cni0") == expected
    assert {found["gateway"] for found in result["ips"]} == {net.split("/")[0] for net in expected}
    assert "routes" not in result
    network.check(netns, result)
    network.add(ledger.netns(), {"ipam": static(*ipam)}, CNI_IFNAME="eth9")
    assert addresses(HERE, "cni0") == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"default": "10.5.0.1"}),
        ([{"dst": "0.0.0.0/0"}], {"default": "10.5.0.1"}),
        ([{"dst": "0.0.0.0/0", "gw": "10.5.0.77"}], {"default": "10.5.0.77"}),
        ([{"dst": "10.9.0.0/16", "gw": "10.5.0.77"}], {"default": "10.5.0.1", "10.9.0.0/16": "10.5.0.77"}),
    ],
    ids=["unasked", "asked for", "told another", "beside another route"],
)
def test_pods_have_the_host_as_their_default_gateway_unless_told_another(
    ledger: Ledger, netns: Space, given: list[Any], expected: dict[str, str]
) -> None:
    network = Network(ledger, type="bridge", isDefaultGateway=True, ipam=static(V4, V6, routes=given))
    result = network.add(netns)
    assert {dst: route["gateway"] for dst, route in routes(netns).items() if "gateway" in route} == expected
    assert routes(netns, 6)["default"]["gateway"] == "fd05::1"
    assert addresses(HERE, "cni0") == {"10.5.0.1/24", "fd05::1/64"}
    network.check(netns, result)


def test_without_a_gateway_the_bridge_has_no_address_and_nothing_is_forwarded(ledger: Ledger, netns: Space) -> None:
    switch_forwarding("0")
    result = Network(ledger, type="bridge", ipam=static("10.5.0.2/24", V6)).add(netns)
    assert addresses(HERE, "cni0") == set()
    assert [found.get("gateway") for found in result["ips"]] == [None, "fd05::1"]
    assert [setting(HERE, *key) for key in FORWARDING] == ["0", "0"]


@pytest.mark.parametrize(("ipam", "expected"), [([V4], ["1", "0"]), ([V6], ["0", "1"]), ([V4, V6], ["1", "1"])])
def test_forwarding_is_switched_on_for_the_families_in_use(
    ledger: Ledger, netns: Space, ipam: list[str], expected: list[str]
) -> None:
    switch_forwarding("0")
    Network(ledger, type="bridge", isGateway=True, ipam=static(*ipam)).add(netns)
    assert [setting(HERE, *key) for key in FORWARDING] == expected


@pytest.mark.parametrize("on", [True, False])
def test_settings_that_are_as_they_should_be_need_no_right_to_write(ledger: Ledger, netns: Space, on: bool) -> None:
    """In a container /proc/sys may be read-only; whoever runs it has switched forwarding on."""
    switch_forwarding("1" if on else "0")
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local(4, 6))
    ledger.adopt("attachment", lambda: network.ask("DEL", netns))
    read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec"
    command = ["unshare", "--mount", "sh", "-c", f"{read_only} {network.plugins}/bridge"]
    env = {**network.env("ADD", netns), "PATH": os.environ["PATH"]}
    done = run(command, env=env, stdin=network.stdin())
    if on:
        assert addresses(netns) == {found["address"] for found in done.ok().json()["ips"]}
    else:
        assert "cannot switch forwarding of IPv4 on: sysctl write '1' to: Read-only file system" in done.json()["msg"]
        assert netns.links() == {"lo"}


FORCE = [
    (["10.5.0.1/24"], V4, False, {"10.5.0.1/24"}),
    (["10.5.0.9/24"], V4, False, "10.5.0.9/24"),
    (["10.5.0.9/24"], V4, True, {"10.5.0.1/24"}),
    (["10.5.0.1/16"], V4, False, "10.5.0.1/16"),
    (["10.5.0.1/16"], V4, True, {"10.5.0.1/24"}),
    (["192.0.2.1/24"], V4, False, "192.0.2.1/24"),
    (["192.0.2.1/24", "10.5.0.1/24"], V4, False, {"192.0.2.1/24", "10.5.0.1/24"}),
    (["192.0.2.1/24", "192.0.2.2/24", "10.5.0.9/24"], V4, True, {"10.5.0.1/24"}),
    (["fd05::9/64"], V4, False, {"fd05::9/64", "10.5.0.1/24"}),
    (["fd05::9/64"], V6, False, "fd05::9/64"),
    (["fd05::9/64"], V6, True, {"fd05::1/64"}),
    (["fd05::9/48"], V6, False, "fd05::9/48"),
    (["fd05::9/48"], V6, True, {"fd05::1/64"}),
    (["fd06::9/64"], V6, False, {"fd05::1/64", "fd06::9/64"}),
    (["fd06::9/64"], V6, True, {"fd05::1/64", "fd06::9/64"}),
]


def way(case: tuple[list[str], str, bool, set[str] | str]) -> str:
    there, ipam, force, expected = case
    gateway, forced = ipam.split(",")[1], "forced" if force else "not forced"
    return f"{' and '.join(there)} before {gateway}, {forced}: {'refused' if isinstance(expected, str) else 'taken'}"


@pytest.mark.parametrize(("there", "ipam", "force", "expected"), FORCE, ids=map(way, FORCE))
def test_an_address_in_the_way_is_refused_or_replaced(
    ledger: Ledger, netns: Space, there: list[str], ipam: str, force: bool, expected: set[str] | str
) -> None:
    ip("link", "add", "cni0", "type", "bridge")
    for address in there:
        ip("address", "add", address, "dev", "cni0")
    network = Network(ledger, type="bridge", isGateway=True, forceAddress=force, ipam=static(ipam))
    if isinstance(expected, str):
        error = network.refused("ADD", netns)
        assert error["code"] == 100
        assert "'cni0' already has an IP address different from" in error["msg"]
        assert expected in error["msg"]
        assert addresses(HERE, "cni0") == {*there}
        assert netns.links() == {"lo"}
    else:
        network.add(netns)
        assert addresses(HERE, "cni0") == expected


def test_a_gateway_lost_from_the_bridge_fails_check_and_returns_with_the_next_pod(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local(4, 6))
    result = network.add(netns)
    ip("address", "flush", "dev", "cni0")
    assert "10.88.0.1" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.add(ledger.netns())
    network.check(netns, result)


def test_a_bridge_with_ipv6_off_gets_it_with_its_gateway(ledger: Ledger, netns: Space) -> None:
    ip("link", "add", "cni0", "type", "bridge")
    run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/cni0/disable_ipv6"]).ok()
    Network(ledger, type="bridge", isGateway=True, ipam=static(V6)).add(netns)
    assert exchange("fd05::1", ledger.echo(address="::").port, space=netns) == "fd05::2"


def test_a_policy_that_drops_what_is_forwarded_is_warned_of(ledger: Ledger, netns: Space) -> None:
    ledger.table("ip", "filter")
    network = Network(ledger, type="bridge", isGateway=True, ipam=static(V4))
    assert "FORWARD" not in network.warnings("ADD", netns)
    network.delete(netns)
    run(["nft", "add table ip filter; add chain ip filter FORWARD {type filter hook forward priority 0; policy drop;}"])
    run(["nft", "list", "chain", "ip", "filter", "FORWARD"]).ok()
    stderr = network.warnings("ADD", netns)
    assert "FORWARD" in stderr
    assert "firewall" in stderr
    network.delete(netns)
    run(["nft", "add chain ip filter CNI-FORWARD"]).ok()
    assert "FORWARD" not in network.warnings("ADD", netns), "firewall is at work on this node"
    network.delete(netns)
    run(["nft", "delete chain ip filter CNI-FORWARD"]).ok()
    network = Network(ledger, type="bridge", ipam=static(V4))
    assert "FORWARD" not in network.warnings("ADD", netns), "nothing is forwarded for a bridge that is no gateway"
    network.delete(netns)


def test_a_bridge_with_a_spanning_tree_is_not_waited_for(ledger: Ledger, netns: Space) -> None:
    """Its ports listen for half a minute before they forward; ADD waits for the link alone, as the reference does."""
    ip("link", "add", "cni0", "up", "type", "bridge", "stp_state", "1")
    result = Network(ledger, type="bridge", ipam=host_local()).add(netns)
    found = link(result["interfaces"][1]["name"])
    assert found and found.operstate == links.OPER_UP


def test_a_bridge_that_is_set_down_has_no_port_that_comes_up(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local())
    result = network.add(netns)
    ip("link", "set", "cni0", "down")
    assert "cni0 is down" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.add(ledger.netns())
    network.check(netns, result)
