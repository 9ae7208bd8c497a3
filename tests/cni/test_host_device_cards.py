"""host-device with a network card: what the kernel does with hardware when a pod's namespace ends.

The emulated machine has two cards in a namespace of its own, where the kernel puts them back.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from nodeplug.kernel import libc, mount
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links
from tests.child import run, until
from tests.cni.pods import Network, link, static
from tests.cni.test_host_device import loan_files
from tests.ledger import Ledger
from tests.needs import OUTSIDE, needs
from tests.space import Space

pytestmark = needs("sandbox", "card")


class Card:
    """A card of the emulated machine, and calls of the plugin in the namespace that is its host."""

    def __init__(self, ledger: Ledger) -> None:
        self.host = Space("", os.environ[OUTSIDE])
        # The sandbox's own /sys shows the links of the sandbox.
        self.host.call(lambda: libc.mount("sysfs", "/sys", "sysfs", 0))
        ledger.adopt("/sys of the machine", lambda: libc.umount2("/sys", mount.MNT_DETACH))
        run(["modprobe", "virtio_net"]).ok()
        self.name = until(lambda: next((n for n in sorted(self.host.links()) if n != "lo"), ""), "a card")
        found = link(self.name, self.host)
        assert found is not None
        self.mac = found.mac
        self.kernel = self.host.call(lambda: os.path.realpath(f"/sys/class/net/{self.name}/device"))
        self.pci = os.path.basename(os.path.dirname(self.kernel))

    def ask(self, network: Network, command: str, pod: Space | None, extra: Any = None, **variables: str) -> Any:
        code, answer = self.host.call(lambda: network.ask(command, pod, extra, **variables))
        assert code == 0, answer
        return answer

    def is_home(self) -> bool:
        found = link(self.name, self.host)
        return found is not None and found.mac == self.mac and found.alias == "" and not loan_files()


@pytest.fixture
def card(ledger: Ledger) -> Card:
    return Card(ledger)


@pytest.mark.parametrize("by", ["device", "hwaddr", "pciBusID", "kernelpath", "deviceID"])
def test_card_goes_and_comes_home(ledger: Ledger, card: Card, netns: Space, by: str) -> None:
    extra: dict[str, Any] = {"runtimeConfig": {"deviceID": card.pci}} if by == "deviceID" else {}
    config = {
        "device": {"device": card.name},
        "hwaddr": {"hwaddr": card.mac.hex(":")},
        "pciBusID": {"pciBusID": card.pci},
        "kernelpath": {"kernelpath": card.kernel},
        "deviceID": {},
    }[by]
    network = Network(ledger, type="host-device", ipam=static("10.7.0.2/24"), **config)
    result = card.ask(network, "ADD", netns, extra)
    assert result["interfaces"][0]["pciID"] == card.pci
    found = link("eth0", netns)
    assert found is not None and found.permanent_mac == card.mac
    assert card.name not in card.host.links()
    card.ask(network, "CHECK", netns, {"prevResult": result, **extra})
    card.ask(network, "DEL", netns, extra)
    assert card.is_home()


@pytest.mark.parametrize("path", ["gone", "empty"])
def test_card_comes_home_when_the_pod_ends_without_a_word(ledger: Ledger, card: Card, path: str) -> None:
    pod = ledger.netns()
    network = Network(ledger, type="host-device", device=card.name, ipam=static("10.7.0.2/24"))
    card.ask(network, "ADD", pod)
    pod.run("ip", "link", "set", "eth0", "address", "02:00:00:00:99:99").ok()
    pod.remove()
    card.ask(network, "DEL", pod, **({"CNI_NETNS": ""} if path == "empty" else {}))
    found = link(card.name, card.host)
    assert found is not None
    assert (found.permanent_mac, found.alias, loan_files()) == (card.mac, "", [])
    card.host.call(lambda: restore(card))


def restore(card: Card) -> None:
    """What a pod gives a card stays with it: its own MAC address again."""
    with Netlink(NETLINK_ROUTE) as route:
        route.request(links.set(card.name, mac=card.mac))


def test_the_next_pod_gets_a_card_that_came_back_under_another_name(ledger: Ledger, card: Card, netns: Space) -> None:
    pod = ledger.netns()
    network = Network(ledger, type="host-device", device=card.name)
    card.ask(network, "ADD", pod, CNI_IFNAME="net1")
    pod.remove()
    until(lambda: "net1" in card.host.links(), "the kernel gives the card back")
    card.ask(network, "ADD", netns)
    assert "eth0" in netns.links()
    card.ask(network, "DEL", netns)
    assert card.is_home()
