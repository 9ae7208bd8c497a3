"""A host with a bridge, pods on it and somebody outside, for tests of host ports by bytes exchanged.

The host is the sandbox's own namespace. The pods are wired by hand, so that what is tested is portmap alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeplug.cni.filter import layout
from nodeplug.cni.filter.index import DIRECTORY
from tests.child import run
from tests.cni.calls import ask, environment
from tests.ledger import Ledger
from tests.space import HERE, Space

BRIDGE = "br-test"
GATEWAY, GATEWAY6 = "10.99.0.1", "fd99::1"
HOST, HOST6 = "192.0.2.1", "2001:db8:2::1"
CLIENT, CLIENT6 = "192.0.2.2", "2001:db8:2::2"
NETWORK = "test"


@dataclass
class Pod:
    """A namespace on the bridge, with what a runtime knows of it."""

    space: Space
    container: str
    address: str
    address6: str
    port: str  # the bridge's

    def result(self, version: str = "1.0.0") -> dict[str, Any]:
        """As bridge would have answered."""
        return {
            "cniVersion": version,
            "interfaces": [{"name": BRIDGE}, {"name": self.port}, {"name": "eth0", "sandbox": self.space.path}],
            "ips": [
                {"address": f"{self.address}/16", "gateway": GATEWAY, "interface": 2},
                {"address": f"{self.address6}/64", "gateway": GATEWAY6, "interface": 2},
            ],
        }


@dataclass
class Host:
    """The sandbox's namespace as a node."""

    ledger: Ledger
    outside: Space
    numbers: Any = field(default_factory=lambda: itertools.count(2))

    @classmethod
    def make(cls, ledger: Ledger) -> Host:
        """A bridge with a gateway of each family, and a client outside that knows the host alone."""
        ledger.table("inet", layout.TABLE)
        ledger.adopt("index", lambda: run(["rm", "-rf", DIRECTORY]))
        ledger.adopt("flows", lambda: run(["conntrack", "-F"]))
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            _set(ledger, name, "1")
        # Its address is its own: else it takes that of a port, another with each pod, which pods before would not know.
        _ip(f"link add {ledger.link(BRIDGE)} address 0a:58:0a:63:00:01 type bridge")
        _without_detection(BRIDGE, HERE)
        _ip(f"addr add {GATEWAY}/16 dev {BRIDGE}")
        _ip(f"addr add {GATEWAY6}/64 dev {BRIDGE} nodad")
        _ip(f"link set {BRIDGE} up")
        outside = ledger.netns()
        _ip(f"link add {ledger.link('out')} type veth peer name eth0 netns {outside.name}")
        _wire("out", outside, (f"{HOST}/24", f"{HOST6}/64"), (f"{CLIENT}/24", f"{CLIENT6}/64"))
        return cls(ledger, outside)

    def bridge_netfilter(self, value: int) -> None:
        """bridge-nf-call-iptables and -ip6tables, until the ledger closes."""
        if not Path("/proc/sys/net/bridge").exists():
            run(["modprobe", "br_netfilter"]).ok()
        for name in ("iptables", "ip6tables"):
            _set(self.ledger, f"net.bridge.bridge-nf-call-{name}", str(value))

    def pod(self) -> Pod:
        number = next(self.numbers)
        space = self.ledger.netns()
        port = self.ledger.link(f"pod{number}")
        _ip(f"link add {port} type veth peer name eth0 netns {space.name}")
        _ip(f"link set {port} master {BRIDGE}")
        address, address6 = f"10.99.0.{number}", f"fd99::{number}"
        _wire(port, space, (), (f"{address}/16", f"{address6}/64"))
        for gateway in (GATEWAY, GATEWAY6):
            space.run("ip", "route", "add", "default", "via", gateway).ok()
        return Pod(space, f"pod{number}", address, address6, port)

    def portmap(self, command: str, pod: Pod, *mappings: dict[str, Any], **keys: Any) -> tuple[int, Any, str]:
        """(exit code, answer, stderr) of one call of the plugin."""
        version = keys.pop("version", "1.0.0")
        config = {"cniVersion": version, "name": NETWORK, "type": "portmap", "capabilities": {"portMappings": True}}
        if command in ("ADD", "CHECK"):
            config["prevResult"] = pod.result(version)
        if mappings:
            config["runtimeConfig"] = {"portMappings": list(mappings)}
        config.update(keys)
        env = environment(command, CNI_CONTAINERID=pod.container, CNI_NETNS=pod.space.path)
        return ask("portmap", env, config)

    def add(self, pod: Pod, *mappings: dict[str, Any], **keys: Any) -> str:
        """A successful ADD; returns what it warned of."""
        code, answer, stderr = self.portmap("ADD", pod, *mappings, **keys)
        assert code == 0, answer
        return stderr

    def delete(self, pod: Pod, **keys: Any) -> None:
        """A successful DEL without runtimeConfig and prevResult."""
        code, answer, _ = self.portmap("DEL", pod, **keys)
        assert (code, answer) == (0, None)

    def wrong(self, command: str, pod: Pod, *mappings: dict[str, Any], **keys: Any) -> dict[str, Any]:
        """The error of a call that fails."""
        code, answer, _ = self.portmap(command, pod, *mappings, **keys)
        assert code == 1, answer
        found: dict[str, Any] = answer
        return found


def to(host_port: int, container_port: int, protocol: str = "tcp", host_ip: str = "") -> dict[str, Any]:
    """One entry of portMappings."""
    entry = {"hostPort": host_port, "containerPort": container_port, "protocol": protocol}
    return {**entry, "hostIP": host_ip} if host_ip else entry


def sysctl(name: str) -> str:
    return Path("/proc/sys", *name.split(".")).read_text().strip()


def _set(ledger: Ledger, name: str, value: str) -> None:
    before = sysctl(name)
    if before != value:
        path = Path("/proc/sys", *name.split("."))
        ledger.adopt(f"sysctl {name}", lambda: path.write_text(before))
        path.write_text(value)


def _ip(command: str, space: Space = HERE) -> None:
    space.run("ip", *command.split()).ok()


def _wire(here: str, space: Space, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    for name, where, addresses in ((here, HERE, ours), ("eth0", space, theirs)):
        for address in addresses:
            _ip(f"addr add {address} dev {name}" + (" nodad" if ":" in address else ""), where)
        _without_detection(name, where)
        _ip(f"link set {name} up", where)


def _without_detection(name: str, space: Space) -> None:
    """Link-local addresses count at once: until they do, nobody is looked for in the name of others."""
    space.call(lambda: Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0"))
