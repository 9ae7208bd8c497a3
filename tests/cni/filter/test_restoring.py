"""The table made again while others work on it: nothing comes back that they have just taken away."""

from __future__ import annotations

import threading
from pathlib import Path

from nodeplug.cni.filter import layout, plan
from nodeplug.cni.filter.index import Holding
from nodeplug.cni.filter.plan import MASQUERADE
from nodeplug.cni.filter.removal import delete_owned
from nodeplug.kernel.netlink import netfilter
from tests.child import until
from tests.cni.filter.conftest import NETWORK, Node, nets, tcp
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft")
SET = layout.Subnet(kind=layout.MASQUERADE, network=NETWORK, net=nets("10.1.0.0/16")[0]).set_name


def waits_for(path: str) -> bool:
    """Whether some thread of this process has that lock file open twice: once holding, once waiting."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found += str(fd.readlink()) == path
        except OSError:
            continue
    return found > 1


def test_a_repair_in_the_middle_of_a_removal_brings_nothing_back(node: Node) -> None:
    """Its steps as `remove` takes them, with the repair between the kernel's and the disk's."""
    going, staying = node.pod("going"), node.pod("staying")
    shares = {pod: plan.masquerade(NETWORK, nets(f"10.1.0.{n}/16")) for n, pod in ((2, going), (3, staying))}
    with node.open() as table:
        for pod, share in shares.items():
            table.add(pod, share)
    holding = Holding(owner=going, share=shares[going])
    with node.index.attachment(holding.identity), netfilter() as netlink:
        delete_owned(netlink, holding.identity, holding.share.entries)
        assert node.elements(SET) == ["10.1.0.3"]
        repair = threading.Thread(target=lambda: node.call(lambda table: table.repair()))
        repair.start()
        until(lambda: waits_for(f"{node.index.directory}/attachments.lock"), "it has restored, and waits")
        assert node.elements(SET) == ["10.1.0.2", "10.1.0.3"]
        node.index.drop(holding.identity, MASQUERADE)
    repair.join(20)
    assert node.elements(SET) == ["10.1.0.3"]
    assert node.files() == [f"filter/{staying.attachment.identity}.{MASQUERADE}"]


def test_repairs_and_removals_at_once_leave_nothing(node: Node) -> None:
    done = threading.Event()

    def repair() -> None:
        while not done.is_set():
            node.call(lambda table: table.repair())

    def live(number: int) -> None:
        pod = node.pod(f"pod{number}")
        for n in range(12):
            masquerade = plan.masquerade(NETWORK, nets(f"10.1.{number}.{n + 1}/16"))
            with node.open() as table:
                table.add(pod, masquerade)
                table.add(pod, plan.ports(NETWORK, nets(f"10.1.{number}.{n + 1}/16"), [tcp(9000 + number)]))
                assert table.remove(pod.attachment, MASQUERADE)
                assert table.remove(pod.attachment, plan.PORTS)

    repairs = threading.Thread(target=repair)
    pods = [threading.Thread(target=live, args=(number,)) for number in range(4)]
    for thread in (repairs, *pods):
        thread.start()
    for thread in pods:
        thread.join(60)
    done.set()
    repairs.join(60)
    assert f"{NETWORK}/pod" not in node.nft("list", "ruleset")  # the comment of every element
    assert node.files() == []
    assert node.warnings == []
