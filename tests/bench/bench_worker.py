"""The worker against the Go reference plugins, in turns: one call at a time, storms, growth. docs/performance/cni.md.

Which shim: "worker, C shim" is the static program in front of nodeplugd, "worker, launcher" is Python in front of it,
"launcher alone" is Python without a worker.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.bench.floor import floor
from tests.bench.pods import a_pod
from tests.bench.storm import Execution, storm
from tests.bench.timer import Round, Watch, measure
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space
from tests.worker.node import Node

pytestmark = [needs("sandbox", "program:cc", "file:/usr/lib/cni/bridge"), pytest.mark.timeout(1800)]
GO = Path("/usr/lib/cni")
ROUNDS = int(os.environ.get("ROUNDS", "40"))
RATES = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000}
FIVE: list[dict[str, Any]] = [
    {"type": "bandwidth", **RATES},
    {"type": "firewall"},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400},
]
CHAIN = "bridge ipMasq + portmap(2) + bandwidth + firewall + tuning"
TARGETS = {
    ("ADD bridge", "worker, C shim"): 0.30,
    ("ADD bridge ipMasq", "worker, C shim"): 0.15,
    ("ADD bridge ipMasq", "worker, launcher"): 0.50,
    ("DEL bridge ipMasq", "worker, C shim"): 0.40,
    (f"ADD {CHAIN}", "worker, C shim"): 0.10,
    (f"DEL {CHAIN}", "worker, C shim"): 0.25,
}
"""Of Go's time, at most."""


@dataclass
class Contender:
    """Plugins in a directory, with networks of their own."""

    name: str
    plugins: Path
    number: int
    more: dict[str, Any] = field(default_factory=dict)

    def chain(self, *, masq: bool, ports: bool = False, more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
        net = f"bench{self.number}{'m' if masq else ''}"
        common = {"cniVersion": "1.0.0", "name": net}
        subnet = f"10.{200 + self.number}.{128 if masq else 0}.0/17"
        bridge = {"type": "bridge", "bridge": net, "isGateway": True, "ipMasq": masq}
        plugins: list[dict[str, Any]] = [{**common, **bridge, "ipam": {"type": "host-local", "subnet": subnet}}]
        if ports:
            plugins.append({**common, "type": "portmap"})
        return plugins + [{**common, **plugin} for plugin in more]

    def env(self, command: str, pod: Space) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"{pod.name}-{self.number}",
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.plugins),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def add(
        self, watch: Watch, label: str, chain: list[dict[str, Any]], pod: Space, ports: list[dict[str, Any]]
    ) -> Any:
        result: Any = None
        for plugin in chain:
            document = {**plugin, **({"prevResult": result} if result else {})}
            if ports:
                document["runtimeConfig"] = {"portMappings": ports}
            done = watch.run(
                label, [self.plugins / plugin["type"]], stdin=json.dumps(document).encode(), env=self.env("ADD", pod)
            )
            result = json.loads(done.stdout)
        return result

    def delete(
        self,
        watch: Watch,
        label: str,
        chain: list[dict[str, Any]],
        pod: Space,
        result: Any,
        ports: list[dict[str, Any]],
    ) -> None:
        for plugin in reversed(chain):
            document = {**plugin, "prevResult": result}
            if ports:
                document["runtimeConfig"] = {"portMappings": ports}
            stdin = json.dumps(document).encode()
            watch.run(label, [self.plugins / plugin["type"]], stdin=stdin, env=self.env("DEL", pod))


@pytest.fixture(scope="module")
def nodes(module_ledger: Ledger) -> Iterator[list[Contender]]:
    c = Node(module_ledger, kind="c")
    python = Node(module_ledger, kind="python", beside=c)
    alone = Node(module_ledger, kind="python")
    c.start()
    found = [Contender("Go", GO, 0), Contender("worker, C shim", c.plugins, 1)]
    found += [Contender("worker, launcher", python.plugins, 2), Contender("launcher alone", alone.plugins, 3)]
    for contender in found:
        for masq in (False, True):
            module_ledger.link(contender.chain(masq=masq)[0]["bridge"])
    for family, table in (
        ("inet", "nodeplug"),
        *((family, name) for family in ("ip", "ip6") for name in ("nat", "filter")),
    ):
        module_ledger.table(family, table)
    yield found
    rss = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{c.process.pid}/status").read_text())[0]  # type: ignore[union-attr]
    print(f"\nresident memory of the worker at the end: {int(rss) / 1024:.1f} MiB")
    c.stop()
    for path in Path("/run").glob("xtables.lock"):
        path.unlink()


