"""Flows that were tracked before a host port came or went, and would be answered as before for ever.

Only UDP and SCTP: their clients go on from the same port, and each packet keeps the flow alive. A TCP client that finds
nobody starts anew.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from nodeplug.cni.filter.layout import PROTOCOLS
from nodeplug.core.inet import Ip
from nodeplug.kernel import conntrack
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.filter.plan import Share

STICKY = ("udp", "sctp")


def arrived(netlink: Netlink, share: Share) -> int:
    """Forget the flows first sent to the host ports of `share` at the host's own addresses, or at their hostIPs; those
    to other hosts stay, such as another pod's questions to a name server. Returns how many there were.
    """
    wanted: dict[tuple[int, str], dict[str, set[int]]] = {}
    for claim in share.claims:
        port, _, address = claim.partition("/")
        protocol, _, number = port.partition("-")
        if protocol in STICKY:
            family = AF_INET6 if ":" in address else AF_INET
            wanted.setdefault((family, protocol), {}).setdefault(address, set()).add(int(number))
    if not wanted:
        return 0
    with _Own() as own:
        return sum(
            conntrack.delete_to(netlink, family, PROTOCOLS[protocol], ports, to=own.at(address))
            for (family, protocol), addresses in wanted.items()
            for address, ports in addresses.items()
        )


def left(netlink: Netlink, share: Share) -> int:
    """Forget the flows that the pod of `share` answers at its mapped ports. Returns how many there were."""
    return sum(
        conntrack.delete_from(netlink, flow.address.packed, PROTOCOLS[flow.protocol], flow.ports)
        for flow in share.flows
        if flow.protocol in STICKY
    )


class _Own:
    """Which addresses are the host's, asked of its routing table when first needed."""

    def __init__(self) -> None:
        self._route: Netlink | None = None

    def __enter__(self) -> _Own:
        return self

    def __exit__(self, *_: object) -> None:
        if self._route is not None:
            self._route.close()

    def at(self, address: str) -> Callable[[bytes], bool]:
        """Whether a destination is `address`; for an unspecified one, whether it is any of the host's."""
        ip = Ip.parse(address)
        return self._holds if ip.is_unspecified else ip.packed.__eq__

    def _holds(self, address: bytes) -> bool:
        from nodeplug.kernel.rtnl import routes

        if self._route is None:
            self._route = Netlink(NETLINK_ROUTE)
        found = routes.find(self._route, address)
        return found is not None and found.type == routes.LOCAL
