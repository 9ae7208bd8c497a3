"""A device's way into a pod and back, each in one message that the kernel carries out whole.

On the way in the device gets the pod's name for it where it arrives, so nothing on the host sees that name. On the way
back it gets its own name before it leaves: udev and network managers take hold of a link by the name it comes with.
"""

from __future__ import annotations

import errno
import time

from nodeplug.cni.plugins.hostdevice import loans
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import company
from nodeplug.core.errors import NotFound, Refused, TryAgain, doing
from nodeplug.core.undo import Undo
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.plugins.hostdevice.loans import Loan
    from nodeplug.kernel.rtnl.links import Link

_WITHIN = 5.0
"""Seconds until the kernel has ended a namespace; it does so in the background, tens of milliseconds as a rule."""

_HINTS = {**HINTS, errno.EINVAL: "the kernel binds this kind of device to its namespace; it cannot be moved"}


def lend(host: Netlink, pod: Netlink, device: Link, loan: Loan) -> Link:
    """Move the device into the pod under the name `loan.ifname`, down; the link as it is there.

    Raises `Refused` when the pod has such an interface, or the device is a port of the host's. What was done before an
    error is taken back by `take_back`.
    """
    if device.master:
        master = links.find(host, device.master)
        raise Refused(
            f"device {device.name} is a port of {master.name if master else device.master} and cannot be lent",
            hint="take it out first: `ip link set DEVICE nomaster`",
        )
    with doing(f"cannot move {device.name} into {loan.netns_path}", hints=_HINTS):
        if links.find(pod, loan.ifname) is not None:
            raise Refused(
                f"container veth name provided ({loan.ifname}) already exists in {loan.netns_path}",
                hint="a runtime runs DEL before it adds the same interface again",
            )
        host.request(links.set(device.index, alias=device.name))
        # With both in one message the name counts where it arrives. Moving sets the device down.
        host.request(links.set(device.index, name=loan.ifname, netns=pod.netns))
        found = links.find(pod, loan.ifname)
    if found is None:
        raise NotFound(f"{device.name} was moved into {loan.netns_path} and is not there any more")
    return found


def take_back(host: Netlink, loan: Loan, netns: Netns | None, warn: Callable[[str], None]) -> bool:
    """Bring the device home under its own name, down; whether the loan is settled.

    It is where the pod's namespace is there no more, and the device with it, as it is for a virtual one; and where the
    device never left. Raises `TryAgain` while the host has another link of the device's name, and leaves it in the pod.
    """
    own = _namespace(loan, netns)
    if own is not None:
        bringing = doing(f"cannot bring {loan.name} back from {loan.netns_path}", hints=_HINTS)
        with own, bringing, Netlink(NETLINK_ROUTE, netns=own) as pod:
            device = _among(pod, loan)
            if device is not None:
                move_out(host, pod, device, loan.name)
    return _settle(host, loan, warn, wait=own is None)


def move_out(host: Netlink, pod: Netlink, device: Link, name: str) -> None:
    """From the pod to the host, named `name`. Raises `TryAgain` when the host has a link of that name."""
    if links.find(host, name) is not None:
        raise TryAgain(
            f"the host has another link called {name}, so the pod's device cannot come back under that name",
            hint="rename or delete that one; the device waits in the pod meanwhile",
        )
    with Netns.open(namespaces.SELF) as here, Undo() as undo:
        if device.up:
            undo.push(lambda: pod.attempt(links.set(device.index, up=True)))
        pod.request(links.set(device.index, up=False))
        if device.name != name:
            (refused,) = pod.attempt(links.set(device.index, name=name))
            if isinstance(refused, NetlinkError):
                if refused.errno != errno.EEXIST:
                    raise refused
            else:
                undo.push(lambda: pod.attempt(links.set(device.index, name=device.name)))
        # Where the pod has another link of that name, it is given on arrival.
        pod.request(links.set(device.index, name=name, netns=here))
        undo.commit()


def _namespace(loan: Loan, netns: Netns | None) -> Netns | None:
    """The namespace that the device was moved into; None when it is gone.

    By our own note, where the call names none: and only if what is at that path now is still the same.
    """
    for path in (netns.path if netns is not None else "", loan.netns_path):
        try:
            found = Netns.open(path) if path else None
        except OSError:
            continue
        if found is not None and found.identity() == loan.netns:
            return found
        if found is not None:
            found.close()
    return None


def _among(route: Netlink, loan: Loan) -> Link | None:
    """The device among a namespace's links."""
    for link in links.find_each(route, loan.ifname, loan.name):
        if link is not None and loan.is_of(link):
            return link
    return next((link for link in links.dump(route, kind=loan.kind) if loan.is_of(link)), None)


def _settle(host: Netlink, loan: Loan, warn: Callable[[str], None], *, wait: bool) -> bool:
    """Give the device, at home again, its name and alias; whether nothing is left to do."""
    with doing(f"cannot give {loan.name} back to the host", hints=_HINTS):
        device = _awaited(host, loan, within=_WITHIN if wait and loan.outlives else 0.0)
        if device is None:
            if loan.outlives:
                warn(f"device {loan.name} has not come back from {loan.netns_path}: some process may hold that open")
            return not loan.outlives
        if device.name != loan.name:
            host.request(links.set(device.index, up=False))
            (refused,) = host.attempt(links.set(device.index, name=loan.name))
            if isinstance(refused, NetlinkError):
                warn(f"device {loan.name} came back as {device.name} and keeps that name: {refused.strerror}")
                return False
        host.request(links.set(device.index, alias=loan.alias))
    return True


def _awaited(host: Netlink, loan: Loan, *, within: float) -> Link | None:
    deadline = time.monotonic() + within
    pause = 0.005
    while True:
        found = _among(host, loan)
        if found is not None or time.monotonic() >= deadline:
            return found
        with company.present().waiting():
            time.sleep(pause)
        pause = min(pause * 2, 0.2)


def bring_home(host: Netlink, loan: Loan, warn: Callable[[str], None]) -> bool:
    """`take_back` for a loan whose DEL never came, or could not finish; whether it is settled."""
    if not take_back(host, loan, None, warn):
        return False
    loans.drop(loan.attachment)
    return True


def is_away(loan: Loan) -> bool:
    """Whether the namespace that the device was moved into is still there, under the path it had."""
    found = _namespace(loan, None)
    if found is not None:
        found.close()
    return found is not None