def one_at_a_time(
    contender: Contender, name: str, *, masq: bool, mapped: int = 0, more: Sequence[dict[str, Any]] = ()
) -> Round:
    chain = contender.chain(masq=masq, ports=bool(mapped), more=more)

    def one_round(watch: Watch) -> None:
        ports = [
            {"hostPort": 20000 + 100 * contender.number + n, "containerPort": 80 + n, "protocol": "tcp"}
            for n in range(mapped)
        ]
        with a_pod() as pod:
            result = contender.add(watch, f"ADD {name}", chain, pod, ports)
            contender.delete(watch, f"DEL {name}", chain, pod, result, ports)

    return one_round


def bench_one_at_a_time(nodes: list[Contender]) -> None:
    for name, options in (
        ("bridge", {"masq": False}),
        ("bridge ipMasq", {"masq": True}),
        ("bridge ipMasq + portmap(2)", {"masq": True, "mapped": 2}),
        (CHAIN, {"masq": True, "mapped": 2, "more": FIVE}),
    ):
        rounds = {c.name: one_at_a_time(c, name, **options) for c in nodes}  # type: ignore[arg-type]
        report = measure(rounds, rounds=ROUNDS)
        print()
        print(report.markdown(title=name, command="make bench", versions={"Go plugins": "1.1.1 (Debian)"}))
        for (label, who), target in TARGETS.items():
            if label in report.labels():
                found = report.ratio(label, who)
                print(f"target {label}, {who}: {target:.2f}, {'met' if found <= target else 'MISSED'} with {found:.3f}")


def bench_where_the_time_goes(nodes: list[Contender]) -> None:
    """An ADD through the shim beside what it cannot do without."""
    _, shim, *_ = nodes
    status = json.dumps({"cniVersion": "1.1.0", "name": "lo", "type": "loopback"}).encode()

    def start(watch: Watch) -> None:
        watch.run("all", ["/bin/busybox", "true"])

    def hop(watch: Watch) -> None:
        env = {"CNI_COMMAND": "STATUS", "CNI_PATH": str(shim.plugins)}
        watch.run("all", [shim.plugins / "loopback"], stdin=status, env=env)

    def add(watch: Watch) -> None:
        with a_pod() as pod:
            chain = shim.chain(masq=True)
            shim.delete(Watch(), "DEL", chain, pod, shim.add(watch, "all", chain, pod, []), [])

    add(Watch())
    kernel = floor(shim.chain(masq=True)[0]["bridge"], label="all")
    rounds = {"busybox true": start, "STATUS of loopback": hop, "the kernel alone": kernel, "ADD bridge ipMasq": add}
    print(f"\n{measure(rounds, rounds=100).markdown(title='Where the time goes', command='make bench')}")


def executions(contender: Contender, command: str, pods: list[Space], conf: Path) -> list[Execution]:
    argv = [str(contender.plugins / "bridge")]
    return [Execution(argv, contender.env(command, pod), str(conf)) for pod in pods]


@pytest.mark.parametrize("count", [100, 300])
def bench_storm(nodes: list[Contender], ledger: Ledger, count: int) -> None:
    """`count` ADDs and as many DELs with ipMasq, 32 at once; contenders in turn."""
    pods = [ledger.netns() for _ in range(count)]
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(4 if count == 100 else 2):
        for contender in nodes:
            if contender.name == "launcher alone" and number:
                continue
            conf = ledger.directory() / "conf"
            conf.write_text(json.dumps(contender.chain(masq=True)[0]))
            for command in ("ADD", "DEL"):
                seconds = storm(executions(contender, command, pods, conf), at_once=32)
                taken.setdefault((contender.name, command), []).append(seconds)
    print(f"\nstorm of {count}, 32 at once, ipMasq: median seconds")
    for (name, command), found in taken.items():
        ratio = median(found) / median(taken[("Go", command)])
        print(f"| {command} | {name} | {median(found):.3f} | {ratio:.3f} |")


def bench_turns(module_ledger: Ledger, ledger: Ledger) -> None:
    """The number of calls that run Python at once, set by the storm."""
    pods = [ledger.netns() for _ in range(100)]
    module_ledger.table("inet", "nodeplug")
    found: dict[int, list[tuple[float, float]]] = {}
    nodes = {}
    for running in (1, 2, 3, 4, 8, 32):
        node = Node(ledger, kind="c", more=f"running = {running}")
        node.start()
        nodes[running] = Contender(str(running), node.plugins, 10 + running)
        module_ledger.link(nodes[running].chain(masq=True)[0]["bridge"])
        ledger.adopt("worker", node.stop)
    for _ in range(4):
        for running, contender in nodes.items():
            conf = ledger.directory() / "conf"
            conf.write_text(json.dumps(contender.chain(masq=True)[0]))
            both = [storm(executions(contender, command, pods, conf), at_once=32) for command in ("ADD", "DEL")]
            found.setdefault(running, []).append((both[0], both[1]))
    print("\n| running | ADD s | DEL s |\n|---|---|---|")
    for running, times in found.items():
        print(f"| {running} | {median(t[0] for t in times):.3f} | {median(t[1] for t in times):.3f} |")
