"""A pod's port of the bridge: the veth whose other end is in the pod, from its making to its end."""

from __future__ import annotations

import errno
import os

from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import paths
from nodeplug.core.errors import Refused, TimedOut, doing
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import bridges, links, veths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, AttachmentRequest, DelRequest, Result
    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.rtnl.links import Link

GUARDS = paths.RUN + "/cni/macspoofchk"
"""A file for each guarded port, by its name; see `spoofing`. Known here, so that to find none costs a look."""

_FORWARDS_WITHIN = 5.0
"""Seconds; it takes a millisecond where the kernel is not busy with other links."""


def connect(host: Netlink, bridge: Link, request: AddRequest, undo: Undo, *, mac: bytes | None) -> Link:
    """The host's end of a new veth, a port of the bridge; its `parent` is the index of the pod's end, which is down.

    Raises `Refused` when the pod has an interface of that name.
    """
    config: BridgeConf = request.config
    name, ifname, path = request.attachment.identity, request.ifname, request.netns.path
    messages = [
        veths.add(
            name,
            ifname,
            peer_netns=request.netns,
            up=True,
            mtu=config.mtu or None,
            master=bridge.index,
            peer_mac=mac,
        ),
        hostlink.labelled(name, request.attachment, finished=False),
    ]
    if config.hairpin_mode or config.port_isolation:
        messages.append(bridges.set_port(name, hairpin=config.hairpin_mode, isolated=config.port_isolation))
    with doing(f"cannot connect {ifname} in {path} to bridge {bridge.name}", hints=HINTS):
        made, *settings, answer = host.attempt(*messages, links.query(name))
        if isinstance(made, NetlinkError):
            if made.errno == errno.EEXIST and isinstance(answer, NetlinkError):
                raise Refused(
                    f"interface {ifname} already exists in {path}",
                    hint="a pod's interface names differ; it was left as it is",
                ) from made
            raise made
        undo.push(lambda: hostlink.remove(host, name))
        for refused in (*settings, answer):
            if isinstance(refused, NetlinkError):
                raise refused
    sysctl.prefer("0", "net", "ipv6", "conf", name, "accept_ra")
    return links.parse(answer or b"")  # type: ignore[arg-type]  # no error, as was just seen


def wait_until_forwarding(host: Netlink, port: Link) -> Link:
    """The port, once its frames reach the bridge. Raises `TimedOut`."""
    if port.operstate == links.OPER_UP:
        return port
    from nodeplug.kernel.rtnl import watch

    try:
        return watch.wait_for_operstate(host, port.index, timeout=_FORWARDS_WITHIN)
    except TimeoutError as error:
        raise TimedOut(
            f"bridge port in error state: {error.strerror}",
            hint=f"is the pod's end of {port.name}, or the bridge, being set down by somebody?",
        ) from error


def is_guarded(name: str) -> bool:
    """Whether there is a guard to remove."""
    return os.path.lexists(f"{GUARDS}/{name}")


def disconnect(request: DelRequest) -> None:
    """Take the attachment's link away, whichever plugin made it; nothing there is success."""
    with doing("cannot look for the pod's link", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        if hostlink.remove(host, request.attachment.identity):
            return
        # None of ours. The reference plugin's has a random name, which only its result and the pod's end tell.
        if not _remove_inside(host, request) and request.prev_result is not None:
            _remove_outside(host, request, request.prev_result)


def _remove_inside(host: Netlink, request: DelRequest) -> bool:
    if request.netns is None:
        return False
    with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
        link = links.find(pod, request.ifname)
        if link is None or link.kind != hostlink.KIND or not _is_ours(host, link, request):
            return False
        return hostlink.remove(pod, link.index)


def _is_ours(host: Netlink, link: Link, request: DelRequest) -> bool:
    """Whether the pod's link is of this attachment.

    A runtime also deletes after an ADD that was refused because the pod has an interface of that name already, of
    another network. That one stays: no result names it, and its other end is another attachment's or on no bridge of
    this network.
    """
    if request.prev_result is not None:
        return any(found.name == link.name and found.sandbox for found in request.prev_result.interfaces)
    port, bridge = links.find(host, link.parent) if link.parent else None, links.find(host, request.config.bridge)
    if port is None or bridge is None or port.parent != link.index or port.kind != hostlink.KIND:
        return False
    return port.master == bridge.index and hostlink.owner(port) is None


def _remove_outside(host: Netlink, request: AttachmentRequest, result: Result) -> None:
    """By the host's end in the result, as long as it is still that one: names come again, with other MAC addresses."""
    for interface in result.interfaces:
        if interface.sandbox or interface.name in ("", request.config.bridge):
            continue
        link = links.find(host, interface.name)
        if link is None or link.kind != hostlink.KIND or hostlink.owner(link) is not None:
            continue
        if link.mac.hex(":") == interface.mac.lower():
            hostlink.remove(host, link.index)
