"""The worker's threads: what becomes of the others when one is stranded in a pod's namespace."""

from __future__ import annotations

import socket
from typing import Any

from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netns import Netns
from nodeplug.worker.crowd import Crowd
from nodeplug.worker.entrance import Entrance
from nodeplug.worker.pool import Pool
from nodeplug.worker.serve import Arrived
from tests.child import until
from tests.kernel.rights import drop_this_threads_capabilities
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")


def test_the_thread_in_place_of_a_stranded_one_is_at_home(ledger: Ledger, netns: Space) -> None:
    home = namespaces.own_identity()
    seen: list[tuple[int, int]] = []

    def serve(arrived: Arrived, _seat: Any) -> None:
        seen.append(namespaces.own_identity())
        if arrived.contract == "strands":
            with Netns.open(netns.path) as pod, namespaces.entered(pod):
                drop_this_threads_capabilities()

    entrance = Entrance({"cni": ledger.listener()}, uids=frozenset(), tell=lambda _contract, _why: None)
    ledger.adopt("entrance", entrance.close)
    pool = Pool(serve, Crowd(running=1), entrance, threads=1, queue=8)
    pool.start()
    here, there = socket.socketpair()
    with here, there:
        for contract in ("strands", "plain", "strands", "plain"):
            assert pool.submit(Arrived(contract, here, None, 0.0))  # type: ignore[arg-type]  # nobody reads it
        until(lambda: len(seen) == 4, "all are served")
    assert seen == [home] * 4
    assert pool.drain(10)
