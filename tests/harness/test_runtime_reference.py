"""Our runtime against the reference plugins: that they are content proves it without any plugin of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.errors import VersionUnsupported
from nodeplug.harness.runtime import config
from nodeplug.harness.runtime.cache import Attachment
from nodeplug.harness.runtime.plugin import PluginFailed
from nodeplug.harness.runtime.runtime import Runtime, SomeFailed
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space
from tests.traffic import reaches

REFERENCE = Path("/usr/lib/cni")
pytestmark = needs("sandbox", f"file:{REFERENCE}/bridge", "program:nft")

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
V4, V6 = {"subnet": "10.88.0.0/24"}, {"subnet": "fd88::/64"}


class Pods:
    """The network of one test, its address manager's files in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def bridge(self, *subnets: dict[str, str]) -> dict[str, Any]:
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(subnets)]
        ranges = [[subnet] for subnet in subnets]
        ipam = {"type": "host-local", "dataDir": str(self.directory), "ranges": ranges, "routes": routes}
        return {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}

    def network(self, version: str, *plugins: dict[str, Any]) -> config.Network:
        document = {"cniVersion": version, "name": "pods", "plugins": plugins}
        return config.parse_network(json.dumps(document).encode())

    def leases(self) -> set[str]:
        names = {path.name for path in self.directory.rglob("*") if path.is_file()}
        return {name for name in names if not name.startswith(("lock", "last_"))}


@pytest.fixture
def pods(directory: Path) -> Pods:
    return Pods(directory)


@pytest.fixture
def runtime(ledger: Ledger, tmp_path: Path) -> Runtime:
    ledger.link("cni0")
    for path in ("ip nat", "ip6 nat", "ip filter", "ip6 filter"):
        ledger.table(*path.split())  # iptables makes and keeps them
    return Runtime([REFERENCE], cache_directory=tmp_path / "cache")


def attachment(pod: Space, *ports: tuple[int, int]) -> Attachment:
    mappings = [{"hostPort": host, "containerPort": inside, "protocol": "tcp"} for host, inside in ports]
    offered = {"portMappings": mappings} if mappings else {}
    args = (("IgnoreUnknown", "1"), ("K8S_POD_NAME", pod.name))
    return Attachment(pod.name, netns=pod.path, args=args, capability_args=offered)


def test_pod_gets_an_address_answers_on_its_host_port_and_leaves_nothing(
    runtime: Runtime, pods: Pods, ledger: Ledger
) -> None:
    pod = ledger.netns()
    mine, network = attachment(pod, (8080, 80)), pods.network("1.0.0", pods.bridge(V4), PORTMAP)
    result = runtime.add(network, mine)
    assert result.cni_version == "1.0.0"
    (address,) = result.addresses("eth0")
    assert {address} == pods.leases()
    assert [link.name for link in result.interfaces][0::2] == ["cni0", "eth0"]
    ledger.echo(pod, port=80)
    assert reaches(address, 80)
    assert reaches("10.88.0.1", 8080)
    # No CHECK: portmap of plugins 1.1.1 looks for IPv6 rules that a v4 pod cannot have.
    runtime.delete(network, mine)
    runtime.delete(network, mine)
    assert pods.leases() == set()
    assert pod.links() == {"lo"}
    assert not reaches("10.88.0.1", 8080, timeout=0.5)
    assert runtime.attachments() == []


def test_check_sees_what_was_taken_away(runtime: Runtime, pods: Pods, ledger: Ledger) -> None:
    pod, network = ledger.netns(), pods.network("1.0.0", pods.bridge(V4, V6))
    runtime.add(network, attachment(pod))
    pod.run("ip", "address", "flush", "dev", "eth0").ok()
    with pytest.raises(PluginFailed, match="plugin bridge failed on CHECK"):
        runtime.check(network, attachment(pod))


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_every_version_goes_through_its_life(runtime: Runtime, pods: Pods, ledger: Ledger, version: str) -> None:
    pod, network = ledger.netns(), pods.network(version, pods.bridge(V4, V6))
    result = runtime.add(network, attachment(pod))
    assert result.cni_version == version
    assert {ip.ip for ip in result.ips} == pods.leases()
    if network.at_least("0.4.0"):
        runtime.check(network, attachment(pod))
    else:
        with pytest.raises(VersionUnsupported):
            runtime.check(network, attachment(pod))
    runtime.delete(network, attachment(pod))
    assert pods.leases() == set()


def test_delete_succeeds_when_netns_is_gone(runtime: Runtime, pods: Pods, ledger: Ledger) -> None:
    pod, network = ledger.netns(), pods.network("1.0.0", pods.bridge(V4, V6))
    runtime.add(network, attachment(pod))
    pod.remove()
    runtime.delete(network, attachment(pod))
    assert pods.leases() == set()


def test_gc_deletes_what_is_not_valid_by_the_cache_alone(runtime: Runtime, pods: Pods, ledger: Ledger) -> None:
    kept, lost = ledger.netns(), ledger.netns()
    network = pods.network("1.0.0", pods.bridge(V4), PORTMAP)
    for pod, port in ((kept, 8081), (lost, 8082)):
        runtime.add(network, attachment(pod, (port, 80)))
    lost.remove()
    removed = runtime.gc(network, [(kept.name, "eth0")])
    assert [entry.attachment.key for entry in removed] == [(lost.name, "eth0")]
    assert len(pods.leases()) == 1
    assert "8082" not in HERE.run("nft", "list", "ruleset").text
    runtime.delete(network, attachment(kept, (8081, 80)))


def test_plugins_own_error_is_passed_on(runtime: Runtime, pods: Pods, ledger: Ledger) -> None:
    pod, other = ledger.netns(), ledger.netns()
    network = pods.network("1.0.0", pods.bridge({"subnet": "10.88.0.0/30"}))
    runtime.add(network, attachment(pod))
    with pytest.raises(PluginFailed) as caught:
        runtime.add(network, attachment(other))
    assert caught.value.plugin == "bridge"
    assert "no IP addresses available" in caught.value.msg
    for each in (other, pod):
        runtime.delete(network, attachment(each))
    assert pods.leases() == set()


def test_validation_asks_the_plugins_for_their_versions(runtime: Runtime, pods: Pods) -> None:
    plugins = (pods.bridge(V4), PORTMAP)
    assert runtime.validate(pods.network("1.0.0", *plugins)) == {"portMappings"}
    with pytest.raises(SomeFailed, match=r"plugin bridge speaks .* and not 1\.1\.0"):
        runtime.validate(pods.network("1.1.0", *plugins))


def test_loopback_is_set_up_and_down(runtime: Runtime, pods: Pods, ledger: Ledger) -> None:
    pod = ledger.netns()
    pod.run("ip", "link", "set", "lo", "down").ok()
    network, lo = (
        pods.network("1.0.0", {"type": "loopback"}),
        Attachment(pod.name, netns=pod.path, ifname="lo"),
    )
    assert next(ip.ip for ip in runtime.add(network, lo).ips) == "127.0.0.1"
    runtime.check(network, lo)
    runtime.delete(network, lo)
    assert "UP" not in pod.ip("link", "show", "lo")[0]["flags"]
