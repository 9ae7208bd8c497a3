"""A result put into effect in a pod: addresses, routes and settings, as every plugin that makes a link has it done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nodeplug.cni.contract import Result
from nodeplug.cni.plugins import addressing
from nodeplug.cni.protocol import read_result
from nodeplug.core.errors import ConfigInvalid, Error, Refused
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links
from tests.cni.pods import addresses, routes, setting
from tests.ledger import Ledger
from tests.space import Space

pytestmark = pytest.mark.needs("sandbox")
V4 = {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 0}
V6 = {"address": "fd01::3/64", "gateway": "fd01::1", "interface": 0}


def result(*ips: Any, routes: Any = (), interfaces: Any = ({"name": "eth0", "sandbox": "/x"},)) -> Result:
    document = {"ips": [*ips], "routes": [*routes], "interfaces": [*interfaces]}
    return read_result(document, "1.1.0", "$")


class Pod:
    """A pod with a link eth0 that is down, its other end beside it."""

    def __init__(self, space: Space) -> None:
        self.space = space
        space.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far").ok()
        space.run("ip", "link", "set", "far", "up").ok()

    def configure(self, given: Result, *, detect_duplicates: bool = False) -> links.Link:
        with Netns.open(self.space.path) as netns, Netlink(NETLINK_ROUTE, netns=netns) as route:
            link = links.find(route, "eth0")
            assert link is not None
            addressing.configure(route, netns, link.index, "eth0", given, detect_duplicates=detect_duplicates)
            (answer,) = route.request(links.query(link.index))
            return links.parse(answer or b"")


@pytest.fixture
def pod(netns: Space) -> Iterator[Pod]:
    yield Pod(netns)


def test_addresses_and_routes_are_there_and_the_link_is_up(pod: Pod) -> None:
    wanted = [
        {"dst": "0.0.0.0/0"},
        {"dst": "10.9.0.0/16", "gw": "10.1.2.9", "mtu": 1400, "advmss": 1300, "priority": 7},
        {"dst": "10.8.0.0/16", "scope": 253},
        {"dst": "::/0", "gw": "fd01::1"},
    ]
    link = pod.configure(result(V4, V6, routes=wanted))
    assert link.up
    assert addresses(pod.space) == {"10.1.2.3/24", "fd01::3/64"}
    found = routes(pod.space)
    assert found["default"]["gateway"] == "10.1.2.1"
    assert found["10.9.0.0/16"]["gateway"] == "10.1.2.9"
    assert found["10.9.0.0/16"]["metric"] == 7
    assert found["10.9.0.0/16"]["metrics"] == [{"mtu": 1400, "advmss": 1300}]
    assert "gateway" not in found["10.8.0.0/16"]
    assert routes(pod.space, 6)["default"]["gateway"] == "fd01::1"


def test_the_broadcast_address_is_that_of_the_subnet(pod: Pod) -> None:
    pod.configure(result(V4, {"address": "10.7.0.0/31", "interface": 0}))
    (found,) = pod.space.ip("address", "show", "dev", "eth0")
    assert [a.get("broadcast") for a in found["addr_info"] if a["family"] == "inet"] == ["10.1.2.255", None]


def test_several_next_hops_of_one_destination_are_one_route(pod: Pod) -> None:
    wanted = [{"dst": "10.9.0.0/16", "gw": gw} for gw in ("10.1.2.7", "10.1.2.8", "10.1.2.7")]
    wanted += [{"dst": "fd09::/32", "gw": gw} for gw in ("fd01::7", "fd01::8")]
    pod.configure(result(V4, V6, routes=wanted))
    assert [hop["gateway"] for hop in routes(pod.space)["10.9.0.0/16"]["nexthops"]] == ["10.1.2.7", "10.1.2.8"]
    assert [hop["gateway"] for hop in routes(pod.space, 6)["fd09::/32"]["nexthops"]] == ["fd01::7", "fd01::8"]


def test_a_default_route_with_and_one_without_the_same_gateway_are_one(pod: Pod) -> None:
    pod.configure(result(V4, routes=[{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]))
    assert len([route for route in pod.space.ip("route", "show") if route["dst"] == "default"]) == 1


def test_a_route_without_a_gateway_goes_by_that_of_the_first_address_of_its_family(pod: Pod) -> None:
    second = {"address": "10.5.0.3/24", "gateway": "10.5.0.1", "interface": 0}
    none = {"address": "10.4.0.3/24", "interface": 0}
    pod.configure(result(none, V4, second, V6, routes=[{"dst": "10.9.0.0/16"}, {"dst": "fd09::/32"}]))
    assert routes(pod.space)["10.9.0.0/16"]["gateway"] == "10.1.2.1"
    assert routes(pod.space, 6)["fd09::/32"]["gateway"] == "fd01::1"


def test_a_route_without_any_gateway_is_by_the_link(pod: Pod) -> None:
    pod.configure(result({"address": "10.4.0.3/24", "interface": 0}, routes=[{"dst": "10.9.0.0/16"}]))
    assert "gateway" not in routes(pod.space)["10.9.0.0/16"]


def test_a_route_may_be_in_another_table(pod: Pod) -> None:
    pod.configure(result(V4, routes=[{"dst": "10.9.0.0/16", "table": 1234}]))
    assert "10.9.0.0/16" not in routes(pod.space)
    assert [route["dst"] for route in pod.space.ip("route", "show", "table", "1234")] == ["10.9.0.0/16"]


def test_a_destination_with_host_bits_is_its_network(pod: Pod) -> None:
    pod.configure(result(V4, routes=[{"dst": "10.9.1.2/16"}]))
    assert "10.9.0.0/16" in routes(pod.space)


def test_an_ipv6_address_survives_that_its_link_goes_down(pod: Pod) -> None:
    pod.configure(result(V6))
    pod.space.run("ip", "link", "set", "eth0", "down").ok()
    assert addresses(pod.space) == {"fd01::3/64"}


def test_ipv6_is_switched_on_where_the_pod_has_it_off(pod: Pod) -> None:
    pod.space.run("sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6").ok()
    pod.configure(result(V4, V6))
    assert addresses(pod.space) == {"10.1.2.3/24", "fd01::3/64"}
    assert [setting(pod.space, "net/ipv6/conf", name, "disable_ipv6") for name in ("lo", "eth0")] == ["0", "0"]


def test_a_pod_without_ipv6_addresses_keeps_ipv6_off(pod: Pod) -> None:
    pod.space.run("sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6").ok()
    pod.configure(result(V4))
    assert setting(pod.space, "net/ipv6/conf", "eth0", "disable_ipv6") == "1"


def test_addresses_can_be_used_at_once(pod: Pod) -> None:
    pod.configure(result(V6))
    (found,) = pod.space.ip("address", "show", "dev", "eth0")
    assert not any("tentative" in a for a in found["addr_info"])
    assert setting(pod.space, "net/ipv6/conf/eth0/accept_dad") == "0"


def test_duplicates_are_waited_for_where_they_are_to_be_detected(pod: Pod) -> None:
    pod.configure(result(V6), detect_duplicates=True)
    (found,) = pod.space.ip("address", "show", "dev", "eth0")
    assert not any("tentative" in a or "dadfailed" in a for a in found["addr_info"])
    assert setting(pod.space, "net/ipv6/conf/eth0/accept_dad") == "1"
    assert setting(pod.space, "net/ipv6/conf/eth0/enhanced_dad") == "1"


def test_a_duplicate_address_is_refused_by_name(pod: Pod, ledger: Ledger) -> None:
    other = ledger.netns()
    pod.space.run("ip", "link", "set", "far", "netns", other.path).ok()
    other.run("ip", "address", "add", "fd01::3/64", "dev", "far", "nodad").ok()
    other.run("ip", "link", "set", "far", "up").ok()
    with pytest.raises(Refused, match="somebody else in the network has the address fd01::3"):
        pod.configure(result(V6), detect_duplicates=True)


@pytest.mark.parametrize("index", [-1, 1, 2, 99])
def test_an_address_of_another_interface_is_refused(pod: Pod, index: int) -> None:
    interfaces = [{"name": "eth0", "sandbox": "/x"}, {"name": "other"}]
    with pytest.raises(ConfigInvalid, match=f"belongs to interface {index} of the result, which is not eth0"):
        pod.configure(result({**V4, "interface": index}, interfaces=interfaces))


def test_an_address_when_the_result_has_no_interfaces_is_refused(pod: Pod) -> None:
    with pytest.raises(ConfigInvalid, match="belongs to interface 0"):
        pod.configure(result(V4, interfaces=()))


def test_an_address_without_an_interface_is_passed_over(pod: Pod) -> None:
    pod.configure(result({"address": "10.1.2.3/24"}))
    assert addresses(pod.space) == set()


def test_an_unreachable_gateway_is_told_with_the_kernels_words(pod: Pod) -> None:
    with pytest.raises(Error, match=r"cannot configure eth0 in .*route add: .*10\.9\.0\.0/16 via 192\.0\.2\.1"):
        pod.configure(result(V4, routes=[{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]))
