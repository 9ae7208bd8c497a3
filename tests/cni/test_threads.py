"""The door keeps no state of the process: many calls at once in one, as the worker makes them."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nodeplug.cni import dispatch
from nodeplug.core import company
from nodeplug.core.call import Answer, Call
from nodeplug.kernel import netns as namespaces
from nodeplug.worker.crowd import Crowd, Seat
from tests.child import until
from tests.cni.calls import QUIET, environment
from tests.ledger import Ledger
from tests.space import Space

pytestmark = pytest.mark.needs("sandbox")
THREADS = 24
BRIDGE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "threads",
    "type": "bridge",
    "bridge": "np-threads",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.77.0.0/16"},
}


def call(command: str, config: dict[str, Any], pod: Space, **env: str) -> Answer:
    call = Call(
        contract="cni",
        name=config["type"],
        env=environment(command, CNI_NETNS=pod.path, CNI_CONTAINERID=pod.name, **env),
        stdin=json.dumps(config).encode(),
    )
    answer = dispatch.answer(call, to=QUIET)
    present = company.present()
    if isinstance(present, Seat):
        present.catch_up()
    return answer


def life(pod: Space) -> set[str]:
    """Of one pod, several times; its addresses."""
    given = set()
    for _ in range(3):
        added = call("ADD", BRIDGE, pod)
        assert added.code == 0, added
        result = json.loads(added.stdout)
        given.add(result["ips"][0]["address"])
        assert call("ADD", {**BRIDGE, "type": "loopback"}, pod, CNI_IFNAME="lo").code == 0
        checked = call("CHECK", {**BRIDGE, "prevResult": result}, pod)
        assert checked.code == 0, checked
        bad = call("ADD", {**BRIDGE, "bridge": 7}, pod)
        assert b'"code": 7' in bad.stdout and b"$.bridge" in bad.stdout
        assert call("DEL", BRIDGE, pod).code == 0
    return given


@pytest.mark.parametrize("running", [0, 2, 8], ids=["without turns", "two turns", "eight turns"])
def test_many_calls_at_once_do_not_meet(ledger: Ledger, running: int) -> None:
    ledger.link("np-threads")
    ledger.table("inet", "nodeplug")
    pods = [ledger.netns() for _ in range(THREADS)]
    home = namespaces.own_identity()
    crowd = Crowd(running=running or 1)
    everybody = threading.Barrier(THREADS, timeout=60)

    def one(pod: Space) -> set[str]:
        everybody.wait()
        if not running:
            return life(pod)
        seat = Seat(crowd)
        company.join(seat)
        with seat:
            found = life(pod)
        assert namespaces.own_identity() == home
        return found

    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(THREADS) as pool:
        given = list(pool.map(one, pods))
    crowd.close()
    assert all(given)
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the threads beside have come back, and closed theirs")
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("np") and name != "np-threads"]
