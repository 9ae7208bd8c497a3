"""The five commands of a plugin whose pods have a link made straight in their namespace, told what is particular to it.

Shared by macvlan, ipvlan, vlan, tap and dummy. The link itself is `podlink`.
"""

from __future__ import annotations

from nodeplug.cni.contract import Interface, Result
from nodeplug.cni.plugins import addressing, hostlink, podlink
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import Refused, doing
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        Dns,
        GcRequest,
        StatusRequest,
    )
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link


def add(
    request: AddRequest,
    kind: str,
    make: Callable[[Netlink, str], object],
    *,
    dns: Dns | None,
    mtu: int = 0,
    given: Result | None = None,
    detect_duplicates: bool = False,
) -> Result:
    """The link that `make(pod, name)` makes, up, with its addresses and routes; and its result.

    `pod` is a socket in the pod's namespace. `given` is what an address manager would say, where none is asked.
    """
    netns, ifname = request.netns, request.ifname
    with podlink.inside(netns) as pod, Undo() as undo:
        _make_room(pod, request, kind)
        index = podlink.make(pod, request, kind, lambda name: make(pod, name), undo)
        if given is None:
            given = addressing.ask(request, undo, lambda: hostlink.remove(pod, index))
        for ip in given.ips:
            addressing.check_mtu(ip.address, mtu)
        result = Result(
            interfaces=(Interface(name=ifname, sandbox=netns.path),),
            ips=tuple([ip.replace(interface=0) for ip in given.ips]),
            routes=given.routes,
            dns=given.dns if dns is None else dns,
        )
        (answer,) = addressing.configure(
            pod, netns, index, ifname, result, detect_duplicates=detect_duplicates, also=[links.query(index)]
        )
        link = links.parse(answer or b"")
        podlink.finish(pod, index, request.attachment)
        undo.commit()
    return result.replace(interfaces=(Interface(name=ifname, mac=link.mac.hex(":"), sandbox=netns.path),))


def _make_room(pod: Netlink, request: AddRequest, kind: str) -> None:
    """Take away what a killed ADD of this attachment left. Raises `Refused` when the pod has an interface of that name.

    Nobody works on the attachment beside the caller, so an unfinished one has no ADD that would finish it.
    """
    attachment, ifname, path = request.attachment, request.ifname, request.netns.path
    with doing(f"cannot look for {ifname} in {path}", hints=HINTS):
        found = links.find_each(pod, podlink.name_of(attachment), ifname)
    leftovers = [link for link in found if link is not None and podlink.is_unfinished(link, attachment, kind)]
    if leftovers:
        names = ", ".join([link.name for link in leftovers])
        request.warn(f"replaced link {names} in {path}, which an ADD that was killed left behind")
        _take_back(request, lambda: [hostlink.remove(pod, link.index) for link in leftovers])
    there = found[1]
    if there is None or there in leftovers:
        return
    if podlink.is_finished(there, attachment, kind):
        raise Refused(
            f"container {request.container} has interface {ifname} in network {request.network} already",
            hint="a runtime runs DEL before it adds the same interface again",
        )
    raise Refused(
        f"interface {ifname} already exists in {path}", hint="a pod's interface names differ; it was left as it is"
    )


def delete(request: DelRequest, kind: str, belongs: Callable[[Link], bool] | None = None) -> None:
    """The link goes, and then its addresses; nothing there is success. `belongs` is that of `podlink.remove`."""
    _take_back(request, lambda: podlink.remove(request, kind, belongs))


def _take_back(request: AttachmentRequest, remove: Callable[[], object]) -> None:
    steps = Steps()
    gone = steps.run(remove)
    if gone and request.ipam is not None:
        steps.run(request.ipam.delete)
    steps.close()


def check(request: CheckRequest, kind: str, look: Callable[[Netlink, Link], object] | None = None) -> None:
    """Whether the link is as the result says; `look(pod, link)` raises for what only the plugin knows."""
    from nodeplug.cni.plugins import checking

    with doing(f"cannot read the links of {request.netns.path}", hints=HINTS), podlink.inside(request.netns) as pod:
        link = checking.pods_link(pod, request, kind, called=podlink.called(kind))
        checking.check_up(link, request)
        checking.check_addresses(pod, link, request)
        checking.check_routes(pod, request)
        if look is not None:
            look(pod, link)
    if request.ipam is not None:
        request.ipam.check()


def collect(request: GcRequest, kind: str) -> None:
    """The network's links of no valid attachment go, and then what the address manager holds for none."""
    steps = Steps()
    gone = steps.run(lambda: podlink.remove_stale(request.network, request.valid, kind))
    if gone and request.ipam is not None:
        steps.run(request.ipam.gc)
    steps.close()


def status(request: StatusRequest, kind: str) -> None:
    """Raise `Unavailable` or `PermissionRefused` where no link of the kind can be made, or no address be had."""
    from nodeplug.cni.plugins import checking

    checking.check_rights()
    podlink.check_support(kind)
    if request.ipam is not None:
        request.ipam.status()
