"""A network outside the node: a link of the host leads to it, and a station there answers."""

from __future__ import annotations

from tests.child import run
from tests.ledger import Ledger
from tests.space import HERE, Space

MASTER = "lan0"
STATION = ("10.88.0.1/24", "fd88::1/64")


class Lan:
    """`master` is the link of `home` (the host, or a pod) that leads there; `station` is a machine on it."""

    def __init__(self, ledger: Ledger, *, home: Space = HERE, master: str = MASTER, mtu: int = 1500) -> None:
        self.home = home
        self.master = ledger.link(master, home)
        self.station = ledger.netns()
        near = ("link", "add", master, "mtu", str(mtu), "type", "veth")
        home.run("ip", *near, "peer", "name", "eth0", "mtu", str(mtu), "netns", self.station.name).ok()
        home.run("ip", "link", "set", master, "up").ok()
        self.station.run("ip", "link", "set", "eth0", "up").ok()
        for address in STATION:
            nodad = ("nodad",) if ":" in address else ()
            self.station.run("ip", "address", "add", address, "dev", "eth0", *nodad).ok()

    def route_by_default(self, address: str = "10.99.0.2/24", gateway: str = "10.99.0.1") -> None:
        """Let the home's default route lead there."""
        self.home.run("ip", "address", "add", address, "dev", self.master).ok()
        family = "-6" if ":" in gateway else "-4"
        self.home.run("ip", family, "route", "add", "default", "via", gateway, "dev", self.master).ok()


def frames(space: Space, ifname: str = "eth0") -> int:
    """How many frames the link has received."""
    (found,) = space.ip("-s", "link", "show", "dev", ifname)
    return int(found["stats64"]["rx"]["packets"])


def delete_link(name: str) -> None:
    """Of the host."""
    run(["ip", "link", "delete", name]).ok()
