"""Chains of plugins run as a runtime runs them: each an executable, results handed on and back; by a page's example.

And what tests of chained plugins share: an interface that some plugin before them could have made, and its result.
"""

from __future__ import annotations

import json
from typing import Any

from nodeplug.cni.dispatch import IPAM, PLUGINS
from nodeplug.harness.runtime.cache import Attachment
from nodeplug.harness.runtime.config import parse_network
from nodeplug.harness.runtime.result import encode
from nodeplug.harness.runtime.runtime import Runtime
from tests.examples import examples
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space

MAC = "02:00:00:00:00:01"


class Chain:
    """A network configuration list, and its commands for pods."""

    def __init__(self, ledger: Ledger, conflist: dict[str, Any]) -> None:
        directory = ledger.directory()
        for name in (*PLUGINS, *IPAM):
            (directory / name).symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
        self.runtime = Runtime([directory], cache_directory=ledger.directory())
        self.network = parse_network(json.dumps(conflist).encode())
        for plugin in conflist["plugins"]:
            ledger.link(str(plugin.get("bridge", "cni0")))

    @classmethod
    def of_page(cls, ledger: Ledger, page: str, name: str) -> Chain:
        """The example of that file name on a page of docs/."""
        return cls(ledger, json.loads(examples(page)[name]))

    def add(self, pod: Space, ifname: str = "eth0", **capabilities: Any) -> Any:
        return encode(self.runtime.add(self.network, self._attachment(pod, ifname, capabilities)))

    def check(self, pod: Space, ifname: str = "eth0", **capabilities: Any) -> None:
        self.runtime.check(self.network, self._attachment(pod, ifname, capabilities))

    def delete(self, pod: Space, ifname: str = "eth0", **capabilities: Any) -> None:
        self.runtime.delete(self.network, self._attachment(pod, ifname, capabilities))

    def gc(self, *valid: tuple[str, str]) -> None:
        self.runtime.gc(self.network, valid)

    def status(self) -> None:
        self.runtime.status(self.network)

    def _attachment(self, pod: Space, ifname: str, capabilities: dict[str, Any]) -> Attachment:
        return Attachment(pod.name, netns=pod.path, ifname=ifname, capability_args=capabilities)


def wire(ledger: Ledger, pod: Space, ifname: str = "eth0", *addresses: str, host: Space = HERE, peer: str = "") -> str:
    """Give the pod an interface whose other end, up as well, is in `host`; returns that one's name."""
    peer = ledger.link(peer or f"to{pod.name[3:]}", host)
    host.run("ip", "link", "add", peer, "type", "veth", "peer", "name", ifname, "netns", pod.name).ok()
    host.run("ip", "link", "set", peer, "up").ok()
    pod.run("ip", "link", "set", ifname, "address", MAC, "up").ok()
    for address in addresses:
        pod.run("ip", "address", "add", address, "dev", ifname, *(("nodad",) if ":" in address else ())).ok()
    return peer


def result(pod: Space, *ips: str, ifname: str = "eth0", host: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """What the plugin that made the interface answered; "10.0.0.2/24,10.0.0.1" has a gateway."""
    found = [dict(zip(("address", "gateway"), text.split(","), strict=False)) for text in ips]
    interfaces: list[dict[str, Any]] = [{"name": name} for name in host]
    interfaces.append({"name": ifname, "mac": MAC, "sandbox": pod.path})
    inside = {"interface": len(host)}
    document = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [{**ip, **inside} for ip in found], **more}
    return {name: value for name, value in document.items() if value}
