"""The reference plugins at work beside ours: executed with iptables of the kind that is wanted, and what they leave.

Debian's know iptables alone. What later versions write into nft tables of their own is put there by hand, rule for rule
as version 1.10 lists it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nodeplug.cni.reference.known import RESULTS
from tests.child import run
from tests.cni.calls import ask, environment
from tests.cni.pods import REFERENCE, host_local
from tests.ledger import Ledger
from tests.space import Space

NFT, LEGACY, OWN = "nft", "legacy", "own"
KINDS = (NFT, LEGACY, OWN)
VERSION = "1.0.0"  # Debian's know no later one
BRIDGE = "cni0"
TABLES = ("ip nat", "ip6 nat", "ip filter", "ip6 filter", "bridge nat", "inet nodeplug", "bridge nodeplug")
_OWN = ("inet cni_plugins_masquerade", "ip cni_hostport", "ip6 cni_hostport")


class References:
    """A network whose pods the reference plugins make; ours are asked about the same ones."""

    def __init__(self, ledger: Ledger, kind: str, *, name: str = "pods", subnets: tuple[str, ...] = ()) -> None:
        self.ledger = ledger
        self.kind = kind
        self.name = name
        directory = ledger.directory()
        for program in ("iptables", "ip6tables"):
            (directory / program).symlink_to(f"/usr/sbin/{program}-{LEGACY if kind == LEGACY else NFT}")
        self._path = f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.leases = ledger.directory()
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        self.ipam = {"dataDir": str(self.leases), **(host_local(4, 6) if not ranges else {"type": "host-local"})}
        self.ipam.update({"ranges": ranges} if ranges else {})
        ledger.link(BRIDGE if name == "pods" else f"br-{name}")
        self.bridge: dict[str, Any] = {
            "type": "bridge",
            "bridge": BRIDGE if name == "pods" else f"br-{name}",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": self.ipam,
        }
        self.portmap: dict[str, Any] = {"type": "portmap"}
        self.firewall: dict[str, Any] = {"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"}

    def config(self, plugin: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"cniVersion": VERSION, "name": self.name, **plugin, **more}

    def add(self, pod: Space, *mappings: dict[str, Any], firewall: bool = False, ifname: str = "eth0") -> Any:
        """A pod of theirs; the result. The runtime keeps it, as libcni does."""
        own = self.kind == OWN
        result = self.execute("ADD", self.config(self.bridge, ipMasq=self.bridge["ipMasq"] and not own), pod, ifname)
        with_ports = {"prevResult": result, "runtimeConfig": {"portMappings": list(mappings)}}
        if own:
            self._write_own(pod, result, mappings, ifname)
        elif mappings:
            self.execute("ADD", self.config(self.portmap, **with_ports), pod, ifname)
        if firewall:
            self.execute("ADD", self.config(self.firewall, prevResult=result), pod, ifname)
        self.keep(pod, result, ifname)
        return result

    def execute(self, command: str, config: dict[str, Any], pod: Space, ifname: str = "eth0") -> Any:
        env = environment(command, CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path, CNI_PATH=REFERENCE, CNI_IFNAME=ifname)
        program = f"{REFERENCE}/{config['type']}"
        done = run([program], env={**env, "PATH": self._path}, stdin=json.dumps(config).encode())
        assert done.code == 0, done.text
        return json.loads(done.stdout) if done.stdout else None

    def delete(self, pod: Space, plugin: dict[str, Any], *, netns: str | None = None, **more: Any) -> None:
        """A DEL by ours, which succeeds."""
        env = environment("DEL", CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path if netns is None else netns)
        env["CNI_IFNAME"] = more.pop("ifname", "eth0")
        code, answer, _ = ask(plugin["type"], env, self.config(plugin, **more))
        assert (code, answer) == (0, None)

    def gc(self, plugin: dict[str, Any], *valid: Space) -> None:
        """A GC by ours, which succeeds."""
        listed = [{"containerID": pod.name, "ifname": "eth0"} for pod in valid]
        config = self.config(plugin, **{"cni.dev/valid-attachments": listed, "cniVersion": "1.1.0"})
        code, answer, _ = ask(plugin["type"], environment("GC"), config)
        assert (code, answer) == (0, None)

    def keep(self, pod: Space, result: Any, ifname: str = "eth0") -> None:
        """What a runtime keeps until its DEL."""
        Path(RESULTS).mkdir(parents=True, exist_ok=True)
        kept = {"kind": "cniCacheV1", "containerId": pod.name, "networkName": self.name, "ifName": ifname}
        document = json.dumps({**kept, "netns": pod.path, "result": result})
        Path(RESULTS, f"{self.name}-{pod.name}-{ifname}").write_text(document)

    def forget(self, pod: Space) -> None:
        for path in Path(RESULTS).glob(f"{self.name}-{pod.name}-*"):
            path.unlink()

    def _write_own(self, pod: Space, result: Any, mappings: tuple[dict[str, Any], ...], ifname: str) -> None:
        masquerade = "inet cni_plugins_masquerade"
        lines = [
            f"add table {masquerade}",
            f"add chain {masquerade} masq_checks",
            f"add chain {masquerade} postrouting {{ type nat hook postrouting priority srcnat; }}",
            f"flush chain {masquerade} postrouting",
            f"add rule {masquerade} postrouting ip daddr 224.0.0.0/4 return",
            f"add rule {masquerade} postrouting ip6 daddr ff00::/8 return",
            f"add rule {masquerade} postrouting goto masq_checks",
        ]
        mark = f"{_hash(self.name)}-{_hash(f'{ifname}:{pod.name}')}, net: {self.name}, if: {ifname}, id: {pod.name}"[
            :128
        ]
        for ip in result["ips"]:
            address, family = ip["address"].partition("/")[0], "ip6" if ":" in ip["address"] else "ip"
            rule = f"{family} saddr {address} {family} daddr != {_network(ip['address'])} masquerade"
            lines.append(f'add rule {masquerade} masq_checks {rule} comment "{mark}"')
            if mappings:
                lines += _own_ports(family, address, mappings, pod.name)
        run(["nft", "-f", "-"], stdin="\n".join((*lines, "")).encode()).ok()


def _own_ports(family: str, address: str, mappings: tuple[dict[str, Any], ...], container: str) -> list[str]:
    table, to = f"{family} cni_hostport", f"[{address}]" if ":" in address else address
    comment = f'comment "{container}"'
    lines = [f"add table {table}", *(f"add chain {table} {name}" for name in ("hostports", "hostip_hostports"))]
    lines += [f"add chain {table} hostports_all", f"flush chain {table} hostports_all"]
    lines += [f"add rule {table} hostports_all jump {name}" for name in ("hostip_hostports", "hostports")]
    for chain, priority in (("prerouting", "dstnat"), ("output", "-100")):
        lines += [
            f"add chain {table} {chain} {{ type nat hook {chain} priority {priority}; }}",
            f"flush chain {table} {chain}",
            f"add rule {table} {chain} fib daddr type local jump hostports_all",
        ]
    lines.append(f"add chain {table} masquerading {{ type nat hook postrouting priority srcnat; }}")
    for mapping in mappings:
        at = mapping.get("hostIP", "")
        if at and (":" in at) != (":" in address):
            continue
        where = f"{family} daddr {at} " if at else ""
        rule = f"{where}{mapping['protocol']} dport {mapping['hostPort']} dnat to {to}:{mapping['containerPort']}"
        lines.append(f"add rule {table} hostports {rule} {comment}")
    for source in (address, *(("127.0.0.1",) if family == "ip" else ())):
        rule = f"{family} saddr {source} {family} daddr {address} masquerade"
        lines.append(f"add rule {table} masquerading {rule} {comment}")
    return lines


def make(ledger: Ledger, kind: str, **more: Any) -> References:
    """The network of a test, and all that is left of it taken away at the end."""
    for table in (*TABLES, *_OWN):
        ledger.table(*table.split())
    for program in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("nat", "filter"):
            ledger.adopt(f"{program} {table}", lambda p=program, t=table: _clear(p, t))  # type: ignore[misc]  # bound now
    ledger.adopt("what runtimes keep", lambda: shutil.rmtree(RESULTS, ignore_errors=True))
    ledger.adopt("what tuning keeps", lambda: shutil.rmtree("/run/cni", ignore_errors=True))
    ledger.adopt("index", lambda: shutil.rmtree("/run/nodeplug/cni", ignore_errors=True))
    ledger.adopt("flows", lambda: run(["conntrack", "-F"]))
    return References(ledger, kind, **more)


def rules() -> list[str]:
    """Every rule that is about a pod, in all tables of iptables and nft, without counters."""
    lines = []
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines += [
            f"legacy {line}" for line in run([program]).ok().text.splitlines() if line.startswith(("-A", ":CNI-"))
        ]
    for line in run(["nft", "-s", "list", "ruleset"]).ok().text.splitlines():
        lines.append(line.strip())
    return lines


def about(*words: str) -> list[str]:
    """Those of `rules` in which one of the words is."""
    return [line for line in rules() if any(word in line for word in words)]


def named(pod: Space, network: str = "pods") -> tuple[str, ...]:
    """The words by which rules are about that pod, its addresses apart."""
    chain = hashlib.sha512((network + pod.name).encode()).hexdigest()
    return pod.name, f"CNI-{chain[:24]}", f"CNI-DN-{chain[:21]}"


def addresses(result: Any) -> tuple[str, ...]:
    return tuple(ip["address"].partition("/")[0] for ip in result["ips"])


def _clear(program: str, table: str) -> None:
    if table in Path(f"/proc/net/{program.split('-')[0].replace('tables', '_tables')}_names").read_text().split():
        run([program, "-t", table, "-F"]).ok()
        run([program, "-t", table, "-X"]).ok()


def _hash(text: str) -> str:
    return hashlib.sha512(text.encode()).hexdigest()[:16]


def _network(address: str) -> str:
    import ipaddress

    return str(ipaddress.ip_interface(address).network)
