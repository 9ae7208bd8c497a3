"""ptp: DEL whatever has become of the pod, GC of what none needs, CHECK of what has changed, STATUS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.lost import a_plain_file, ended, the_hosts, without_a_name
from tests.cni.pods import Network, host_links, host_local, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space

pytestmark = needs("sandbox")


@pytest.fixture
def network(ledger: Ledger) -> Network:
    ledger.table("inet", "nodeplug")
    return Network(ledger, type="ptp", ipMasq=True, ipam=host_local(4, 6))


def end_of(pod: Space) -> str:
    return identity("pods", pod.name, "eth0")


def kept() -> set[str]:
    """The files of the filter table's index."""
    directory = Path(paths.RUN, "cni", "filter")
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def ways_to_pods() -> set[str]:
    """The host's routes to single addresses of pods; those to its own are the kernel's."""
    shown = [route for family in ("-4", "-6") for route in HERE.ip(family, "route", "show")]
    return {
        route["dst"]
        for route in shown
        if route["dst"].startswith(("10.88.", "fd88:")) and route["protocol"] != "kernel"
    }


def nothing_left(network: Network) -> bool:
    return (host_links(), network.leases(), kept(), ways_to_pods()) == (set(), set(), set(), set())


def test_ptp_delete_before_any_add_and_again_and_again(network: Network, netns: Space) -> None:
    network.delete(netns)
    network.delete(netns, CNI_NETNS="")
    network.add(netns)
    for _ in range(3):
        network.delete(netns)
        assert nothing_left(network)


@pytest.mark.parametrize("path", [without_a_name, ended, a_plain_file, the_hosts])
def test_ptp_delete_is_complete_without_the_pods_namespace(
    network: Network, netns: Space, directory: Path, path: Callable[[Space, Path], str]
) -> None:
    network.add(netns)
    network.delete(netns, CNI_NETNS=path(netns, directory))
    assert nothing_left(network)


@pytest.mark.parametrize("changed", [{"ipMasq": False}, {"mtu": 1400}, {"prevResult": {"cniVersion": "1.1.0"}}])
def test_ptp_delete_needs_no_detail_of_the_configuration(
    network: Network, netns: Space, changed: dict[str, Any]
) -> None:
    network.add(netns)
    network.delete(netns, changed)
    assert nothing_left(network)


def test_ptp_delete_is_complete_when_others_have_taken_parts_away(network: Network, netns: Space) -> None:
    result = network.add(netns)
    run(["ip", "link", "delete", end_of(netns)]).ok()
    run(["nft", "flush", "ruleset"]).ok()
    for lease in network.leases():
        (network.leases_in / "pods" / lease).unlink()
    network.delete(netns, {"prevResult": result})
    assert nothing_left(network)


def test_ptp_interface_name_that_is_taken_is_refused_and_left_as_it_is(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    other = Network(ledger, type="ptp", name="other", ipam=host_local())
    other.add(netns)
    before = netns.run("ip", "address", "show", "eth0").ok().text
    assert network.refused("ADD", netns)["msg"] == f"interface eth0 already exists in {netns.path}"
    network.delete(netns)
    assert netns.run("ip", "address", "show", "eth0").ok().text == before
    assert (network.leases(), host_links()) == (set(), {identity("other", netns.name, "eth0")})


def test_ptp_second_add_is_refused_and_does_no_harm(network: Network, netns: Space) -> None:
    result = network.add(netns)
    assert "has interface eth0 in network pods already" in network.refused("ADD", netns)["msg"]
    network.check(netns, result)


def test_ptp_link_of_the_attachments_name_that_somebody_else_made_is_refused(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    name = ledger.link(end_of(netns))
    run(["ip", "link", "add", name, "alias", "mine", "type", "bridge"])
    run(["ip", "link", "set", name, "alias", "mine"]).ok()
    error = network.refused("ADD", netns)
    assert (error["code"], "alias 'mine'" in error["msg"]) == (100, True)
    assert link(name) is not None


def test_ptp_address_is_not_released_while_its_link_cannot_be_removed(network: Network, netns: Space) -> None:
    network.add(netns)
    before = network.leases()
    script = f"{network.plugins}/ptp"
    done = run(["setpriv", "--bounding-set=-net_admin", script], env=network.env("DEL", netns), stdin=network.stdin())
    assert (done.code, done.json()["code"]) == (1, 5)
    assert network.leases() == before


def test_ptp_gc_removes_what_no_valid_attachment_has(network: Network, ledger: Ledger) -> None:
    living, lost, ended = ledger.netns(), ledger.netns(), ledger.netns()
    results = [network.add(pod) for pod in (living, lost, ended)]
    ended.remove()
    valid = {"cni.dev/valid-attachments": [{"containerID": living.name, "ifname": "eth0"}]}
    assert network.ask("GC", None, valid) == (0, None)
    assert network.leases() == {ip["address"].split("/")[0] for ip in results[0]["ips"]} == ways_to_pods()
    assert (host_links(), kept()) == ({end_of(living)}, {end_of(living) + ".masquerade"})
    network.check(living, results[0])
    assert network.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert nothing_left(network)


@pytest.mark.parametrize(
    ("spoil", "inside", "said"),
    [
        ("ip link set END down", False, "is down"),
        ("ip link delete END", False, "has no veth eth0 any more"),
        ("ip address delete 10.88.0.1/32 dev END", False, "has not the gateway's address 10.88.0.1"),
        ("ip route delete 10.88.0.2", False, "the host does not reach 10.88.0.2 by"),
        ("ip -6 route delete fd88::2", False, "the host does not reach fd88::2 by"),
        ("ip link set eth0 down", True, "is down"),
        ("ip link set eth0 address 02:00:00:00:00:99", True, "has the MAC address 02:00:00:00:00:99"),
        ("ip address delete fd88::2/64 dev eth0", True, "has not the address fd88::2/64"),
        ("ip route delete default", True, "has not the route 0.0.0.0/0"),
    ],
)
def test_ptp_check_names_what_was_changed(network: Network, netns: Space, spoil: str, inside: bool, said: str) -> None:
    network.config["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}]
    result = network.add(netns)
    network.check(netns, result)
    (netns if inside else HERE).run(*spoil.replace("END", end_of(netns)).split()).ok()
    error = network.refused("CHECK", netns, {"prevResult": result})
    assert (error["code"], said in error["msg"]) == (100, True), error


def test_ptp_status_is_ready_and_says_what_keeps_every_add_from_succeeding(network: Network, netns: Space) -> None:
    before = HERE.links()
    assert network.ask("STATUS") == (0, None)
    assert HERE.links() == before
    error = network.refused("STATUS", None, {"ipam": {"type": "no-such-manager"}})
    assert (error["code"], "no-such-manager" in error["msg"]) == (50, True)
    script = f"{network.plugins}/ptp"
    done = run(["setpriv", "--bounding-set=-net_admin", script], env=network.env("STATUS", None), stdin=network.stdin())
    assert (done.code, done.json()["code"]) == (1, 50)
    assert network.refused("STATUS", None, {"ipam": {}})["code"] == 7
