"""macvlan, ipvlan, vlan, tap and dummy: what holds for every link that is made straight in a pod's namespace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.contract import Attachment
from nodeplug.cni.plugins import podlink
from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.lans import Lan
from tests.cni.lost import a_plain_file, elsewhere, the_hosts, without_a_name
from tests.cni.podlinks import ANYWHERE, ELSEWHERE, KINDS, network, nth
from tests.cni.pods import Network, addresses, host_links, link, static
from tests.ledger import Ledger
from tests.needs import missing, needs
from tests.space import Space

pytestmark = needs("sandbox")
each = pytest.mark.parametrize("plugin", ANYWHERE)
every = pytest.mark.parametrize("plugin", [*ANYWHERE, *ELSEWHERE])


@pytest.fixture(autouse=True)
def _lan(ledger: Ledger) -> Lan:
    return Lan(ledger)


def temporary(pod: Space, network: str = "pods") -> str:
    return podlink.name_of(Attachment(network=network, container=pod.name, ifname="eth0"))


def nothing_left(network: Network, pod: Space) -> bool:
    return (pod.links(), network.leases(), host_links()) == ({"lo"}, set(), {"lan0"})


@every
def test_delete_before_any_add_succeeds_and_comes_again_and_again(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    made.delete(netns)
    made.delete(netns, CNI_NETNS="")
    made.add(netns)
    for _ in range(3):
        made.delete(netns)
        assert nothing_left(made, netns)


@each
@pytest.mark.parametrize("path", [without_a_name, elsewhere, a_plain_file, the_hosts])
def test_a_delete_that_is_not_told_the_namespace_finds_the_link_in_it(
    ledger: Ledger, netns: Space, directory: Path, plugin: str, path: Callable[[Space, Path], str]
) -> None:
    """An address that is given again must not be on a link that is still there."""
    made, other = network(ledger, plugin), ledger.netns()
    made.add(netns)
    made.add(other, nth(plugin, 1))
    kept = addresses(other)
    made.delete(netns, CNI_NETNS=path(netns, directory))
    assert (netns.links(), addresses(other)) == ({"lo"}, kept)
    assert made.leases() == {address.split("/")[0] for address in kept}


@each
def test_delete_is_complete_when_the_namespace_has_ended(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    made.add(netns)
    netns.remove()
    made.delete(netns)
    assert (made.leases(), host_links()) == (set(), {"lan0"})


@each
def test_delete_is_complete_when_others_have_taken_parts_away(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    result = made.add(netns)
    netns.run("ip", "link", "delete", "eth0").ok()
    made.delete(netns, {"prevResult": result})
    assert nothing_left(made, netns)


@each
def test_a_link_that_was_renamed_inside_goes_all_the_same(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    made.add(netns)
    netns.run("ip", "link", "set", "eth0", "down").ok()
    netns.run("ip", "link", "set", "eth0", "name", "renamed").ok()
    made.delete(netns)
    assert nothing_left(made, netns)


@each
def test_an_interface_name_that_is_taken_is_refused_and_left_as_it_is(
    ledger: Ledger, netns: Space, plugin: str
) -> None:
    """Also by the DEL that a runtime sends after the ADD that failed, which knows no result."""
    other = network(ledger, plugin, name="other", ipam=static("10.9.0.2/24"))
    made = network(ledger, plugin, **nth(plugin, 1))
    other.add(netns)
    error = made.refused("ADD", netns)
    assert (error["code"], error["msg"]) == (100, f"interface eth0 already exists in {netns.path}")
    made.delete(netns)
    assert (addresses(netns), made.leases()) == ({"10.9.0.2/24"}, set())


@each
@pytest.mark.parametrize("kind", [["bridge"], ["veth", "peer", "name", "x"]])
def test_any_link_that_has_the_name_is_left_as_it_is(
    ledger: Ledger, netns: Space, plugin: str, kind: list[str]
) -> None:
    made = network(ledger, plugin)
    netns.run("ip", "link", "add", "eth0", "type", *kind).ok()
    before = netns.links()
    for name in ("eth0", "lo"):
        assert f"{name} already exists" in made.refused("ADD", netns, CNI_IFNAME=name)["msg"]
        made.delete(netns, CNI_IFNAME=name)
    assert netns.links() == before


@every
def test_a_name_that_the_host_has_is_free_in_a_pod(ledger: Ledger, netns: Space, plugin: str) -> None:
    run(["ip", "link", "add", ledger.link("eth0"), "type", "veth", "peer", "name", "other"]).ok()
    made = network(ledger, plugin)
    made.check(netns, made.add(netns))


@each
def test_a_second_add_is_refused_and_does_no_harm(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    result = made.add(netns)
    error = made.refused("ADD", netns)
    assert (error["code"], "has interface eth0 in network pods already" in error["msg"]) == (100, True)
    made.check(netns, result)


@each
def test_a_leftover_of_a_killed_add_is_replaced_with_a_warning(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    made.add(netns)
    label = f"unfinished pods/{netns.name}/eth0"
    netns.run("ip", "link", "set", "eth0", "alias", label).ok()
    assert "which an ADD that was killed left behind" in made.warnings("ADD", netns)
    netns.run("ip", "link", "set", "eth0", "down").ok()
    netns.run("ip", "link", "set", "eth0", "name", temporary(netns)).ok()
    netns.run("ip", "link", "set", temporary(netns), "alias", "").ok()
    assert temporary(netns) in made.warnings("ADD", netns)
    assert netns.links() == {"lo", "eth0"}
    assert len(made.leases()) == 1
    made.delete(netns)
    assert nothing_left(made, netns)


@each
def test_gc_takes_links_and_addresses_of_what_is_not_valid(ledger: Ledger, plugin: str) -> None:
    made, other = network(ledger, plugin), network(ledger, plugin, name="other", ipam=static("10.9.0.2/24"))
    living, lost, ended, foreign = (ledger.netns() for _ in range(4))
    results = [made.add(pod, nth(plugin, n)) for n, pod in enumerate((living, lost, ended))]
    foreigner = other.add(foreign, nth(plugin, 3))
    ended.remove()
    valid = {"cni.dev/valid-attachments": [{"containerID": living.name, "ifname": "eth0"}]}
    assert made.ask("GC", None, valid) == (0, None)
    assert made.leases() == {results[0]["ips"][0]["address"].split("/")[0]}
    assert lost.links() == {"lo"}
    made.check(living, results[0])
    other.check(foreign, foreigner, nth(plugin, 3))
    assert made.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert (made.leases(), living.links(), foreign.links()) == (set(), {"lo"}, {"lo", "eth0"})


@each
def test_gc_without_a_list_removes_nothing(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    result = made.add(netns)
    assert made.ask("GC") == (0, None)
    made.check(netns, result)


@each
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("ip link set eth0 down", "is down"),
        ("ip link delete eth0", "eth0 any more"),
        ("ip address delete 10.88.0.2/24 dev eth0", "has not the address 10.88.0.2/24"),
        ("ip route delete 10.7.0.0/16", "has not the route 10.7.0.0/16"),
    ],
)
def test_check_names_what_was_changed(ledger: Ledger, netns: Space, plugin: str, spoil: str, said: str) -> None:
    ipam = static("10.88.0.2/24,10.88.0.1", routes=[{"dst": "10.7.0.0/16"}])
    made = network(ledger, plugin, ipam=ipam)
    result = made.add(netns)
    made.check(netns, result)
    netns.run(*spoil.split()).ok()
    error = made.refused("CHECK", netns, {"prevResult": result})
    assert (error["code"], said in error["msg"]) == (100, True), error


@each
def test_check_needs_a_result_that_names_the_link_in_this_pod(ledger: Ledger, netns: Space, plugin: str) -> None:
    made, other = network(ledger, plugin), ledger.netns()
    result = made.add(netns)
    elsewhere = {**result, "interfaces": [{**result["interfaces"][0], "sandbox": other.path}]}
    changed = {**result, "interfaces": [{**result["interfaces"][0], "mac": "02:00:00:00:00:99"}]}
    for wrong, said in (
        ({**result, "interfaces": [], "ips": []}, "prevResult names no interface eth0 in a sandbox"),
        (elsewhere, "CNI_NETNS is"),
        (changed, "has the MAC address"),
    ):
        assert said in made.refused("CHECK", netns, {"prevResult": wrong})["msg"]
    netns.run("ip", "link", "delete", "eth0").ok()
    netns.run("ip", "link", "add", "eth0", "type", "bridge").ok()
    assert f"has no {plugin} eth0 any more" in made.refused("CHECK", netns, {"prevResult": result})["msg"]


@each
def test_the_address_is_released_and_the_link_gone_when_a_later_step_fails(
    ledger: Ledger, netns: Space, plugin: str
) -> None:
    routes = [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]
    made = network(ledger, plugin)
    made.config["ipam"]["routes"] = routes
    error = made.refused("ADD", netns)
    assert "route add" in error["msg"]
    assert nothing_left(made, netns)


@each
@pytest.mark.parametrize(
    ("ipam", "code", "said"),
    [
        ({"type": "no-such-manager"}, 5, "failed to find plugin 'no-such-manager'"),
        ({"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/30"}]]}, 11, "no IP addresses available"),
        ({"type": "nothing"}, 100, "IPAM plugin returned missing IP config"),
    ],
)
def test_an_address_manager_that_gives_nothing_leaves_no_link(
    ledger: Ledger, netns: Space, directory: Path, plugin: str, ipam: dict[str, Any], code: int, said: str
) -> None:
    (directory / "nothing").write_text('#!/bin/sh\necho \'{"cniVersion": "1.1.0", "ips": []}\'\n')
    (directory / "nothing").chmod(0o755)
    made = network(ledger, plugin, ipam=ipam)
    if code == 11:
        made.add(ledger.netns(), nth(plugin, 1))
    error = made.refused("ADD", netns, CNI_PATH=str(directory))
    assert (error["code"], said in error["msg"]) == (code, True), error
    assert netns.links() == {"lo"}


@each
def test_a_container_id_of_any_length_is_taken(ledger: Ledger, netns: Space, plugin: str) -> None:
    """An alias holds 255 bytes."""
    made, container = network(ledger, plugin), "c" * 1000
    result = made.add(netns, CNI_CONTAINERID=container)
    valid = {"cni.dev/valid-attachments": [{"containerID": container, "ifname": "eth0"}]}
    assert made.ask("GC", None, valid)[0] == 0
    made.check(netns, result, CNI_CONTAINERID=container)
    made.delete(netns, CNI_CONTAINERID=container)
    assert nothing_left(made, netns)


@each
def test_status_is_ready_and_changes_nothing(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    before = host_links()
    assert made.ask("STATUS") == (0, None)
    assert host_links() == before


@each
def test_status_tells_of_rights_and_of_the_address_manager(ledger: Ledger, plugin: str) -> None:
    made = network(ledger, plugin)
    command = ["setpriv", "--bounding-set=-net_admin", str(made.plugins / plugin)]
    done = run(command, env=made.env("STATUS", None), stdin=made.stdin())
    assert (done.code, done.json()["code"], "CAP_NET_ADMIN" in done.json()["msg"]) == (1, 50, True)
    error = made.refused("STATUS", None, {"ipam": {"type": "no-such-manager"}})
    assert (error["code"], "no-such-manager" in error["msg"]) == (50, True)


@each
def test_without_the_right_an_add_names_it_and_leaves_nothing(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    command = ["setpriv", "--bounding-set=-net_admin", str(made.plugins / plugin)]
    done = run(command, env=made.env("ADD", netns), stdin=made.stdin())
    assert (done.code, done.json()["code"]) == (1, 5), done.json()
    assert "CAP_NET_ADMIN" in done.json()["details"]
    assert nothing_left(made, netns)


@each
@pytest.mark.parametrize("result", [True, False])
def test_one_that_another_program_made_goes_only_where_a_result_names_it(
    ledger: Ledger, netns: Space, plugin: str, result: bool
) -> None:
    """As the reference plugin makes them: under the real name, without a label."""
    made = network(ledger, plugin)
    answer = made.add(netns)
    netns.run("ip", "link", "set", "eth0", "alias", "").ok()
    sits_on_the_master = plugin in ("macvlan", "ipvlan", "vlan")
    made.delete(netns, {"prevResult": answer} if result else {})
    assert ("eth0" in netns.links()) is not (result or sits_on_the_master)
    assert made.leases() == set()


@pytest.mark.parametrize("plugin", ELSEWHERE)
def test_the_life_of_a_link_from_command_to_command(ledger: Ledger, netns: Space, plugin: str) -> None:
    """What the tests above show one by one, for the kinds that seldom a test machine has."""
    made, other = network(ledger, plugin), ledger.netns()
    before = host_links()
    assert made.ask("STATUS") == (0, None)
    assert host_links() == before
    made.delete(netns)
    result = made.add(netns)
    made.check(netns, result)
    found = link("eth0", netns)
    assert found and (found.kind, found.alias) == (plugin, f"pods/{netns.name}/eth0")
    assert "has interface eth0 in network pods already" in made.refused("ADD", netns)["msg"]
    netns.run("ip", "link", "set", "eth0", "down").ok()
    assert "is down" in made.refused("CHECK", netns, {"prevResult": result})["msg"]
    netns.run("ip", "link", "set", "eth0", "name", temporary(netns), "alias", "").ok()
    assert temporary(netns) in made.warnings("ADD", netns)
    made.add(other, nth(plugin, 1))
    valid = {"cni.dev/valid-attachments": [{"containerID": other.name, "ifname": "eth0"}]}
    assert made.ask("GC", None, valid) == (0, None)
    assert (netns.links(), other.links(), len(made.leases())) == ({"lo"}, {"lo", "eth0"}, 1)
    netns.run("ip", "link", "add", "eth0", "type", "bridge").ok()
    assert "eth0 already exists" in made.refused("ADD", netns)["msg"]
    made.delete(netns)
    assert netns.links() == {"lo", "eth0"}
    made.config["ipam"]["routes"] = [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]
    assert "route add" in made.refused("ADD", netns, nth(plugin, 2), CNI_IFNAME="net1")["msg"]
    assert (netns.links(), len(made.leases())) == ({"lo", "eth0"}, 1)
    made.delete(other, CNI_NETNS="")
    assert nothing_left(made, other)


@each
def test_its_kind_is_as_the_kernel_calls_it(ledger: Ledger, netns: Space, plugin: str) -> None:
    network(ledger, plugin).add(netns)
    found = link("eth0", netns)
    assert found is not None
    assert (found.kind, found.alias) == (KINDS.get(plugin, plugin), f"pods/{netns.name}/eth0")
    assert identity("pods", netns.name, "eth0") != temporary(netns)


@pytest.mark.skipif(not missing("link:dummy"), reason="this kernel has them")
@pytest.mark.parametrize("plugin", ["ipvlan", "vlan", "dummy"])
def test_a_kernel_without_such_links_says_so(ledger: Ledger, netns: Space, plugin: str) -> None:
    made = network(ledger, plugin)
    error = made.refused("ADD", netns)
    assert (error["code"], f"this kernel has no {plugin} links (CONFIG_" in error["details"]) == (5, True), error
    assert nothing_left(made, netns)
    error = made.refused("STATUS")
    assert (error["code"], error["msg"]) == (50, f"this kernel has no {plugin} links")
