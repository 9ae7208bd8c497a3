"""A machine on the node's uplink: a namespace with a server, which knows the node and none of its pods."""

from __future__ import annotations

from contextlib import contextmanager
from socket import inet_aton
from typing import TYPE_CHECKING

from nodeplug.core.errors import Internal
from nodeplug.kernel import netns
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import addresses, links, veths
from nodeplug.kernel.rtnl.addresses import Address
from nodeplug.ops.demo.who import Who

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/run/netns/outside"
NODE, ADDRESS = "192.0.2.1", "192.0.2.2"  # RFC 5737 keeps them for documentation
_UPLINK = "uplink"


@contextmanager
def machine(port: int) -> Iterator[None]:
    """Have it, with its server on `port`; NODE becomes an address of the node."""
    netns.create(PATH)
    try:
        _connect()
        server = Who("outside", port, PATH)
        try:
            yield
        finally:
            server.close()
    finally:
        with Netlink(NETLINK_ROUTE) as here:
            here.attempt(links.delete(_UPLINK))
        netns.remove(PATH)


def _connect() -> None:
    with Netns.open(PATH) as there, Netlink(NETLINK_ROUTE) as here, Netlink(NETLINK_ROUTE, netns=there) as far:
        here.request(veths.add(_UPLINK, "eth0", peer_netns=there, up=True))
        far.request(links.set("lo", up=True))
        for route, name, address in ((here, _UPLINK, NODE), (far, "eth0", ADDRESS)):
            link = links.find(route, name)
            if link is None:
                raise Internal(f"link {name} is gone")
            address_there = Address(index=link.index, ip=inet_aton(address), prefix=30)
            route.request(addresses.add(address_there), links.set(link.index, up=True))
