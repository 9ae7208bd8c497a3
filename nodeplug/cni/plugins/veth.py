"""A pod's veth, from its making to its end: how bridge and ptp join a pod to the host.

Its end on the host is `hostlink`'s: named and labelled by the attachment.
"""

from __future__ import annotations

import errno
import os

from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import company
from nodeplug.core.errors import Refused, TimedOut, doing
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import links, veths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nodeplug.cni.contract import AddRequest, DelRequest, Result
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.rtnl.links import Link

_UP_WITHIN = 5.0
"""Seconds; it takes a millisecond where the kernel is not busy with other links."""


def connect(
    host: Netlink,
    request: AddRequest,
    undo: Undo,
    *,
    to: str,
    mtu: int,
    mac: bytes | None = None,
    master: int | None = None,
    settings: Iterable[Message] = (),
) -> Link:
    """The host's end of a new veth, up; its `parent` is the index of the pod's end, which is down.

    `to` is what a failure is told to have kept the pod from; `mac` is the pod's; `settings` are sent along, once the
    link is there. Raises `Refused` when the pod has an interface of that name.
    """
    name, ifname, path = request.attachment.identity, request.ifname, request.netns.path
    pair = veths.add(
        name,
        ifname,
        peer_netns=request.netns,
        mtu=mtu or None,
        mac=new_mac(),  # udev would change one that the kernel made up
        master=master,
        peer_mac=mac,
    )
    # Who writes a setting of IPv6 while links are changed spins until he may.
    with doing(f"cannot connect {ifname} in {path} to {to}", hints=HINTS), company.present().by_turns(hostlink.LINKS):
        made, named = host.attempt(pair, hostlink.labelled(name, request.attachment, finished=False))
        if isinstance(made, NetlinkError):
            if made.errno == errno.EEXIST and isinstance(named, NetlinkError):
                raise Refused(
                    f"interface {ifname} already exists in {path}",
                    hint="a pod's interface names differ; it was left as it is",
                ) from made
            raise made
        undo.push(lambda: hostlink.remove(host, name))
        if isinstance(named, NetlinkError):
            raise named
        _spare_ipv6(name)
        *_, answer = host.request(links.set(name, up=True), *settings, links.query(name))
    return links.parse(answer or b"")


def new_mac() -> bytes:
    """A random MAC address, locally administered."""
    drawn = os.urandom(6)
    return bytes((drawn[0] & 0xFC | 0x02,)) + drawn[1:]


def _spare_ipv6(name: str) -> None:
    """Keep the host from speaking IPv6 by the link for itself, unless somebody gives it an address there.

    What comes in by a bridge's port is the bridge's, and a pod with IPv4 alone has nothing to say. Yet each link would
    have an address and two routes, all of which the kernel looks through when any link changes; and would solicit
    routers in the pod.
    """
    sysctl.prefer("1", "net", "ipv6", "conf", name, "disable_ipv6")


def wait_until_up(host: Netlink, link: Link, failing: str) -> Link:
    """The link once packets pass by it, as they do when the pod's end is up. `TimedOut`, where it does not, begins with
    `failing`.
    """
    if link.operstate == links.OPER_UP:
        return link
    from nodeplug.kernel.rtnl import watch

    try:
        return watch.wait_for_operstate(host, link.index, timeout=_UP_WITHIN)
    except TimeoutError as error:
        raise TimedOut(
            f"{failing} {error.strerror}",
            hint=f"is the pod's end of {link.name}, or what it is a port of, being set down by somebody?",
        ) from error


def disconnect(request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> None:
    """Take the attachment's link away, whichever plugin made it; nothing there is success.

    The reference plugins' have random names, which only a result and the pod's end tell. A runtime also deletes after
    an ADD that was refused because the pod has an interface of that name, of another network, which stays: `belongs`
    is asked of an unlabelled one's end on the host whether this network's configuration makes such.
    """
    with doing("cannot look for the pod's link", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        if hostlink.remove(host, request.attachment.identity):
            return
        if not _remove_inside(host, request, belongs) and request.prev_result is not None:
            _remove_outside(host, request.prev_result)


def _remove_inside(host: Netlink, request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> bool:
    if request.netns is None:
        return False
    with Netlink(NETLINK_ROUTE, netns=request.netns) as pod:
        link = links.find(pod, request.ifname)
        if link is None or link.kind != hostlink.KIND or not _is_ours(host, link, request, belongs):
            return False
        return hostlink.remove(pod, link.index)


def _is_ours(host: Netlink, link: Link, request: DelRequest, belongs: Callable[[Netlink, Link], bool]) -> bool:
    if request.prev_result is not None:
        return any(found.name == link.name and found.sandbox for found in request.prev_result.interfaces)
    port = links.find(host, link.parent) if link.parent else None
    if port is None or port.parent != link.index or port.kind != hostlink.KIND or hostlink.owner(port) is not None:
        return False
    return belongs(host, port)


def _remove_outside(host: Netlink, result: Result) -> None:
    """By the host's end in the result, as long as it is still that one: names come again, with other MAC addresses."""
    for interface in result.interfaces:
        link = links.find(host, interface.name) if interface.name and not interface.sandbox else None
        if link is None or link.kind != hostlink.KIND or hostlink.owner(link) is not None:
            continue
        # The gateway's link of a VLAN is a veth too, with both its ends on the host.
        if link.parent_netnsid is not None and link.mac.hex(":") == interface.mac.lower():
            hostlink.remove(host, link.index)
