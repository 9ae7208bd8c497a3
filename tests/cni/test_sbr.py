"""sbr: rules and tables as iproute2 shows them, packets that leave where they should, and what is left after DEL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.plugins.sbr.config import SbrConf
from nodeplug.core import document
from tests.cni.calls import VERSIONS
from tests.cni.chains import Chain, result, wire
from tests.cni.pods import Network
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange

pytestmark = needs("sandbox")

V4, V6 = "10.1.0.2/24,10.1.0.1", "fd01::2/64,fd01::1"


def sbr(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, type="sbr", **config)


@pytest.fixture
def pod(ledger: Ledger, netns: Space) -> Space:
    """One interface, with an address of each family and a default route of IPv4."""
    wire(ledger, netns, "eth0", "10.1.0.2/24", "fd01::2/64")
    netns.run("ip", "route", "add", "default", "via", "10.1.0.1").ok()
    return netns


def rules(pod: Space, family: int = 4) -> dict[str, str]:
    """Table by source, the kernel's own rules left out."""
    return {r["src"]: r["table"] for r in pod.ip(f"-{family}", "rule", "show") if r["src"] != "all"}


def routes(pod: Space, table: str = "main", family: int = 4) -> dict[str, Any]:
    shown = pod.run("ip", "-j", f"-{family}", "route", "show", "table", table)
    return {route["dst"]: route for route in (shown.json() if shown.text else [])}


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_packets_from_its_address_have_a_table_of_their_own_in_every_version(
    ledger: Ledger, pod: Space, version: str
) -> None:
    network = sbr(ledger, cniVersion=version)
    before: dict[str, Any] = {**result(pod, V4), "cniVersion": version}
    if version < "1":
        before["ips"][0]["version"] = "4"
        before["dns"] = {}
    assert network.add(pod, {"prevResult": before}) == before
    assert rules(pod) == {"10.1.0.2": "100"}
    table = routes(pod, "100")
    assert (table["default"]["gateway"], table["10.1.0.0/24"]["dev"]) == ("10.1.0.1", "eth0")
    assert routes(pod) == {}
    if version >= "0.4.0":
        network.check(pod, before)
    network.delete(pod, {"prevResult": before} if version >= "0.4.0" else None)
    assert rules(pod) == {}


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_versions_without_chaining_are_refused(ledger: Ledger, pod: Space, version: str) -> None:
    assert sbr(ledger, cniVersion=version).refused("ADD", pod)["code"] == 1


def test_it_must_be_chained_and_needs_addresses(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger)
    assert network.refused("ADD", pod)["msg"] == "This plugin must be called as chained plugin"
    said = "No IP addresses supplied on interface: eth0"
    assert network.refused("ADD", pod, {"prevResult": result(pod)})["msg"] == said
    other = result(pod, V4, ifname="eth1")
    assert network.refused("ADD", pod, {"prevResult": other})["msg"] == said


def test_both_families_have_rules_and_the_link_local_route_stays(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger)
    network.check(pod, network.add(pod, {"prevResult": result(pod, V4, V6)}))
    assert (rules(pod), rules(pod, 6)) == ({"10.1.0.2": "100"}, {"fd01::2": "101"})
    assert routes(pod, "101", 6)["default"]["gateway"] == "fd01::1"
    assert "fd01::/64" in routes(pod, "101", 6)
    assert set(routes(pod, family=6)) == {"fe80::/64"}


def test_several_addresses_have_a_table_each(ledger: Ledger, pod: Space) -> None:
    for address in ("10.1.0.3/24", "10.9.0.2/24"):
        pod.run("ip", "address", "add", address, "dev", "eth0").ok()
    pod.run("ip", "route", "add", "10.50.0.0/16", "via", "10.9.0.1").ok()
    network = sbr(ledger)
    before = result(pod, V4, "10.1.0.3/24,10.1.0.1", "10.9.0.2/24,10.9.0.1")
    network.check(pod, network.add(pod, {"prevResult": before}))
    assert rules(pod) == {"10.1.0.2": "100", "10.1.0.3": "101", "10.9.0.2": "102"}
    assert set(routes(pod, "100")) == set(routes(pod, "101")) == {"default", "10.1.0.0/24"}
    assert set(routes(pod, "102")) == {"default", "10.9.0.0/24", "10.50.0.0/16"}
    assert routes(pod) == {}


