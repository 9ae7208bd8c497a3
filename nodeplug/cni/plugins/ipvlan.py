"""ipvlan: a pod has a link on a link of the host, and shares its MAC address: who gets a packet is told by IP address.

Chained, it may sit on the link that the plugin before it made, and take over that one's addresses.
"""

from __future__ import annotations

from nodeplug.cni.contract import Plugin, Result
from nodeplug.cni.plugins import addressing, masters, podcommands
from nodeplug.cni.plugins.keys import optional_link_name
from nodeplug.cni.plugins.masters import MasterConf
from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.core.record import key
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import uppers
from nodeplug.kernel.rtnl.uppers import IPVLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, StatusRequest
    from nodeplug.kernel.rtnl.links import Link


class IpvlanConf(MasterConf):
    master: str = key(
        optional_link_name,
        default="",
        help="the link it sits on; if unset the only one in the result before it, or that of the default route",
    )
    mode: str = key(
        masters.mode("l2", "l3", "l3s"),
        default="l2",
        help="how it passes on what it gets: as a switch, as a router, or as one whose packets the host's filters see",
    )


class Ipvlan(Plugin):
    name = "ipvlan"
    config = IpvlanConf

    def add(self, request: AddRequest) -> Result:
        config: IpvlanConf = request.config
        master, given = _master(request), _given(request)

        def make(pod: Netlink, name: str) -> None:
            masters.make(
                request,
                pod,
                IPVLAN,
                master,
                lambda master, netns: uppers.add_ipvlan(
                    name, master.index, config.mode, mtu=config.mtu or None, netns=netns
                ),
            )

        return podcommands.add(
            request, IPVLAN, make, dns=config.dns, mtu=config.mtu, given=given, detect_duplicates=True
        )

    def delete(self, request: DelRequest) -> None:
        master = request.config.master
        podcommands.delete(request, IPVLAN, lambda link: masters.made_on(request, master, link))

    def check(self, request: CheckRequest) -> None:
        """Without a `master` the link may sit on any: the result no longer has the one before it."""
        from nodeplug.cni.plugins.checking import MEND

        config: IpvlanConf = request.config

        def look(pod: Netlink, link: Link) -> None:
            mode = uppers.ipvlan_mode(link)
            if mode != config.mode:
                raise Refused(f"{link.name} is in mode {mode or 'unknown'}, not {config.mode}", hint=MEND)
            if config.master:
                with Netlink(NETLINK_ROUTE) as host:
                    masters.check(pod if config.link_in_container else host, config.master, config, link)

        podcommands.check(request, IPVLAN, look)

    def gc(self, request: GcRequest) -> None:
        podcommands.collect(request, IPVLAN)

    def status(self, request: StatusRequest) -> None:
        """A chained one may have its master made before it, so without a `master` none is looked for."""
        config: IpvlanConf = request.config
        if config.master:
            masters.status(request, IPVLAN, config.master)
        else:
            podcommands.status(request, IPVLAN)


def _master(request: AddRequest) -> str:
    """Its name; empty for the link of the default route."""
    master: str = request.config.master
    if master or request.prev_result is None:
        return master
    named = [interface.name for interface in request.prev_result.interfaces]
    if len(named) != 1 or not named[0]:
        raise ConfigInvalid(
            f"chained master failure: prevResult has {len(named)} interfaces, not a single one with a name",
            hint='name the master as "master"',
        )
    return named[0]


def _given(request: AddRequest) -> Result | None:
    """The addresses of the plugin before it, where there is no address manager."""
    result = request.prev_result
    if request.ipam is None and result is not None and result.ips:
        return result
    addressing.require_manager(request)
    return None
