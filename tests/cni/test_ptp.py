"""ptp: what a pod and the host have of each other, key by key, and that packets pass."""

from __future__ import annotations

from typing import Any

import pytest

from nodeplug.core.naming import identity
from nodeplug.kernel.rtnl import links
from tests.child import run
from tests.cni.calls import VERSIONS
from tests.cni.pods import Network, addresses, host_links, host_local, link, routes, setting, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import exchange

pytestmark = needs("sandbox")
DEFAULT = [{"dst": "0.0.0.0/0"}]


def ptp(ledger: Ledger, **config: Any) -> Network:
    ledger.table("inet", "nodeplug")
    return Network(ledger, **{"type": "ptp", "ipam": host_local(routes=DEFAULT), **config})


def end_of(pod: Space) -> str:
    return identity("pods", pod.name, "eth0")


@pytest.mark.parametrize("version", VERSIONS)
def test_ptp_add_check_delete_in_every_version(ledger: Ledger, netns: Space, version: str) -> None:
    network = ptp(ledger, cniVersion=version)
    result = network.add(netns)
    assert addresses(netns) == {"10.88.0.2/24"}
    if version >= "0.3.0":
        outside, inside = link(end_of(netns)), link("eth0", netns)
        assert outside and inside
        assert result["interfaces"] == [
            {"name": end_of(netns), "mac": outside.mac.hex(":")},
            {"name": "eth0", "mac": inside.mac.hex(":"), "sandbox": netns.path},
        ]
        assert [(ip["interface"], ip["gateway"]) for ip in result["ips"]] == [(1, "10.88.0.1")]
    else:
        assert result["ip4"]["ip"] == "10.88.0.2/24"
    if version >= "0.4.0":
        network.check(netns, result)
    network.delete(netns)
    assert (netns.links(), network.leases(), host_links()) == ({"lo"}, set(), set())


@pytest.mark.parametrize("masquerade", [None, "iptables", "nftables"])
def test_ptp_host_and_pod_reach_each_other(ledger: Ledger, netns: Space, masquerade: str | None) -> None:
    network = ptp(
        ledger, ipMasq=masquerade is not None, ipMasqBackend=masquerade, ipam=host_local(4, 6, routes=DEFAULT)
    )
    own, own6 = (ip["address"].split("/")[0] for ip in network.add(netns)["ips"])
    here, here6 = ledger.echo(), ledger.echo(address="::")
    assert exchange("10.88.0.1", here.port, space=netns) == own
    assert exchange("fd88::1", here6.port, space=netns) == own6
    assert exchange(own, ledger.echo(netns).port) == "10.88.0.1"
    assert exchange(own6, ledger.echo(netns, address="::").port)


def test_ptp_pods_reach_each_other_by_the_host(ledger: Ledger, netns: Space) -> None:
    """A neighbour of the same subnet is behind the gateway too."""
    network, other = ptp(ledger, ipam=host_local(4, 6)), ledger.netns()
    first, second = ([ip["address"].split("/")[0] for ip in network.add(pod)["ips"]] for pod in (netns, other))
    assert exchange(second[0], ledger.echo(other).port, space=netns) == first[0]
    assert exchange(second[1], ledger.echo(other, address="::").port, space=netns) == first[1]
    assert exchange(first[0], ledger.echo(netns).port, space=other) == second[0]


def test_ptp_routes_lead_to_the_gateway_only(ledger: Ledger, netns: Space) -> None:
    network = ptp(ledger, ipam=host_local(4, 6, routes=[*DEFAULT, {"dst": "::/0"}]))
    network.add(netns)
    found, found6 = routes(netns), routes(netns, 6)
    assert set(found) == {"10.88.0.1", "10.88.0.0/24", "default"}
    assert found["10.88.0.1"]["scope"] == "link"
    assert (found["10.88.0.0/24"]["gateway"], found["10.88.0.0/24"]["prefsrc"]) == ("10.88.0.1", "10.88.0.2")
    assert found["default"]["gateway"] == "10.88.0.1"
    assert set(found6) == {"fd88::1", "fd88::/64", "fe80::/64", "default"}
    assert (found6["fd88::/64"]["gateway"], found6["default"]["gateway"]) == ("fd88::1", "fd88::1")
    assert addresses(HERE, end_of(netns)) == {"10.88.0.1/32", "fd88::1/128"}
    way, way6 = routes(HERE)["10.88.0.2"], routes(HERE, 6)["fd88::2"]
    assert (way["dev"], way6["dev"]) == (end_of(netns), end_of(netns))
    assert setting(HERE, "net/ipv4/ip_forward") == "1"
    assert setting(HERE, "net/ipv6/conf/all/forwarding") == "1"
    assert setting(HERE, "net/ipv6/conf", end_of(netns), "accept_ra") == "0"