def test_tables_that_rules_or_routes_use_are_passed_over(ledger: Ledger, pod: Space) -> None:
    pod.run("ip", "rule", "add", "fwmark", "7", "table", "100").ok()
    pod.run("ip", "route", "add", "10.200.0.0/16", "dev", "eth0", "table", "101").ok()
    pod.run("ip", "-6", "rule", "add", "fwmark", "7", "table", "102").ok()
    sbr(ledger).add(pod, {"prevResult": result(pod, V4)})
    assert rules(pod) == {"10.1.0.2": "103"}


def test_a_route_that_fits_no_address_stays_where_it_was(ledger: Ledger, pod: Space) -> None:
    pod.run("ip", "route", "add", "10.60.0.0/16", "via", "10.77.0.1", "dev", "eth0", "onlink").ok()
    sbr(ledger).add(pod, {"prevResult": result(pod, V4)})
    assert set(routes(pod)) == {"10.60.0.0/16"}


def test_with_a_table_only_rules_are_added_and_deleted(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger, table=70000)
    before = routes(pod)
    answer = network.add(pod, {"prevResult": result(pod, V4, V6)})
    network.check(pod, answer)
    assert (rules(pod), rules(pod, 6)) == ({"10.1.0.2": "70000"}, {"fd01::2": "70000"})
    assert routes(pod) == before
    pod.run("ip", "rule", "add", "from", "10.1.0.2", "table", "5").ok()
    network.delete(pod)
    assert (rules(pod), rules(pod, 6)) == ({"10.1.0.2": "5"}, {})
    assert "to table 70000" in network.refused("CHECK", pod, {"prevResult": answer})["msg"]


@pytest.mark.parametrize(
    "gateways", [["10.1.0.9"], ["fd01::9"], ["fd01::9", "10.1.0.9"]], ids=["v4", "v6", "v4 and v6"]
)
def test_static_gateways_go_before_those_of_the_addresses(ledger: Ledger, pod: Space, gateways: list[str]) -> None:
    pod.run("ip", "route", "delete", "default").ok()
    network = sbr(ledger, gateways=gateways)
    network.check(pod, network.add(pod, {"prevResult": result(pod, V4, "fd01::2/64")}))
    assert routes(pod, "100")["default"]["gateway"] == ("10.1.0.9" if "10.1.0.9" in gateways else "10.1.0.1")
    assert routes(pod, "101", 6).get("default", {}).get("gateway") == ("fd01::9" if "fd01::9" in gateways else None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"gateways": ["10.1.0.1", "10.1.0.2"]}, "$.gateways[1]: a second one of IPv4: 10.1.0.1 and 10.1.0.2"),
        ({"gateways": ["10.1.0.1", "fd01::1", "fd01::2"]}, "$.gateways[2]: a second one of IPv6"),
        ({"gateways": ["nonsense"]}, "$.gateways[0]: 'nonsense' is not an IP address"),
        ({"table": 0}, "$.table"),
        ({"table": "100"}, "$.table"),
        ({"addSourceHints": 1}, "$.addSourceHints"),
    ],
)
def test_wrong_keys_are_named(ledger: Ledger, pod: Space, keys: dict[str, Any], said: str) -> None:
    network = sbr(ledger, **keys)
    error = network.refused("ADD", pod, {"prevResult": result(pod, V4)})
    assert (error["code"], said in error["details"]) == (7, True)
    assert network.refused("STATUS")["code"] == 7


