"""host-device, called by the door: each command as steps, the work itself beside this module."""

from __future__ import annotations

from nodeplug.cni.contract import Interface, Plugin, Result
from nodeplug.cni.plugins import addressing, checking, podlink
from nodeplug.cni.plugins.checking import MEND
from nodeplug.cni.plugins.hostdevice import finding, loans, moving
from nodeplug.cni.plugins.hostdevice.config import MAC, NAME, HostDeviceConf, wanted
from nodeplug.cni.plugins.hostdevice.loans import Loan
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core import files, paths
from nodeplug.core.errors import NotFound, Refused, Unavailable, doing
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        GcRequest,
        StatusRequest,
    )
    from nodeplug.cni.plugins.hostdevice.config import Wanted
    from nodeplug.core.files import RangeLock
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link


class HostDevice(Plugin):
    """Called by the door; see the package."""

    name = "host-device"
    config = HostDeviceConf
    args = ("MAC", "IP", "GATEWAY")  # for address managers, which are given the same

    def add(self, request: AddRequest) -> Result:
        aim = wanted(request.config)
        if _is_user_space(request.config, aim):
            return _without_link(request, aim)
        with Netlink(NETLINK_ROUTE) as host, podlink.inside(request.netns) as pod, Undo() as undo:
            with _alone():
                link, interface = _borrow(host, pod, request, aim, undo)
            given = addressing.ask(request, undo, lambda: _return(host, request, request.netns))
            result = Result(
                interfaces=(interface,),
                ips=tuple([ip.replace(interface=0) for ip in given.ips]),
                routes=given.routes,
                dns=given.dns,
            )
            addressing.configure(pod, request.netns, link.index, request.ifname, result, detect_duplicates=False)
            loans.finish(request.attachment)
            undo.commit()
        return result

    def delete(self, request: DelRequest) -> None:
        """The device goes home, with or without its namespace; its address is released once it has."""
        steps = Steps()
        gone = steps.run(lambda: _give_back(request))
        if gone and request.ipam is not None:
            steps.run(request.ipam.delete)
        steps.run(loans.sweep)
        steps.close()

    def check(self, request: CheckRequest) -> None:
        aim = wanted(request.config)
        if _is_user_space(request.config, aim):
            finding.directory(aim)
        else:
            with podlink.inside(request.netns) as pod, doing(f"cannot read {request.ifname}", hints=HINTS):
                device = links.find(pod, request.ifname)
                checking.pods_link(pod, request, device.kind if device is not None else "", called="device")
                loan = loans.find(request.attachment)
                if device is not None and loan is not None and not loan.is_of(device):
                    raise Refused(f"{request.ifname} is not the host's device {loan.name} any more", hint=MEND)
                if device is not None:
                    checking.check_addresses(pod, device, request)
                checking.check_routes(pod, request)
        if request.ipam is not None:
            request.ipam.check()

    def gc(self, request: GcRequest) -> None:
        """Bring home the devices of the network that no valid attachment has."""
        steps = Steps()
        for loan in loans.every():
            if loan.network == request.network and loan.attachment not in request.valid:
                steps.run(lambda loan=loan: _bring_home(loan, request))  # type: ignore[misc]  # binds it now
        steps.run(loans.sweep)
        if request.ipam is not None:
            steps.run(request.ipam.gc)
        steps.close()

    def status(self, request: StatusRequest) -> None:
        """A device that is in a pod is as it should be, so none is looked for."""
        if not request.config.runtime_config.device_id and any(_named(request.config)):
            wanted(request.config)
        checking.check_rights()
        if request.ipam is not None:
            request.ipam.status()


def _named(config: HostDeviceConf) -> tuple[object, ...]:
    return config.device, config.hwaddr, config.kernelpath, config.pci_bus_id


def _alone() -> RangeLock:
    """Nobody else takes a device meanwhile: of two who have found the same one, one would note what it has not got."""
    return files.range_lock(f"{paths.LOCKS}/devices", "take")


def _is_user_space(config: HostDeviceConf, aim: Wanted) -> bool:
    return config.dpdk_mode or bool(finding.user_space_driver(aim))


def _without_link(request: AddRequest, aim: Wanted) -> Result:
    """For a device of a user-space driver, which the pod opens by itself: addresses only, for the program to use."""
    if aim.by not in (NAME, MAC):
        finding.directory(aim)
    with Undo() as undo:
        given = addressing.ask(request, undo, lambda: None)
        undo.commit()
    return given.replace(ips=tuple([ip.replace(interface=None) for ip in given.ips]))


