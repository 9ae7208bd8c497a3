"""bridge: DEL, whatever has become of the pod meanwhile, and what an ADD finds in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import files, paths
from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.lost import a_plain_file, ended, the_hosts, without_a_name
from tests.cni.pods import Network, addresses, host_links, host_local, link, static
from tests.ledger import Ledger
from tests.space import Space

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture
def network(ledger: Ledger) -> Network:
    ledger.table("inet", "nodeplug")
    return Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4, 6))


def kept() -> set[str]:
    """The files of the filter table's index."""
    directory = Path(paths.RUN, "cni", "filter")
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def nothing_left(network: Network) -> bool:
    return (host_links(), network.leases(), kept()) == ({"cni0"}, set(), set())


def test_delete_before_any_add_succeeds(network: Network, netns: Space) -> None:
    network.delete(netns)
    network.delete(netns, CNI_NETNS="")
    assert host_links() == set()


def test_delete_may_come_again_and_again(network: Network, netns: Space) -> None:
    network.add(netns)
    for _ in range(3):
        network.delete(netns)
        assert nothing_left(network)


@pytest.mark.parametrize("path", [without_a_name, ended, a_plain_file, the_hosts])
def test_delete_is_complete_without_the_pods_namespace(
    network: Network, netns: Space, directory: Path, path: Callable[[Space, Path], str]
) -> None:
    network.add(netns)
    network.delete(netns, CNI_NETNS=path(netns, directory))
    assert nothing_left(network)


@pytest.mark.parametrize(
    "changed",
    [
        {"ipMasq": False},
        {"isDefaultGateway": False, "bridge": "another"},
        {"prevResult": {"cniVersion": "1.1.0"}},
        {"vlan": 7, "macspoofchk": True, "disableContainerInterface": True},
    ],
)
def test_delete_needs_no_detail_of_the_configuration(network: Network, netns: Space, changed: dict[str, Any]) -> None:
    network.add(netns)
    network.delete(netns, changed)
    assert nothing_left(network)


def test_delete_is_complete_when_others_have_taken_parts_away(network: Network, netns: Space) -> None:
    result = network.add(netns)
    run(["ip", "link", "delete", result["interfaces"][1]["name"]]).ok()
    run(["nft", "flush", "ruleset"]).ok()
    for lease in network.leases():
        (network.leases_in / "pods" / lease).unlink()
    network.delete(netns, {"prevResult": result})
    assert nothing_left(network)


def test_delete_is_complete_without_the_bridge(network: Network, netns: Space) -> None:
    network.add(netns)
    run(["ip", "link", "delete", "cni0"]).ok()
    network.delete(netns)
    assert (host_links(), network.leases(), netns.links()) == (set(), set(), {"lo"})


def test_an_attachment_whose_interface_was_renamed_inside_goes_all_the_same(network: Network, netns: Space) -> None:
    network.add(netns)
    netns.run("ip", "link", "set", "eth0", "name", "renamed").ok()
    network.delete(netns)
    assert netns.links() == {"lo"}
    assert nothing_left(network)


def test_an_address_is_not_released_while_its_link_cannot_be_removed(network: Network, netns: Space) -> None:
    network.add(netns)
    before = network.leases()
    script = f"{network.plugins}/bridge"
    done = run(["setpriv", "--bounding-set=-net_admin", script], env=network.env("DEL", netns), stdin=network.stdin())
    error = done.json()
    assert (done.code, error["code"]) == (1, 5), error
    assert "CAP_NET_ADMIN" in error["details"]
    assert network.leases() == before
    assert addresses(netns)


def test_every_step_of_delete_is_tried_and_the_first_error_told(network: Network, netns: Space, ledger: Ledger) -> None:
    """An address manager that fails keeps neither the link nor the rules."""
    network.add(netns)
    broken = ledger.directory() / "broken"
    broken.write_text('#!/bin/sh\necho \'{"code": 42, "msg": "the address manager is out of order"}\'\nexit 1\n')
    broken.chmod(0o755)
    ipam = {"ipam": {"type": "broken"}}
    error = network.refused("DEL", netns, ipam, CNI_PATH=str(broken.parent))
    assert (error["code"], error["msg"]) == (42, "the address manager is out of order")
    assert (host_links(), netns.links(), kept()) == ({"cni0"}, {"lo"}, set())


def test_two_interfaces_of_a_pod_go_one_by_one(network: Network, netns: Space) -> None:
    network.add(netns)
    network.add(netns, {"isDefaultGateway": False, "isGateway": True}, CNI_IFNAME="net1")
    assert len(network.leases()) == 4
    network.delete(netns)
    assert netns.links() == {"lo", "net1"}
    assert len(network.leases()) == 2
    network.delete(netns, CNI_IFNAME="net1")
    assert nothing_left(network)


def test_an_interface_name_that_is_taken_is_refused_and_left_as_it_is(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    """Also by the DEL that a runtime sends after the ADD that failed."""
    other = Network(ledger, type="bridge", name="other", ipam=static("10.9.0.2/24"))
    other.add(netns)
    before = netns.run("ip", "address", "show", "eth0").ok().text
    error = network.refused("ADD", netns)
    assert (error["code"], error["msg"]) == (100, f"interface eth0 already exists in {netns.path}")
    network.delete(netns)
    assert netns.run("ip", "address", "show", "eth0").ok().text == before
    assert network.leases() == set()
    assert host_links() == {"cni0", identity("other", netns.name, "eth0")}


@pytest.mark.parametrize("kind", [["bridge"], ["veth", "peer", "name", "x"]])
def test_any_link_of_the_pod_that_has_the_name_is_left_as_it_is(
    network: Network, netns: Space, kind: list[str]
) -> None:
    netns.run("ip", "link", "add", "eth0", "type", *kind).ok()
    before = netns.links()
    assert "already exists" in network.refused("ADD", netns)["msg"]
    network.delete(netns)
    assert netns.links() == before


def test_lo_is_an_interface_that_is_taken(network: Network, netns: Space) -> None:
    assert "lo already exists" in network.refused("ADD", netns, CNI_IFNAME="lo")["msg"]
    network.delete(netns, CNI_IFNAME="lo")
    assert netns.links() == {"lo"}


def test_a_second_add_is_refused_and_does_no_harm(network: Network, netns: Space) -> None:
    result = network.add(netns)
    error = network.refused("ADD", netns)
    assert error["code"] == 100
    assert f"has interface eth0 in network pods already, by link {identity('pods', netns.name, 'eth0')}" in error["msg"]
    network.check(netns, result)


def test_a_link_of_the_attachments_name_that_somebody_else_made_is_refused(
    network: Network, netns: Space, ledger: Ledger
) -> None:
    name = ledger.link(identity("pods", netns.name, "eth0"))
    for words in (["type", "bridge"], ["type", "veth", "peer", "name", "stranger"]):
        run(["ip", "link", "add", name, *words]).ok()
        run(["ip", "link", "set", name, "alias", "mine"]).ok()
        error = network.refused("ADD", netns)
        assert (error["code"], "alias 'mine'" in error["msg"]) == (100, True)
        found = link(name)
        assert found and found.alias == "mine"
        run(["ip", "link", "delete", name]).ok()


def test_an_attachment_that_another_call_works_on_is_waited_for_and_not_for_ever(
    network: Network, netns: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.range_lock, "__kwdefaults__", {"timeout": 0.05})
    with files.range_lock(f"{paths.LOCKS}/cni/pods", identity("pods", netns.name, "eth0")):
        assert network.refused("ADD", netns)["code"] == 11
        assert network.refused("DEL", netns)["code"] == 11
        assert netns.links() == {"lo"}