def test_ptp_routes_stay_when_the_pod_sets_its_link_down_and_up(ledger: Ledger, netns: Space) -> None:
    """For IPv6, whose addresses are kept; no route to the subnet without the gateway comes back for either family."""
    ptp(ledger, ipam=host_local(4, 6)).add(netns)
    netns.run("ip", "link", "set", "eth0", "down").ok()
    netns.run("ip", "link", "set", "eth0", "up").ok()
    assert "10.88.0.0/24" not in routes(netns)
    assert addresses(netns) == {"10.88.0.2/24", "fd88::2/64"}


@pytest.mark.parametrize(
    ("ipam", "ways"),
    [
        (static("10.5.0.2/32,10.5.0.1", routes=DEFAULT), {"10.5.0.1", "default"}),
        (static("10.5.0.2/24,169.254.1.1", routes=DEFAULT), {"169.254.1.1", "10.5.0.0/24", "default"}),
        (static("10.5.0.2/24,10.5.0.1", "10.5.0.3/24,10.5.0.1"), {"10.5.0.1", "10.5.0.0/24"}),
        (
            static("10.5.0.2/24,10.5.0.1", routes=[{"dst": "10.5.0.0/24", "gw": "10.5.0.1", "mtu": 1400}]),
            {"10.5.0.1", "10.5.0.0/24"},
        ),
    ],
    ids=["host prefix", "gateway elsewhere", "two addresses", "the subnet's own route"],
)
def test_ptp_gateway_may_be_any_the_address_manager_says(
    ledger: Ledger, netns: Space, ipam: Any, ways: set[str]
) -> None:
    network = ptp(ledger, ipam=ipam)
    result = network.add(netns)
    assert set(routes(netns)) == ways
    gateway = ipam["addresses"][0]["gateway"]
    assert exchange(gateway, ledger.echo().port, space=netns) == "10.5.0.2"
    assert exchange("10.5.0.2", ledger.echo(netns).port) == gateway
    network.check(netns, result)


@pytest.mark.parametrize(("families", "addressed"), [((4,), False), ((4, 6), True)])
def test_ptp_hosts_end_speaks_ipv6_to_pods_that_have_it(
    ledger: Ledger, netns: Space, families: tuple[int, ...], addressed: bool
) -> None:
    ptp(ledger, ipam=host_local(*families)).add(netns)
    (found,) = HERE.ip("-6", "address", "show", "dev", end_of(netns)) or [{"addr_info": []}]
    assert bool(found["addr_info"]) is addressed


@pytest.mark.parametrize("mtu", [0, 1280, 9000, 65535])
def test_ptp_mtu_is_that_of_both_ends(ledger: Ledger, netns: Space, mtu: int) -> None:
    ptp(ledger, mtu=mtu, ipam=host_local(4, 6)).add(netns)
    outside, inside = link(end_of(netns)), link("eth0", netns)
    assert outside and inside and (outside.mtu, inside.mtu) == (mtu or 1500, mtu or 1500)
    assert outside.operstate == links.OPER_UP


IPAM_DNS = {"nameservers": ["10.0.0.10"], "domain": "pods.example"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, IPAM_DNS),
        ({"domain": ""}, IPAM_DNS),
        ({"nameservers": ["192.0.2.1"]}, {"nameservers": ["192.0.2.1"]}),
        ({"search": []}, None),
    ],
    ids=["kept", "kept beside nothing", "overridden", "overridden by an empty list"],
)
def test_ptp_dns_of_the_configuration_takes_the_place_of_the_address_managers(
    ledger: Ledger, netns: Space, given: Any, expected: Any
) -> None:
    network = ptp(ledger, dns=given, ipam=static("10.5.0.2/24,10.5.0.1", dns=IPAM_DNS))
    assert network.add(netns).get("dns") == expected


