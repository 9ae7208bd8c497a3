"""bridge: what a pod gets, in every version, and what is left after it."""

from __future__ import annotations

import pytest

from nodeplug.core.naming import identity
from tests.cni.calls import VERSIONS
from tests.cni.pods import Network, addresses, host_links, host_local, link
from tests.ledger import Ledger
from tests.space import HERE, Space
from tests.traffic import exchange

pytestmark = pytest.mark.needs("sandbox")


GIVEN = {4: ("10.88.0.2/24", "10.88.0.1"), 6: ("fd88::2/64", "fd88::1")}


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["v4", "v6", "v4 and v6"])
@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_and_delete_in_every_version(
    ledger: Ledger, netns: Space, version: str, families: tuple[int, ...]
) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local(*families), cniVersion=version)
    given = {family: GIVEN[family] for family in families}
    result = network.add(netns)
    assert result["cniVersion"] == version
    if version < "0.3.0":
        assert {name: found for name, found in result.items() if name.startswith("ip")} == {
            f"ip{family}": {"ip": address, "gateway": gateway} for family, (address, gateway) in given.items()
        }
    else:
        name = identity("pods", netns.name, "eth0")
        assert [found["name"] for found in result["interfaces"]] == ["cni0", name, "eth0"]
        assert [found.get("sandbox") for found in result["interfaces"]] == [None, None, netns.path]
        macs = [found.mac.hex(":") for found in (link("cni0"), link(name), link("eth0", netns)) if found]
        assert [found["mac"] for found in result["interfaces"]] == macs
        assert [(found["address"], found["gateway"]) for found in result["ips"]] == [*given.values()]
        assert [found["interface"] for found in result["ips"]] == [2] * len(given)
        told = [found.get("version") for found in result["ips"]]
        assert told == [str(family) if version < "1.0.0" else None for family in given]
    assert addresses(netns) == {address for address, _ in given.values()}
    assert network.leases() == {address.split("/")[0] for address, _ in given.values()}
    if version >= "0.4.0":
        network.check(netns, result)
    network.delete(netns, {"prevResult": result} if version >= "0.4.0" else None)
    assert (host_links(), netns.links(), network.leases()) == ({"cni0"}, {"lo"}, set())


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["v4", "v6", "v4 and v6"])
def test_bytes_go_both_ways_between_two_pods_and_between_pod_and_host(
    ledger: Ledger, netns: Space, families: tuple[int, ...]
) -> None:
    network = Network(ledger, type="bridge", isDefaultGateway=True, ipam=host_local(*families))
    other = ledger.netns()
    mine, theirs = network.add(netns), network.add(other)
    for here, there in zip(mine["ips"], theirs["ips"], strict=True):
        here, gateway, there = here["address"].split("/")[0], here["gateway"], there["address"].split("/")[0]
        anywhere = "::" if ":" in here else "0.0.0.0"
        server, at_host = ledger.echo(other, address=anywhere), ledger.echo(address=anywhere)
        assert exchange(there, server.port, space=netns) == here
        assert exchange(there, server.port, space=HERE) == gateway
        assert exchange(gateway, at_host.port, space=netns) == here
    network.delete(netns)
    network.delete(other)
