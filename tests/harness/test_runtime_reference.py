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

BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


def network(version: str = "1.0.0", *plugins: dict[str, Any]) -> config.Network:
    document = {"cniVersion": version, "name": "pods", "plugins": plugins or [BRIDGE, PORTMAP]}
    return config.parse_network(json.dumps(document).encode())


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


def leases() -> set[str]:
    directory = Path("/var/lib/cni/networks/pods")
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    return {name for name in names if not name.startswith(("lock", "last_"))}


def test_pod_gets_addresses_answers_on_its_host_port_and_leaves_nothing(runtime: Runtime, ledger: Ledger) -> None:
    pod = ledger.netns()
    mine = attachment(pod, (8080, 80))
    result = runtime.add(network(), mine)
    assert result.cni_version == "1.0.0"
    v4, v6 = result.addresses("eth0")
    assert {v4, v6} == leases()
    assert [link.name for link in result.interfaces][0::2] == ["cni0", "eth0"]
    ledger.echo(pod, port=80)
    assert reaches(v4, 80)
    assert reaches("10.88.0.1", 8080)
    runtime.check(network(), mine)
    runtime.delete(network(), mine)
    runtime.delete(network(), mine)
    assert leases() == set()
    assert pod.links() == {"lo"}
    assert not reaches("10.88.0.1", 8080, timeout=0.5)
    assert runtime.attachments() == []


def test_check_sees_what_was_taken_away(runtime: Runtime, ledger: Ledger) -> None:
    pod = ledger.netns()
    runtime.add(network(), attachment(pod))
    pod.run("ip", "address", "flush", "dev", "eth0").ok()
    with pytest.raises(PluginFailed, match="plugin bridge failed on CHECK"):
        runtime.check(network(), attachment(pod))
    runtime.delete(network(), attachment(pod))


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_every_version_goes_through_its_life(runtime: Runtime, ledger: Ledger, version: str) -> None:
    pod = ledger.netns()
    spoken = network(version, BRIDGE)
    result = runtime.add(spoken, attachment(pod))
    assert result.cni_version == version
    assert {ip.ip for ip in result.ips} == leases()
    if spoken.at_least("0.4.0"):
        runtime.check(spoken, attachment(pod))
    else:
        with pytest.raises(VersionUnsupported):
            runtime.check(spoken, attachment(pod))
    runtime.delete(spoken, attachment(pod))
    assert leases() == set()


def test_delete_succeeds_when_netns_is_gone(runtime: Runtime, ledger: Ledger) -> None:
    pod = ledger.netns()
    runtime.add(network(), attachment(pod))
    pod.remove()
    runtime.delete(network(), attachment(pod))
    assert leases() == set()


def test_gc_deletes_what_is_not_valid_by_the_cache_alone(runtime: Runtime, ledger: Ledger) -> None:
    kept, lost = ledger.netns(), ledger.netns()
    for pod, port in ((kept, 8081), (lost, 8082)):
        runtime.add(network(), attachment(pod, (port, 80)))
    lost.remove()
    removed = runtime.gc(network(), [(kept.name, "eth0")])
    assert [entry.attachment.key for entry in removed] == [(lost.name, "eth0")]
    assert len(leases()) == 2
    assert "8082" not in HERE.run("nft", "list", "ruleset").text
    runtime.delete(network(), attachment(kept, (8081, 80)))


def test_plugins_own_error_is_passed_on(runtime: Runtime, ledger: Ledger) -> None:
    pod = ledger.netns()
    full = {**BRIDGE, "ipam": {"type": "host-local", "subnet": "10.88.0.0/30"}}
    runtime.add(network("1.0.0", full), attachment(pod))
    other = ledger.netns()
    with pytest.raises(PluginFailed) as caught:
        runtime.add(network("1.0.0", full), attachment(other))
    assert caught.value.plugin == "bridge"
    assert "no IP addresses available" in caught.value.msg
    for each in (other, pod):
        runtime.delete(network("1.0.0", full), attachment(each))


def test_validation_asks_the_plugins_for_their_versions(runtime: Runtime) -> None:
    assert runtime.validate(network()) == {"portMappings"}
    with pytest.raises(SomeFailed, match=r"plugin bridge speaks .* and not 1\.1\.0"):
        runtime.validate(network("1.1.0"))


def test_loopback_is_set_up_and_down(runtime: Runtime, ledger: Ledger) -> None:
    pod = ledger.netns()
    pod.run("ip", "link", "set", "lo", "down").ok()
    loopback = network("1.0.0", {"type": "loopback"})
    lo = Attachment(pod.name, netns=pod.path, ifname="lo")
    assert next(ip.ip for ip in runtime.add(loopback, lo).ips) == "127.0.0.1"
    runtime.check(loopback, lo)
    runtime.delete(loopback, lo)
    assert "UP" not in pod.ip("link", "show", "lo")[0]["flags"]
