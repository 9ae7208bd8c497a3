"""dummy: a pod's link that leads nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.child import run
from tests.cni.calls import VERSIONS
from tests.cni.pods import Network, addresses, host_local, link, routes, static
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.traffic import exchange

pytestmark = needs("sandbox")


def dummy(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, **{"type": "dummy", "ipam": host_local(), **config})


@needs("link:dummy")
def test_dummy_add_check_delete_in_every_version(ledger: Ledger, netns: Space) -> None:
    """The host has a dummy of the same name."""
    run(["ip", "link", "add", ledger.link("eth0"), "type", "dummy"]).ok()
    for version in VERSIONS:
        network = dummy(ledger, cniVersion=version)
        result = network.add(netns)
        found = link("eth0", netns)
        assert found and (found.kind, found.up, addresses(netns)) == ("dummy", True, {"10.88.0.2/24"})
        if version >= "0.3.0":
            assert result["interfaces"] == [{"name": "eth0", "mac": found.mac.hex(":"), "sandbox": netns.path}]
        if version >= "0.4.0":
            network.check(netns, result)
        network.delete(netns)
        assert (netns.links(), network.leases()) == ({"lo"}, set())


@needs("link:dummy")
def test_dummy_holds_addresses_routes_and_dns_and_check_wants_it_up(ledger: Ledger, netns: Space) -> None:
    ipam = static("10.5.0.2/24,10.5.0.1", "fd05::2/64", routes=[{"dst": "10.7.0.0/16"}], dns={"domain": "a.example"})
    network = dummy(ledger, ipam=ipam)
    result = network.add(netns)
    assert (addresses(netns), result["dns"]) == ({"10.5.0.2/24", "fd05::2/64"}, {"domain": "a.example"})
    assert routes(netns)["10.7.0.0/16"]["gateway"] == "10.5.0.1"
    for address, anywhere in (("10.5.0.2", "0.0.0.0"), ("fd05::2", "::")):
        assert exchange(address, ledger.echo(netns, address=anywhere).port, space=netns) == address
    netns.run("ip", "link", "set", "eth0", "down").ok()
    assert "is down" in network.refused("CHECK", netns, {"prevResult": result})["msg"]


@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_dummy_without_ipam_is_refused(ledger: Ledger, netns: Space, command: str) -> None:
    error = dummy(ledger, ipam={}).refused(command, netns if command == "ADD" else None)
    assert (error["code"], "$.ipam.type: required, but missing" in error["details"]) == (7, True)
    assert netns.links() == {"lo"}
