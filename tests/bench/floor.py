"""What the kernel takes for a pod by itself: the messages of an ADD, sent by a program that does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import addresses, links, routes, veths
from tests.bench.pods import a_pod
from tests.bench.timer import Watch
from tests.space import Space


def floor(
    bridge: str, *, label: str, pods: Callable[[], AbstractContextManager[Space]] = a_pod
) -> Callable[[Watch], None]:
    """A pod's veth on that bridge with address and default route, and nothing but the messages for it."""

    def life(watch: Watch) -> None:
        ip, gateway = bytes((10, 250, 255, 250)), bytes((10, 250, 255, 254))
        with pods() as pod, Netns.open(pod.path) as netns, Netlink(NETLINK_ROUTE) as host:
            with watch.lap(label), Netlink(NETLINK_ROUTE, netns=netns) as inside:
                master, _ = links.find_each(host, bridge, "npfloor")
                assert master is not None
                veth = veths.add("npfloor", "eth0", peer_netns=netns, master=master.index, up=True)
                alias = links.set("npfloor", alias=f"floor/{pod.name}/eth0")
                end = links.parse(host.request(veth, alias, links.query("npfloor"))[-1] or b"")
                inside.request(
                    addresses.add(addresses.Address(index=end.parent, ip=ip, prefix=16)),
                    links.set(end.parent, up=True, arp_notify=True),
                    routes.add(routes.Route(dst=bytes(4), prefix=0, oif=end.parent, gateway=gateway)),
                )
            host.request(links.delete("npfloor"))

    return life
