"""tap: a pod has a link whose other end is a program, such as the virtual machine that the pod runs."""

from __future__ import annotations

import os

from nodeplug.cni.contract import Dns, FieldUnsupported, NetConf, Plugin
from nodeplug.cni.plugins import podcommands
from nodeplug.cni.plugins.keys import Args, RuntimeConfig, dns, mac, mtu, optional_link_name, requested_mac
from nodeplug.core.document import boolean, integer, nested, text
from nodeplug.core.errors import NotFound, Refused, Unavailable
from nodeplug.core.record import key
from nodeplug.kernel import tuntap
from nodeplug.kernel.rtnl import bridges, links
from nodeplug.kernel.tuntap import KIND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, Result, StatusRequest
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

_ID = integer(0, 0xFFFFFFFE)  # the one above means nobody
_PATIENCE = 20.0  # seconds for a child that has two steps to do


class TapConf(NetConf):
    multi_queue: bool = key(
        boolean, default=False, name="multiQueue", help="several queues, for a program that serves them by threads"
    )
    mtu: int = key(mtu, default=0, help="its MTU; 0 for the kernel's 1500")
    mac: bytes | None = key(mac, default=None, help="its MAC address, where nobody asks for another one")
    owner: int | None = key(_ID, default=None, help="the user, by number, who may attach to it without CAP_NET_ADMIN")
    group: int | None = key(_ID, default=None, help="the group that may, likewise")
    selinux_context: str = key(
        text, default="", name="selinuxContext", help="the SELinux context that it is labelled with"
    )
    bridge: str = key(optional_link_name, default="", help="a bridge of the pod that it becomes a port of")
    args: Args = key(nested(Args), default=Args(), help="by convention, of the configuration's author or the runtime")
    runtime_config: RuntimeConfig = key(
        nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig", help="what the runtime offers"
    )
    dns: Dns | None = key(dns, default=None, help="takes the place of the address manager's; so does an empty list")


class Tap(Plugin):
    name = "tap"
    config = TapConf
    args = ("MAC", "IP", "GATEWAY")  # the last two are for address managers, which are given the same

    def add(self, request: AddRequest) -> Result:
        config: TapConf = request.config
        mac = requested_mac(config.runtime_config, config.args, request.args) or config.mac

        def make(pod: Netlink, name: str) -> None:
            bridge = _bridge(pod, config.bridge) if config.bridge else None
            _make(request, name)
            if mac or config.mtu or bridge:
                master = bridge.index if bridge else None
                pod.request(links.set(name, mac=mac, mtu=config.mtu or None, master=master))

        return podcommands.add(request, KIND, make, dns=config.dns, mtu=config.mtu)

    def delete(self, request: DelRequest) -> None:
        podcommands.delete(request, KIND)

    def check(self, request: CheckRequest) -> None:
        from nodeplug.cni.plugins.checking import MEND

        config: TapConf = request.config

        def look(pod: Netlink, link: Link) -> None:
            found = tuntap.tap_of(link)
            if found is None:
                raise Refused(f"{link.name} is no tap: it carries packets without Ethernet", hint=MEND)
            for what, wanted, have in (
                ("owner", config.owner, found.owner),
                ("group", config.group, found.group),
                ("multiQueue", config.multi_queue, found.multi_queue),
            ):
                if wanted not in (None, have):
                    raise Refused(f"{what} of {link.name} is {have}, not {wanted}", hint=MEND)
            if config.bridge and link.master != _bridge(pod, config.bridge).index:
                raise Refused(f"{link.name} is no port of bridge {config.bridge}", hint=MEND)

        podcommands.check(request, KIND, look)

    def gc(self, request: GcRequest) -> None:
        podcommands.collect(request, KIND)

    def status(self, request: StatusRequest) -> None:
        from nodeplug.cni.plugins import checking

        checking.check_rights()
        _check_selinux(request.config)
        try:
            os.close(os.open(tuntap.DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise Unavailable(
                f"this node cannot make tap links: {tuntap.DEVICE}: {error.strerror}",
                hint="it needs CONFIG_TUN, or the module that was built of it: modprobe tun",
            ) from error
        if request.ipam is not None:
            request.ipam.status()


def _bridge(pod: Netlink, name: str) -> Link:
    found = links.find(pod, name)
    if found is None:
        raise NotFound(f"the pod has no bridge {name}", hint="a plugin before this one, or the pod itself, makes it")
    if found.kind != bridges.KIND:
        raise Refused(f"link {name} of the pod is no bridge: it is of kind {found.kind or 'hardware'!r}")
    return found


def _make(request: AddRequest, name: str) -> None:
    config: TapConf = request.config
    _check_selinux(config)
    device = tuntap.open_device(request.netns)
    try:
        if config.selinux_context:
            _make_labelled(device, name, config)
        else:
            tuntap.add(device, name, multi_queue=config.multi_queue, owner=config.owner, group=config.group)
    finally:
        os.close(device)


def _check_selinux(config: TapConf) -> None:
    if config.selinux_context:
        from nodeplug.kernel import selinux

        if not selinux.is_enabled():
            raise FieldUnsupported(
                f"selinuxContext is {config.selinux_context!r}, and SELinux is off on this node",
                hint="leave it out, or boot with SELinux on",
            )


def _make_labelled(device: int, name: str, config: TapConf) -> None:
    """By a child in that context: the kernel labels a tap with the context of the process that makes it."""
    from nodeplug.core import child
    from nodeplug.kernel import selinux

    make = tuntap.creation(name, multi_queue=config.multi_queue)
    command = selinux.ioctl_in(config.selinux_context, device, *make)
    done = child.run(command, env={}, timeout=_PATIENCE, fds=(device,))
    if done.code != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise Refused(
            f"cannot make a tap in the SELinux context {config.selinux_context!r}: {said}",
            hint="the policy must know the context, and let this program run Python and make a tap in it",
        )
    tuntap.keep(device, name, owner=config.owner, group=config.group)