def _borrow(host: Netlink, pod: Netlink, request: AddRequest, aim: Wanted, undo: Undo) -> tuple[Link, Interface]:
    """Move the device into the pod: its link there, and what the result says of it."""
    left = loans.find(request.attachment)
    if left is not None and left.finished:
        raise Refused(
            f"container {request.container} has interface {request.ifname} in network {request.network} already, by"
            f" device {left.name}",
            hint="a runtime runs DEL before it adds the same interface again",
        )
    if left is not None and not moving.bring_home(host, left, request.warn):
        raise Unavailable(f"device {left.name}, which an ADD of this pod took before, has not come back")
    device = _find(host, request, aim)
    facts = finding.hardware(device)
    loan = Loan(
        network=request.network,
        container=request.container,
        ifname=request.ifname,
        name=device.name,
        alias=device.alias,
        mac=device.mac.hex(),
        permanent_mac=device.permanent_mac.hex(),
        kind=device.kind,
        path=facts.path,
        netns_path=request.netns.path,
        netns=request.netns.identity(),
    )
    undo.push(lambda: _return(host, request, request.netns))
    loans.keep(loan)
    link = moving.lend(host, pod, device, loan)
    return link, Interface(
        name=request.ifname, mac=link.mac.hex(":"), mtu=link.mtu, sandbox=request.netns.path, pci_id=facts.pci
    )


def _find(host: Netlink, request: AddRequest, aim: Wanted) -> Link:
    """The device; one that a pod of the past has left under another name gets its own again first."""
    device = finding.find(host, aim)
    if device is not None:
        return device
    holder = next((loan for loan in loans.every() if _is_meant(loan, aim)), None)
    if holder is not None and not moving.is_away(holder):
        moving.bring_home(host, holder, request.warn)
        device = finding.find(host, aim)
    elif holder is not None:
        raise Unavailable(
            f"device {holder.name} is in use by container {holder.container} in network {holder.network}",
            hint="it comes back when that pod ends",
        )
    if device is None:
        raise NotFound(f"this host has no network device with {aim}", hint="`ip link` lists what there is")
    return device


def _is_meant(loan: Loan, aim: Wanted) -> bool:
    if aim.by == NAME:
        return loan.name == aim.value
    if aim.by == MAC:
        return aim.value.replace(":", "") in (loan.permanent_mac, loan.mac)
    place = finding.real(aim)
    return loan.path == place or loan.path.startswith(f"{place}/")


def _return(host: Netlink, request: AttachmentRequest, netns: Netns | None) -> None:
    """Take the device back, if the attachment has one."""
    loan = loans.find(request.attachment)
    if loan is not None and moving.take_back(host, loan, netns, request.warn):
        loans.drop(request.attachment)


def _bring_home(loan: Loan, request: GcRequest) -> None:
    with Netlink(NETLINK_ROUTE) as host:
        moving.bring_home(host, loan, request.warn)


def _give_back(request: DelRequest) -> None:
    with doing("cannot reach the host's network", hints=HINTS), Netlink(NETLINK_ROUTE) as host:
        if loans.find(request.attachment) is not None:
            _return(host, request, request.netns)
        elif request.netns is not None:
            _give_back_theirs(host, request, request.netns)


def _give_back_theirs(host: Netlink, request: DelRequest, netns: Netns) -> None:
    """A device that the reference plugin lent: its name on the host is its alias.

    A runtime also deletes after an ADD that was refused because the pod has an interface of that name, which is not to
    be taken from it: it must be named by the result, or be what this configuration asks for.
    """
    with podlink.inside(netns) as pod, doing(f"cannot look for {request.ifname} in {netns.path}", hints=HINTS):
        link = links.find(pod, request.ifname)
        if link is None or not link.alias or "/" in link.alias or not _is_theirs(request, link):
            return
        moving.move_out(host, pod, link, link.alias)
        host.attempt(links.set(link.alias, alias=""))


def _is_theirs(request: DelRequest, link: Link) -> bool:
    if request.prev_result is not None:
        return any(found.name == link.name and found.sandbox for found in request.prev_result.interfaces)
    config: HostDeviceConf = request.config
    return link.alias == config.device or config.hwaddr in (link.mac, link.permanent_mac)
