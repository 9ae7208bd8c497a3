"""loopback: brings a pod's `lo` up. It has no keys, and CNI_IFNAME does not matter."""

from __future__ import annotations

from nodeplug.cni.contract import Interface, IpConfig, Plugin, Result
from nodeplug.core.errors import Refused
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import addresses, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest
    from nodeplug.kernel.netns import Netns

_LO = "lo"


class Loopback(Plugin):
    name = "loopback"

    def add(self, request: AddRequest) -> Result:
        """Chained, it returns the result before it; alone, `lo` and its addresses."""
        with Netlink(NETLINK_ROUTE, netns=request.netns) as route:
            link = _set(route, up=True)
            found = [Net(ip=Ip(packed=a.ip), prefix=a.prefix) for a in addresses.dump(route, index=link.index)]
        foreign = [str(net) for net in found if not net.ip.is_loopback and not net.ip.is_link_local]
        if foreign:
            raise Refused(
                f"lo in {request.netns.path} holds {', '.join(foreign)}, which is no loopback address",
                hint="is CNI_NETNS a pod's own namespace?",
            )
        if request.prev_result is not None:
            return request.prev_result
        mac = link.mac.hex(":")
        return Result(
            interfaces=(Interface(name=_LO, mac=mac, sandbox=request.netns.path),),
            ips=tuple(IpConfig(address=net, interface=0) for net in found),
        )

    def delete(self, request: DelRequest) -> None:
        if request.netns is not None:
            with Netlink(NETLINK_ROUTE, netns=request.netns) as route:
                _set(route, up=False)

    def check(self, request: CheckRequest) -> None:
        if not _is_up(request.netns):
            raise Refused(f"lo in {request.netns.path} is down", hint="something in the pod has set it so")


def _set(route: Netlink, *, up: bool) -> links.Link:
    _, found = route.request(links.set(_LO, up=up), links.query(_LO))
    return links.parse(found or b"")


def _is_up(netns: Netns) -> bool:
    with Netlink(NETLINK_ROUTE, netns=netns) as route:
        link = links.find(route, _LO)
    return link is not None and link.up
