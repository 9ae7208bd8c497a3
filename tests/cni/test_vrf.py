"""vrf: membership, addresses and routes as iproute2 shows them, and packets that stay in their VRF."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.plugins.vrf.plugin import VrfConf
from nodeplug.core import document
from tests.cni.calls import VERSIONS
from tests.cni.chains import Chain, result, wire
from tests.cni.pods import Network, addresses
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange

pytestmark = needs("sandbox")
in_a_vrf = needs("link:vrf")

V4, V6 = "10.1.0.2/24,10.1.0.1", "fd01::2/64,fd01::1"


def vrf(ledger: Ledger, name: str = "blue", **config: Any) -> Network:
    return Network(ledger, type="vrf", vrfname=name, **config)


@pytest.fixture
def pod(ledger: Ledger, netns: Space) -> Space:
    wire(ledger, netns, "eth0", "10.1.0.2/24", "fd01::2/64")
    return netns


def shown(pod: Space, name: str) -> Any:
    (found,) = pod.ip("link", "show", "dev", name)
    return found


def table_of(pod: Space, name: str) -> int:
    return int(shown(pod, name)["linkinfo"]["info_data"]["table"])


def members(pod: Space, name: str = "blue") -> set[str]:
    return {found["ifname"] for found in pod.ip("link", "show", "master", name)}


def routes(pod: Space, table: int | str, family: int = 4) -> dict[str, Any]:
    listed = pod.run("ip", "-j", f"-{family}", "route", "show", "table", str(table))
    return {route["dst"]: route for route in (listed.json() if listed.text else [])}


@in_a_vrf
@pytest.mark.parametrize("version", VERSIONS[3:])
def test_the_interface_joins_and_leaves_in_every_version(ledger: Ledger, pod: Space, version: str) -> None:
    network = vrf(ledger, cniVersion=version)
    before: dict[str, Any] = {**result(pod, V4), "cniVersion": version}
    if version < "1":
        before["ips"][0]["version"] = "4"
        before["dns"] = {}
    assert network.add(pod, {"prevResult": before}) == before
    assert (members(pod), table_of(pod, "blue"), "UP" in shown(pod, "blue")["flags"]) == ({"eth0"}, 1, True)
    if version >= "0.4.0":
        network.check(pod, before)
    network.delete(pod)
    assert pod.links() == {"lo", "eth0"}


def test_versions_before_0_3_1_are_refused(ledger: Ledger, pod: Space) -> None:
    for version in VERSIONS[:3]:
        assert vrf(ledger, cniVersion=version).refused("ADD", pod)["code"] == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vrfname": None}, "$.vrfname: required, but missing"),
        ({"vrfname": ""}, "$.vrfname"),
        ({"vrfname": "a/b"}, "$.vrfname"),
        ({"table": -1}, "$.table"),
        ({"table": "7"}, "$.table"),
    ],
)
def test_wrong_keys_are_named(ledger: Ledger, pod: Space, keys: dict[str, Any], said: str) -> None:
    network = vrf(ledger)
    error = network.refused("ADD", pod, {"prevResult": result(pod, V4), **keys})
    assert (error["code"], said in error["details"]) == (7, True)
    assert network.refused("STATUS", None, keys)["code"] == 7
    assert network.ask("STATUS") == (0, None)


def test_it_must_be_chained_behind_the_interface(ledger: Ledger, netns: Space) -> None:
    network = vrf(ledger)
    assert network.refused("ADD", netns)["msg"] == "missing prevResult from earlier plugin"
    error = network.refused("ADD", netns, {"prevResult": result(netns)})
    assert "could not get link by name eth0" in error["msg"]


def test_delete_succeeds_where_nothing_is(ledger: Ledger, netns: Space) -> None:
    network = vrf(ledger)
    network.delete(netns)
    netns.remove()
    network.delete(netns)
    network.delete(netns, CNI_NETNS="")


@in_a_vrf
def test_addresses_and_routes_come_along(ledger: Ledger, pod: Space) -> None:
    pod.run("ip", "route", "add", "default", "via", "10.1.0.1").ok()
    pod.run("ip", "route", "add", "10.50.0.0/16", "via", "10.1.0.7").ok()
    pod.run("ip", "route", "add", "10.60.0.0/16", "via", "10.1.0.8", "table", "77").ok()
    pod.run("ip", "-6", "route", "add", "default", "via", "fd01::1").ok()
    network = vrf(ledger, table=1001)
    answer = network.add(pod, {"prevResult": result(pod, V4, V6)})
    assert addresses(pod) == {"10.1.0.2/24", "fd01::2/64"}
    assert table_of(pod, "blue") == 1001
    mine, mine6 = routes(pod, 1001), routes(pod, 1001, 6)
    assert (mine["default"]["gateway"], mine["10.50.0.0/16"]["gateway"]) == ("10.1.0.1", "10.1.0.7")
    assert {"10.1.0.0/24", "10.1.0.2"} <= set(mine)
    assert (mine6["default"]["gateway"], "fd01::/64" in mine6, "fd01::2" in mine6) == ("fd01::1", True, True)
    assert routes(pod, 77)["10.60.0.0/16"]["gateway"] == "10.1.0.8"
    assert (routes(pod, "main"), set(routes(pod, "main", 6)) - {"fe80::/64"}) == ({}, set())
    network.check(pod, answer)


@in_a_vrf
def test_addresses_that_are_kept_when_a_link_goes_down_are_not_given_twice(ledger: Ledger, pod: Space) -> None:
    pod.run("sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1").ok()
    vrf(ledger).add(pod, {"prevResult": result(pod, V4, V6)})
    assert addresses(pod) == {"10.1.0.2/24", "fd01::2/64"}


@in_a_vrf
def test_several_interfaces_share_a_vrf_which_goes_with_the_last(ledger: Ledger, pod: Space) -> None:
    wire(ledger, pod, "eth1", "10.2.0.2/24", peer="second")
    network = vrf(ledger)
    network.add(pod, {"prevResult": result(pod, V4)})
    network.add(pod, {"prevResult": result(pod, "10.2.0.2/24", ifname="eth1")}, CNI_IFNAME="eth1")
    assert members(pod) == {"eth0", "eth1"}
    network.delete(pod)
    assert members(pod) == {"eth1"}
    pod.run("ip", "link", "delete", "eth1").ok()
    network.delete(pod, CNI_IFNAME="eth1")
    assert pod.links() == {"lo", "eth0"}


@in_a_vrf
def test_vrfs_have_the_least_table_that_no_other_has_or_the_one_configured(ledger: Ledger, pod: Space) -> None:
    for n, (name, table) in enumerate((("red", 0), ("green", 3), ("blue", 0), ("grey", 0)), 1):
        wire(ledger, pod, f"net{n}", f"10.{n}.1.2/24", peer=f"peer{n}")
        before = result(pod, f"10.{n}.1.2/24", ifname=f"net{n}")
        vrf(ledger, name, table=table).add(pod, {"prevResult": before}, CNI_IFNAME=f"net{n}")
    assert [table_of(pod, name) for name in ("red", "green", "blue", "grey")] == [1, 3, 2, 4]


@in_a_vrf
def test_conflicts_are_refused_and_change_nothing(ledger: Ledger, pod: Space) -> None:
    before = {"prevResult": result(pod, V4)}
    pod.run("ip", "link", "add", "cbr0", "type", "bridge").ok()
    assert (
        "link cbr0 of the pod is not a VRF, but of kind 'bridge'"
        in vrf(ledger, "cbr0").refused("ADD", pod, before)["msg"]
    )
    pod.run("ip", "link", "add", "red", "type", "vrf", "table", "7").ok()
    error = vrf(ledger, "red", table=8).refused("ADD", pod, before)
    assert error["msg"] == "VRF red already exist with different routing table 7"
    pod.run("ip", "link", "set", "eth0", "master", "cbr0").ok()
    error = vrf(ledger).refused("ADD", pod, before)
    assert error["msg"] == "interface eth0 has already a master set: cbr0"
    assert pod.links() == {"lo", "eth0", "cbr0", "red"}
    vrf(ledger).delete(pod)
    assert members(pod, "cbr0") == {"eth0"}


@in_a_vrf
@pytest.mark.parametrize(
    ("second", "table", "said"),
    [
        ("red", 1001, ""),
        ("blue", 1001, ""),
        ("red", 1002, "VRF red already exist with different routing table 1001"),
    ],
    ids=["one VRF and its table", "two VRFs and one table", "one VRF and two tables"],
)
def test_a_table_may_be_asked_for_again_unless_the_vrf_has_another(
    ledger: Ledger, netns: Space, second: str, table: int, said: str
) -> None:
    for n in (1, 2):
        wire(ledger, netns, f"net{n}", "10.1.0.2/24", peer=f"peer{n}")
    vrf(ledger, "red", table=1001).add(netns, {"prevResult": result(netns, V4, ifname="net1")}, CNI_IFNAME="net1")
    network, before = vrf(ledger, second, table=table), {"prevResult": result(netns, V4, ifname="net2")}
    if said:
        assert network.refused("ADD", netns, before, CNI_IFNAME="net2")["msg"] == said
        assert members(netns, "red") == {"net1"}
    else:
        network.check(netns, network.add(netns, before, CNI_IFNAME="net2"), CNI_IFNAME="net2")
        assert (shown(netns, "net2")["master"], table_of(netns, second)) == (second, 1001)


@in_a_vrf
def test_a_repeated_add_is_content(ledger: Ledger, pod: Space) -> None:
    network = vrf(ledger)
    for _ in range(2):
        network.check(pod, network.add(pod, {"prevResult": result(pod, V4, V6)}))
    assert members(pod) == {"eth0"}


@in_a_vrf
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("ip link set eth0 nomaster", "failed to find eth0 associated to vrf blue"),
        ("ip link set blue down", "it is down"),
        ("ip link delete blue", "VRF blue is gone"),
        ("ip address delete 10.1.0.2/24 dev eth0", "eth0 has lost 10.1.0.2"),
    ],
)
def test_check_names_what_was_changed(ledger: Ledger, pod: Space, spoil: str, said: str) -> None:
    network = vrf(ledger)
    answer = network.add(pod, {"prevResult": result(pod, V4)})
    pod.run(*spoil.split()).ok()
    assert said in network.refused("CHECK", pod, {"prevResult": answer})["msg"]
    assert network.refused("CHECK", pod, {"prevResult": answer, "table": 9})["code"] in (5, 100)


@in_a_vrf
def test_two_vrfs_with_equal_addresses_reach_each_its_own_neighbour(ledger: Ledger, netns: Space) -> None:
    for n, name in enumerate(("red", "blue"), 1):
        neighbour, ifname = ledger.netns(), f"net{n}"
        wire(ledger, netns, ifname, "10.1.0.2/24", "fd01::2/64", host=neighbour, peer="eth0")
        neighbour.run("ip", "address", "add", "10.1.0.1/24", "dev", "eth0").ok()
        neighbour.run("ip", "address", "add", "fd01::1/64", "dev", "eth0", "nodad").ok()
        before = result(netns, "10.1.0.2/24", "fd01::2/64", ifname=ifname)
        vrf(ledger, name).add(netns, {"prevResult": before}, CNI_IFNAME=ifname)
        # Each neighbour answers at a port where the other does not.
        ledger.echo(neighbour, port=7000 + n)
        ledger.echo(neighbour, address="::", port=7000 + n)
    for n, name in enumerate(("red", "blue"), 1):
        assert asked(netns, name, "10.1.0.1", 7000 + n) == "10.1.0.2"
        assert asked(netns, name, "fd01::1", 7000 + n) == "fd01::2"
        assert asked(netns, name, "10.1.0.1", 7003 - n) == "ConnectionRefusedError"
    with pytest.raises(OSError):
        exchange("10.1.0.1", 7001, space=netns, timeout=0.5)


@in_a_vrf
@pytest.mark.parametrize("second", ["red", "blue"], ids=["the same VRF", "different VRFs"])
@pytest.mark.parametrize("equal", [True, False], ids=["the same addresses", "addresses of their own"])
def test_two_interfaces_in_a_vrf_or_two_keep_their_addresses_and_routes(
    ledger: Ledger, netns: Space, second: str, equal: bool
) -> None:
    """Of both families; also the same ones, as two providers give them that know nothing of each other."""
    first = ["10.1.0.2/24", "fd01::2/64"]
    taken = {"net1": ("red", first), "net2": (second, first if equal else ["10.2.0.2/24", "fd02::2/64"])}
    for n, (ifname, (name, ips)) in enumerate(taken.items(), 1):
        wire(ledger, netns, ifname, *ips, peer=f"peer{n}")
        network = vrf(ledger, name)
        before = {"prevResult": result(netns, *ips, ifname=ifname)}
        network.check(netns, network.add(netns, before, CNI_IFNAME=ifname), CNI_IFNAME=ifname)
    assert members(netns, "red") == ({"net1", "net2"} if second == "red" else {"net1"})
    assert (table_of(netns, "red") != table_of(netns, second)) is (second != "red")
    for ifname, (name, ips) in taken.items():
        assert (shown(netns, ifname)["master"], addresses(netns, ifname)) == (name, {*ips})
        for family in "46":
            listed = netns.run("ip", f"-{family}", "route", "show", "table", str(table_of(netns, name))).ok().text
            assert any(f"dev {ifname}" in line for line in listed.splitlines())
    for ifname, (name, _) in taken.items():
        vrf(ledger, name).delete(netns, CNI_IFNAME=ifname)
    assert netns.links() == {"lo", "net1", "net2"}


def asked(pod: Space, name: str, address: str, port: int) -> str:
    """Whom the server saw when a program bound to the VRF asked it, or the error."""
    script = (
        "import socket, sys\n"
        "family, name, address, port = sys.argv[1:]\n"
        "s = socket.socket(int(family))\n"
        "s.settimeout(5)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())\n"
        "try:\n"
        "    s.connect((address, int(port)))\n"
        "    s.sendall(b'hello')\n"
        "    print(s.recv(100).decode().split()[0])\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    arguments = [str(int(family)), name, address, str(port)]
    return pod.run("/usr/bin/python3", "-c", script, *arguments).ok().text


def test_every_key_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cni" / "vrf.md").read_text()
    assert document.reference(VrfConf).strip() in page


@in_a_vrf
def test_the_example_of_its_page_runs(ledger: Ledger, netns: Space) -> None:
    chain = Chain.of_page(ledger, "cni/vrf.md", "blue.conflist")
    chain.add(netns, "net1")
    assert (members(netns), table_of(netns, "blue")) == ({"net1"}, 1001)
    assert routes(netns, 1001)["default"]["gateway"] == "10.92.0.1"
    chain.check(netns, "net1")
    chain.status()
    chain.delete(netns, "net1")
    assert netns.links() == {"lo"}
