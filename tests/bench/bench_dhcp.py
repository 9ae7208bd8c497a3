"""dhcp beside the reference and its daemon, with one server for all; and the chore's look at many leases."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from nodeplug.cni.ipam.dhcp.lease import Lease
from nodeplug.cni.ipam.dhcp.renewal import Renewal
from nodeplug.cni.ipam.dhcp.store import Leases
from nodeplug.core import chore
from nodeplug.worker.keeper import Turn
from tests.bench.timer import Round, Watch, measure
from tests.child import until
from tests.cni.dhcp.lan import DIRECTORY, Dnsmasq, Lan, the_lease
from tests.cni.dhcp.test_dhcp import add, conf, delete
from tests.ledger import Ledger
from tests.needs import needs
from tests.worker.node import Node, environment

REFERENCE = Path("/usr/lib/cni/dhcp")
pytestmark = needs("sandbox", "program:cc", "program:dnsmasq", f"file:{REFERENCE}")


def lease(lan: Lan, plugin: Path, config: dict[str, Any], *, fresh: bool) -> Round:
    """A lease for a pod whose link has just been made, or has been up for a while."""
    stdin = json.dumps(config).encode()

    def one_round(watch: Watch) -> None:
        pod = lan.pod()
        if not fresh:
            pod.run("ip", "link", "set", "eth0", "up").ok()
            time.sleep(0.3)  # until every bridge on the way has seen it
        for command in ("ADD", "DEL"):
            watch.run(command, [plugin], stdin=stdin, env=environment(command, pod.path, pod.name))
        pod.run("ip", "link", "delete", "eth0").ok()
        pod.remove()

    return one_round


@pytest.mark.timeout(900)
def bench_dhcp_add_and_delete(ledger: Ledger) -> None:
    lan = Lan(ledger)
    Dnsmasq(lan, range="10.5.0.2,10.5.0.254")
    node = Node(ledger)
    node.start()
    until(lambda: chore.is_kept("dhcp"), "leases are kept")
    socket = ledger.directory() / "dhcp.sock"
    ledger.start([REFERENCE, "daemon", "-socketpath", str(socket)])
    until(socket.exists, "the reference's daemon listens")
    launcher = ledger.directory() / "dhcp"
    launcher.symlink_to(node.plugins / ".nodeplug" / "exec")
    config = conf("1.0.0", daemonSocketPath=str(socket))
    for fresh, rounds in ((False, 30), (True, 15)):
        contenders = {
            "reference": lease(lan, REFERENCE, config, fresh=fresh),
            "nodeplug, worker and C shim": lease(lan, node.plugins / "dhcp", config, fresh=fresh),
            "nodeplug, a process a call": lease(lan, launcher, config, fresh=fresh),
        }
        report = measure(contenders, rounds=rounds)
        link = "a link that was just made" if fresh else "a link that has been up"
        print()
        print(report.markdown(title=f"dhcp over {link}", command="make bench", versions={"reference": "1.1.1"}))
    node.stop()


@pytest.mark.timeout(300)
def bench_dhcp_look_at_many_leases(ledger: Ledger) -> None:
    lan = Lan(ledger)
    Dnsmasq(lan)
    pod = lan.pod()
    add(pod)
    one = the_lease()
    leases = Leases(str(DIRECTORY))
    made: list[Lease] = []
    for count in (10, 1000, 5000):
        made += [one.replace(container=f"c{number}") for number in range(len(made), count)]
        for each in made[-count:]:
            if not os.path.exists(leases.path(each.attachment)):
                leases.write(each, durable=False)
        chore = Renewal({})
        first, again = timed(chore, 1), timed(chore, 20)
        print(f"{count:>6,} leases, none due: first look {first * 1000:.1f} ms, each later one {again * 1000:.2f} ms")
    for path in DIRECTORY.glob("np*"):
        path.unlink()
    delete(pod)


def timed(chore: Renewal, times: int) -> float:
    """CPU seconds of a run, the median."""
    stop = os.eventfd(0)
    say: Callable[..., None] = lambda _message, **_more: None  # noqa: E731  # nobody listens
    found = []
    try:
        for _ in range(times):
            began = time.thread_time()
            chore.run(Turn(stop, say))
            found.append(time.thread_time() - began)
    finally:
        os.close(stop)
    return median(found)