def test_ptp_masquerades_what_leaves_for_other_networks(ledger: Ledger, netns: Space) -> None:
    """As the host's own address, which the machine outside can answer; not what goes to the pods' own subnet."""
    outside = ledger.netns()
    near = ("link", "add", ledger.link("uplink"), "type", "veth")
    run(["ip", *near, "peer", "name", "eth0", "netns", outside.name]).ok()
    run(["ip", "address", "add", "192.0.2.1/30", "dev", "uplink"]).ok()
    run(["ip", "link", "set", "uplink", "up"]).ok()
    outside.run("ip", "address", "add", "192.0.2.2/30", "dev", "eth0").ok()
    outside.run("ip", "link", "set", "eth0", "up").ok()
    network = ptp(ledger, ipMasq=True)
    result = network.add(netns)
    port = ledger.echo(outside).port
    assert exchange("192.0.2.2", port, space=netns) == "192.0.2.1"
    network.check(netns, result)
    run(["nft", "flush", "table", "inet", "nodeplug"]).ok()
    error = network.refused("CHECK", netns, {"prevResult": result})
    assert "is not masqueraded" in error["msg"]


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ({"ipam": {}}, 7, "$.ipam.type: required, but missing"),
        ({"ipam": static("10.5.0.2/24")}, 7, "nothing cannot be the gateway of 10.5.0.2/24"),
        ({"ipam": static("10.5.0.2/24,10.5.0.2")}, 7, "10.5.0.2 cannot be the gateway of 10.5.0.2/24"),
        ({"ipam": static("fd05::2/64,fd05::1"), "mtu": 1279}, 7, "IPv6 needs an MTU of 1280"),
        ({"ipam": static("10.5.0.2/24,10.5.0.1", routes=[{"dst": "10.9.0.0/16", "gw": "192.0.2.9"}])}, 5, "route add"),
        ({"ipam": {"type": "no-such-manager"}}, 5, "failed to find plugin 'no-such-manager'"),
        ({"mtu": 67}, 7, "$.mtu: "),
        ({"ipMasq": "yes"}, 7, "$.ipMasq: "),
        ({"ipMasqBackend": "ebtables"}, 7, "$.ipMasqBackend: "),
        ({"dns": {"nameservers": "10.0.0.1"}}, 7, "$.dns.nameservers: "),
    ],
)
def test_ptp_asked_for_what_cannot_be_says_so_and_leaves_nothing(
    ledger: Ledger, netns: Space, config: dict[str, Any], code: int, said: str
) -> None:
    network = ptp(ledger, **config)
    error = network.refused("ADD", netns)
    assert (error["code"], said in error["msg"] + error.get("details", "")) == (code, True), error
    assert (netns.links(), host_links(), network.leases()) == ({"lo"}, set(), set())


def test_ptp_address_that_the_host_routes_elsewhere_is_refused(ledger: Ledger, netns: Space) -> None:
    """The reference passes over that route, and the new pod never gets a packet."""
    network, other = ptp(ledger, ipam=static("10.5.0.2/24,10.5.0.1")), ledger.netns()
    network.add(netns)
    error = network.refused("ADD", other)
    assert (error["code"], error["msg"]) == (
        100,
        f"the host has a route to 10.5.0.2 already, by link {end_of(netns)}",
    )
    assert (other.links(), host_links()) == ({"lo"}, {end_of(netns)})
    assert exchange("10.5.0.2", ledger.echo(netns).port)


def test_ptp_forwarding_that_is_dropped_by_default_is_warned_of(ledger: Ledger, netns: Space) -> None:
    ledger.table("ip", "filter")
    run(
        [
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        ]
    )
    assert "FORWARD" in ptp(ledger).warnings("ADD", netns)
    ptp(ledger).delete(netns)


def test_ptp_works_where_ipv6_is_off_by_default(ledger: Ledger, netns: Space) -> None:
    for space in (HERE, netns):
        space.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1").ok()
    ledger.adopt("setting", lambda: run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=0"]))
    network = ptp(ledger, ipam=host_local(6))
    own = network.add(netns)["ips"][0]["address"].split("/")[0]
    assert exchange(own, ledger.echo(netns, address="::").port)
