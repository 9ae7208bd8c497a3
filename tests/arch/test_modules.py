"""What one execution of a plugin imports, compared with a checked-in list: each module costs every pod its start.

To add a command: a test below and `tests/arch/modules/NAME.txt`. A failure prints the lines to add or to drop, in case
they are meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from tests.arch.imports import allowed, called_as, loaded, loaded_silently
from tests.child import run
from tests.cni.chains import result, wire
from tests.cni.dhcp import lan as dhcp_lan
from tests.cni.lans import Lan
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "file:/usr/bin/python3")


@pytest.fixture(autouse=True)
def _looked() -> Iterator[None]:
    """The first ADD after a boot looks for what the reference plugins left; no other does where that was nothing."""
    Path(paths.NO_REFERENCE).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.NO_REFERENCE).touch()
    yield
    Path(paths.NO_REFERENCE).unlink()


def cni(ledger: Ledger, command: str, conf: dict[str, Any], *, pod: Space | None = None) -> list[str]:
    """What the plugin `conf["type"]` imports to answer `command` about a pod, a fresh one where none is given."""
    directory, pod = ledger.directory(), pod or ledger.netns()
    env = {"CNI_CONTAINERID": pod.name, "CNI_IFNAME": "eth0", "CNI_NETNS": pod.path, "CNI_PATH": str(directory)}
    script = called_as(conf["type"], "nodeplug-cni", directory)
    document = json.dumps({"cniVersion": "1.0.0", "name": "arch", **conf}).encode()
    ledger.adopt("attachment", lambda: run([script], env={**env, "CNI_COMMAND": "DEL"}, stdin=document).ok())
    return loaded(script, env={**env, "CNI_COMMAND": command}, stdin=document)


def compare(name: str, found: list[str]) -> None:
    listed = set(allowed(name))
    new = [module for module in found if module not in listed]
    assert not new, f"{name} imports what its list does not have:\n" + "\n".join(new)
    unused = sorted(module for module in listed - set(found) if not module.startswith("_"))
    assert not unused, f"{name}: the list has what is no longer imported:\n" + "\n".join(unused)


def test_loopback_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    compare("cni-loopback-add", cni(ledger, "ADD", {"type": "loopback"}))


def test_host_local_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    conf = {"type": "host-local", "ipam": {"subnet": "10.1.0.0/24", "dataDir": str(ledger.directory())}}
    compare("cni-host-local-add", cni(ledger, "ADD", conf))


def test_static_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    conf = {"type": "static", "ipam": {"addresses": [{"address": "10.1.0.5/24"}]}}
    compare("cni-static-add", cni(ledger, "ADD", conf))


@needs("program:dnsmasq")
def test_dhcp_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    lan = dhcp_lan.Lan(ledger)
    dhcp_lan.Dnsmasq(lan)
    compare("cni-dhcp-add", cni(ledger, "ADD", {"type": "dhcp", "ipam": {}}, pod=lan.pod()))


def test_bridge_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    """With masquerade and addresses of our own: what most nodes run."""
    ledger.link("cni0")
    ledger.table("inet", "nodeplug")
    ipam = {"type": "host-local", "dataDir": str(ledger.directory()), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
    conf = {"type": "bridge", "isDefaultGateway": True, "ipMasq": True, "ipam": ipam}
    cni(ledger, "ADD", conf)  # the first pod of a node makes the bridge and the table
    compare("cni-bridge-add", cni(ledger, "ADD", conf))


def test_a_flexvolume_call_imports_only_what_is_listed(ledger: Ledger) -> None:
    """What a volume costs where no worker is; the kubelet calls init and unmount as well."""
    directory = ledger.directory()
    script = called_as("tmpfs", "nodeplug-flexvolume", directory)
    target = str(directory / "target")
    for verb, more in (("init", []), ("mount", [target, '{"size": "64Ki"}']), ("unmount", [target])):
        compare(f"flexvolume-tmpfs-{verb}", loaded_silently(script, verb, *more))


def test_ptp_add_imports_only_what_is_listed(ledger: Ledger) -> None:
    """With masquerade and addresses of our own, as bridge above."""
    ledger.table("inet", "nodeplug")
    ipam = {"type": "host-local", "dataDir": str(ledger.directory()), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
    conf = {"type": "ptp", "ipMasq": True, "ipam": ipam}
    cni(ledger, "ADD", conf)
    compare("cni-ptp-add", cni(ledger, "ADD", conf))


IN_PODS: dict[str, tuple[str, dict[str, Any]]] = {
    "macvlan": ("link:macvlan", {"master": "lan0"}),
    "tap": ("file:/dev/net/tun", {"owner": 1000}),
}


@pytest.mark.parametrize("plugin", [pytest.param(name, marks=needs(need)) for name, (need, _) in IN_PODS.items()])
def test_add_of_a_link_in_a_pod_imports_only_what_is_listed(ledger: Ledger, plugin: str) -> None:
    """ipvlan, vlan and dummy share all but a module of their own with these."""
    Lan(ledger)
    ipam = {"type": "host-local", "dataDir": str(ledger.directory()), "ranges": [[{"subnet": "10.88.0.0/24"}]]}
    compare(f"cni-{plugin}-add", cni(ledger, "ADD", {"type": plugin, **IN_PODS[plugin][1], "ipam": ipam}))


CHAINED: dict[str, dict[str, Any]] = {
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
    "firewall": {"backend": "iptables"},
    "sbr": {},
    "tuning": {"mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}},
}


@pytest.mark.parametrize("plugin", CHAINED)
def test_add_of_a_chained_plugin_imports_only_what_is_listed(ledger: Ledger, plugin: str) -> None:
    """What a node's second pod costs: the table is there, and no other table has to be opened."""
    ledger.table("inet", "nodeplug")
    for _ in ("the first", "the one that is looked at"):
        pod = ledger.netns()
        end = wire(ledger, pod, "eth0", "10.1.0.2/24")
        before = {**result(pod, "10.1.0.2/24,10.1.0.1", host=(end,)), "cniVersion": "1.0.0"}
        found = cni(ledger, "ADD", {"type": plugin, **CHAINED[plugin], "prevResult": before}, pod=pod)
    compare(f"cni-{plugin}-add", found)