def test_source_hints_keep_the_direct_routes_in_the_main_table(ledger: Ledger, pod: Space) -> None:
    pod.run("ip", "route", "add", "10.50.0.0/16", "via", "10.1.0.1").ok()
    network = sbr(ledger, addSourceHints=True)
    network.check(pod, network.add(pod, {"prevResult": result(pod, V4, V6)}))
    (main,) = routes(pod).values()
    assert (main["dst"], main["prefsrc"], main["dev"], main["scope"]) == ("10.1.0.0/24", "10.1.0.2", "eth0", "link")
    main6 = routes(pod, family=6)
    assert (set(main6), main6["fd01::/64"]["prefsrc"]) == ({"fd01::/64", "fe80::/64"}, "fd01::2")
    assert set(routes(pod, "100")) == {"default", "10.1.0.0/24", "10.50.0.0/16"}


def test_answers_leave_by_the_interface_they_were_asked_on(ledger: Ledger, netns: Space) -> None:
    """Two interfaces, two routers, one client behind both: without sbr the answers go by the default route alone."""
    client = ledger.netns()
    client.run("ip", "address", "add", "192.0.2.9/32", "dev", "lo").ok()
    for n, ifname in enumerate(("eth0", "eth1"), 1):
        wire(ledger, netns, ifname, f"10.{n}.0.2/24", host=client, peer=f"out{n}")
        client.run("ip", "address", "add", f"10.{n}.0.1/24", "dev", f"out{n}").ok()
    netns.run("ip", "link", "set", "eth1", "address", "02:00:00:00:00:02").ok()
    netns.run("ip", "route", "add", "default", "via", "10.1.0.1").ok()
    server = ledger.echo(netns)
    from_afar: dict[str, Any] = {"space": client, "source": ("192.0.2.9", 0)}
    assert exchange("10.1.0.2", server.port, **from_afar) == "192.0.2.9"
    client.run("ip", "link", "set", "out1", "down").ok()
    with pytest.raises(OSError):
        exchange("10.2.0.2", server.port, timeout=0.5, **from_afar)
    client.run("ip", "link", "set", "out1", "up").ok()
    network = sbr(ledger)
    network.add(netns, {"prevResult": result(netns, "10.2.0.2/24,10.2.0.1", ifname="eth1")}, CNI_IFNAME="eth1")
    client.run("ip", "link", "set", "out1", "down").ok()
    assert exchange("10.2.0.2", server.port, **from_afar) == "192.0.2.9"


def test_a_default_route_of_another_interface_stays_the_pods(ledger: Ledger, pod: Space) -> None:
    wire(ledger, pod, "eth1", "10.2.0.2/24", peer="second")
    network, before = sbr(ledger), routes(pod)["default"]
    second = result(pod, "10.2.0.2/24,10.2.0.1", ifname="eth1")
    network.check(pod, network.add(pod, {"prevResult": second}, CNI_IFNAME="eth1"), CNI_IFNAME="eth1")
    assert (rules(pod), set(routes(pod))) == ({"10.2.0.2": "100"}, {"default", "10.1.0.0/24"})
    assert (routes(pod)["default"], before["gateway"], before["dev"]) == (before, "10.1.0.1", "eth0")
    assert (routes(pod, "100")["default"]["gateway"], routes(pod, "100")["default"]["dev"]) == ("10.2.0.1", "eth1")
    network.delete(pod, {"prevResult": second}, CNI_IFNAME="eth1")
    assert (rules(pod), routes(pod)["default"]) == ({}, before)


def test_an_interface_that_is_not_there_is_named(ledger: Ledger, netns: Space) -> None:
    assert (
        "Cannot find network interface eth0"
        in sbr(ledger).refused("ADD", netns, {"prevResult": result(netns, V4)})["msg"]
    )


