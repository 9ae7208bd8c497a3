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


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_and_delete_in_every_version(ledger: Ledger, netns: Space, version: str) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local(), cniVersion=version)
    result = network.add(netns)
    assert result["cniVersion"] == version
    if version < "0.3.0":
        assert result["ip4"] == {"ip": "10.88.0.2/24", "gateway": "10.88.0.1"}
    else:
        name = identity("pods", netns.name, "eth0")
        assert [found["name"] for found in result["interfaces"]] == ["cni0", name, "eth0"]
        assert [found.get("sandbox") for found in result["interfaces"]] == [None, None, netns.path]
        macs = [found.mac.hex(":") for found in (link("cni0"), link(name), link("eth0", netns)) if found]
        assert [found["mac"] for found in result["interfaces"]] == macs
        (address,) = result["ips"]
        assert (address["address"], address["gateway"], address["interface"]) == ("10.88.0.2/24", "10.88.0.1", 2)
        assert address.get("version") == ("4" if version < "1.0.0" else None)
    assert addresses(netns) == {"10.88.0.2/24"}
    assert network.leases() == {"10.88.0.2"}
    if version >= "0.4.0":
        network.check(netns, result)
    network.delete(netns, {"prevResult": result} if version >= "0.4.0" else None)
    assert (host_links(), netns.links(), network.leases()) == ({"cni0"}, {"lo"}, set())


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
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
