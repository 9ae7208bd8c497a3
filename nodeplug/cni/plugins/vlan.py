"""vlan: a pod is in a VLAN of the network that a link of the host is connected to."""

from __future__ import annotations

from nodeplug.cni.contract import Plugin
from nodeplug.cni.plugins import addressing, masters, podcommands
from nodeplug.cni.plugins.keys import link_name
from nodeplug.cni.plugins.masters import MasterConf
from nodeplug.core.document import integer
from nodeplug.core.errors import Refused
from nodeplug.core.record import key
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import uppers
from nodeplug.kernel.rtnl.uppers import VLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, Result, StatusRequest
    from nodeplug.kernel.rtnl.links import Link


class VlanConf(MasterConf):
    master: str = key(link_name, help="the link it sits on")
    vlan_id: int = key(integer(0, 4094), default=0, name="vlanId", help="the VLAN; each is once on a master")


class Vlan(Plugin):
    name = "vlan"
    config = VlanConf

    def add(self, request: AddRequest) -> Result:
        config: VlanConf = request.config
        addressing.require_manager(request)

        def make(pod: Netlink, name: str) -> None:
            masters.make(
                request,
                pod,
                VLAN,
                config.master,
                lambda master, netns: uppers.add_vlan(
                    name, master.index, config.vlan_id, mtu=config.mtu or None, netns=netns
                ),
                taken=f"a link for VLAN {config.vlan_id} of {config.master} is on the host, or in another pod",
            )

        return podcommands.add(request, VLAN, make, dns=config.dns, mtu=config.mtu, detect_duplicates=True)

    def delete(self, request: DelRequest) -> None:
        config: VlanConf = request.config

        def belongs(link: Link) -> bool:
            return uppers.vlan_id(link) == config.vlan_id and masters.made_on(request, config.master, link)

        podcommands.delete(request, VLAN, belongs)

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.checking import MEND

        config: VlanConf = request.config
        addressing.require_manager(request)

        def look(pod: Netlink, link: Link) -> None:
            if uppers.vlan_id(link) != config.vlan_id:
                raise Refused(f"{link.name} is VLAN {uppers.vlan_id(link)}, not {config.vlan_id}", hint=MEND)
            with Netlink(NETLINK_ROUTE) as host:
                masters.check(pod if config.link_in_container else host, config.master, config, link)

        podcommands.check(request, VLAN, look)

    def gc(self, request: GcRequest) -> None:
        podcommands.collect(request, VLAN)

    def status(self, request: StatusRequest) -> None:
        addressing.require_manager(request)
        masters.status(request, VLAN, request.config.master)