def test_a_failed_add_puts_everything_back(ledger: Ledger, pod: Space) -> None:
    before = (routes(pod), routes(pod, family=6))
    # The second address's gateway is on no network of the interface, which the kernel refuses.
    bad = result(pod, V4, "10.9.0.2/24,10.8.0.1")
    error = sbr(ledger).refused("ADD", pod, {"prevResult": bad})
    assert "cannot set up source based routing for eth0" in error["msg"]
    assert (routes(pod), routes(pod, family=6)) == before
    assert (rules(pod), routes(pod, "100"), routes(pod, "101")) == ({}, {}, {})


def test_a_repeated_add_has_its_rules_once(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger, table=5)
    for _ in range(2):
        network.add(pod, {"prevResult": result(pod, V4)})
    assert [r["src"] for r in pod.ip("rule", "show") if r["src"] != "all"] == ["10.1.0.2"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("ip rule delete from 10.1.0.2", "no rule leads packets from 10.1.0.2 to a table of its own"),
        ("ip route delete default table 100", "table 100 has no default route by 10.1.0.1"),
        ("ip route replace default via 10.1.0.7 table 100", "table 100 has no default route by 10.1.0.1"),
        ("ip link delete eth0", "eth0 is gone"),
    ],
)
def test_check_names_what_was_changed(ledger: Ledger, pod: Space, spoil: str, said: str) -> None:
    network = sbr(ledger)
    answer = network.add(pod, {"prevResult": result(pod, V4)})
    pod.run(*spoil.split()).ok()
    assert said in network.refused("CHECK", pod, {"prevResult": answer})["msg"]


def test_delete_without_the_namespace_succeeds_and_leaves_no_file_in_its_place(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger)
    network.add(pod, {"prevResult": result(pod, V4)})
    pod.remove()
    for path in (pod.path, "", "/run/netns/never"):
        network.delete(pod, CNI_NETNS=path)
        assert not Path(path or "/nonexistent").exists()


def test_delete_without_the_interface_takes_its_rules_away(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger)
    answer = network.add(pod, {"prevResult": result(pod, V4)})
    pod.run("ip", "rule", "add", "from", "10.66.0.1", "table", "66").ok()
    pod.run("ip", "link", "delete", "eth0").ok()
    network.delete(pod)
    assert rules(pod) == {"10.66.0.1": "66"}, "ours is known by its protocol; another's stays"
    pod.run("ip", "rule", "add", "from", "10.1.0.2", "table", "7").ok()
    network.delete(pod, {"prevResult": answer})
    assert rules(pod) == {"10.66.0.1": "66"}


def test_delete_leaves_the_rules_of_other_interfaces(ledger: Ledger, pod: Space) -> None:
    wire(ledger, pod, "eth1", "10.2.0.2/24", peer="second")
    network = sbr(ledger)
    network.add(pod, {"prevResult": result(pod, V4)})
    network.add(pod, {"prevResult": result(pod, "10.2.0.2/24", ifname="eth1")}, CNI_IFNAME="eth1")
    assert rules(pod) == {"10.1.0.2": "100", "10.2.0.2": "101"}
    network.delete(pod)
    assert rules(pod) == {"10.2.0.2": "101"}


def test_gc_has_nothing_to_do_and_status_looks_at_the_configuration(ledger: Ledger, pod: Space) -> None:
    network = sbr(ledger)
    assert network.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert network.ask("STATUS") == (0, None)


def test_every_key_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cni" / "sbr.md").read_text()
    assert document.reference(SbrConf).strip() in page


def test_the_example_of_its_page_runs(ledger: Ledger, netns: Space) -> None:
    chain = Chain.of_page(ledger, "cni/sbr.md", "second.conflist")
    chain.add(netns, "net1")
    assert rules(netns) == {"10.91.0.2": "100"}
    assert routes(netns, "100")["default"]["gateway"] == "10.91.0.1"
    chain.check(netns, "net1")
    chain.status()
    chain.delete(netns, "net1")
    assert netns.links() == {"lo"}
