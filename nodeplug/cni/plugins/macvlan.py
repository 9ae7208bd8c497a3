"""macvlan: a pod has a link with a MAC address of its own on a link of the host, and so is a station of its network."""

from __future__ import annotations

from nodeplug.cni.contract import Plugin
from nodeplug.cni.plugins import masters, podcommands
from nodeplug.cni.plugins.keys import Args, RuntimeConfig, mac, requested_mac
from nodeplug.cni.plugins.masters import MasterConf
from nodeplug.core.document import integer, nested
from nodeplug.core.errors import Refused
from nodeplug.core.record import key
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import uppers
from nodeplug.kernel.rtnl.uppers import MACVLAN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, Result, StatusRequest
    from nodeplug.kernel.rtnl.links import Link


class MacvlanConf(MasterConf):
    mode: str = key(
        masters.mode("bridge", "private", "vepa", "passthru"),
        default="bridge",
        help="whom it reaches of those on the same master: all, nobody, all by the switch outside; or alone on it",
    )
    mac: bytes | None = key(mac, default=None, help="its MAC address, where nobody asks for another one")
    broadcast_queue: int = key(
        integer(0, 0xFFFFFFFF),
        default=0,
        name="bcqueuelen",
        help="frames to all that may wait on the master; 0 for the kernel's 1000",
    )
    args: Args = key(nested(Args), default=Args(), help="by convention, of the configuration's author or the runtime")
    runtime_config: RuntimeConfig = key(
        nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig", help="what the runtime offers"
    )


class Macvlan(Plugin):
    name = "macvlan"
    config = MacvlanConf
    args = ("MAC", "IP", "GATEWAY")  # the last two are for address managers, which are given the same

    def add(self, request: AddRequest) -> Result:
        config: MacvlanConf = request.config
        mac = requested_mac(config.runtime_config, config.args, request.args) or config.mac

        def make(pod: Netlink, name: str) -> None:
            masters.make(
                request,
                pod,
                MACVLAN,
                config.master,
                lambda master, netns: uppers.add_macvlan(
                    name,
                    master.index,
                    config.mode,
                    mac=mac,
                    mtu=config.mtu or None,
                    broadcast_queue=config.broadcast_queue or None,
                    netns=netns,
                ),
            )

        return podcommands.add(request, MACVLAN, make, dns=config.dns, mtu=config.mtu, detect_duplicates=True)

    def delete(self, request: DelRequest) -> None:
        master = request.config.master
        podcommands.delete(request, MACVLAN, lambda link: masters.made_on(request, master, link))

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.checking import MEND

        config: MacvlanConf = request.config

        def look(pod: Netlink, link: Link) -> None:
            mode = uppers.macvlan_mode(link)
            if mode != config.mode:
                raise Refused(f"{link.name} is in mode {mode or 'unknown'}, not {config.mode}", hint=MEND)
            with Netlink(NETLINK_ROUTE) as host:
                masters.check(pod if config.link_in_container else host, config.master, config, link)

        podcommands.check(request, MACVLAN, look)

    def gc(self, request: GcRequest) -> None:
        podcommands.collect(request, MACVLAN)

    def status(self, request: StatusRequest) -> None:
        masters.status(request, MACVLAN, request.config.master)
