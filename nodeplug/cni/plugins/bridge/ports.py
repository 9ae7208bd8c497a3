"""A pod's port of the bridge: the veth whose other end is in the pod, from its making to its end."""

from __future__ import annotations

import os

from nodeplug.cni.plugins import veth
from nodeplug.core import paths
from nodeplug.kernel.rtnl import bridges, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, DelRequest
    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

GUARDS = paths.RUN + "/cni/macspoofchk"
"""A file for each guarded port, by its name; see `spoofing`. Known here, so that to find none costs a look."""


def connect(host: Netlink, bridge: Link, request: AddRequest, undo: Undo, *, mac: bytes) -> Link:
    """The host's end of a new veth, a port of the bridge; its `parent` is the index of the pod's end, which is down.

    Raises `Refused` when the pod has an interface of that name.
    """
    config: BridgeConf = request.config
    settings = []
    if config.hairpin_mode or config.port_isolation:
        name = request.attachment.identity
        settings.append(bridges.set_port(name, hairpin=config.hairpin_mode, isolated=config.port_isolation))
    return veth.connect(
        host,
        request,
        undo,
        to=f"bridge {bridge.name}",
        mtu=config.mtu,
        mac=mac,
        master=bridge.index,
        settings=settings,
    )


def wait_until_forwarding(host: Netlink, port: Link) -> Link:
    """The port, once its frames reach the bridge. Raises `TimedOut`."""
    return veth.wait_until_up(host, port, "bridge port in error state:")


def is_guarded(name: str) -> bool:
    """Whether there is a guard to remove."""
    return os.path.lexists(f"{GUARDS}/{name}")


def disconnect(request: DelRequest) -> None:
    """Take the attachment's link away, whichever plugin made it; nothing there is success."""

    def belongs(host: Netlink, port: Link) -> bool:
        bridge = links.find(host, request.config.bridge)
        return bridge is not None and port.master == bridge.index

    veth.disconnect(request, belongs)
