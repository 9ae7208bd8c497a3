"""tuning, called by the door.

ADD keeps what the interface was like, sets what is wanted, and takes all of it back when a step fails. DEL restores
the interface; the settings of the namespace stay, because others in it may have come to rely on them.
"""

from __future__ import annotations

import errno

from nodeplug.cni.contract import Interface, Plugin, Result
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.tuning import backups, sysctls
from nodeplug.cni.plugins.tuning.backups import Backup, Backups
from nodeplug.cni.plugins.tuning.config import OF_LINK, TuningConf, wanted
from nodeplug.core.errors import ConfigInvalid, NotFound, PermissionRefused, Refused, doing
from nodeplug.core.undo import Undo
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nodeplug.cni.contract import AddRequest, AttachmentRequest, CheckRequest, DelRequest, GcRequest, StatusRequest
    from nodeplug.cni.plugins.tuning.config import Wanted
    from nodeplug.cni.plugins.tuning.sysctls import Key
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

_HINTS = {
    **HINTS,
    errno.EBUSY: "the driver changes that only while the interface is down; let the plugin that makes it set it",
    errno.EINVAL: "the driver or its lower device does not take that value",
}


class Tuning(Plugin):
    name = "tuning"
    config = TuningConf
    args = ("MAC", "IP", "GATEWAY")  # the last two are for address managers of the same chain

    def add(self, request: AddRequest) -> Result:
        """The result before it, with the MAC address and MTU that it set."""
        result = request.prev_result
        if result is None:
            raise ConfigInvalid("Required prevResult missing", hint="list tuning after the plugin that makes the link")
        aim, settings = _plan(request)
        if not settings and not aim.of_link:
            return result
        with _inside(request.netns) as pod, Undo() as undo:
            # The settings first: arp_notify among them announces the new MAC address.
            _set_namespace(request.netns, settings, undo)
            _set_link(pod, request, aim, undo)
            undo.commit()
        return _told(result, request.ifname, aim)

    def delete(self, request: DelRequest) -> None:
        """Restore what the backup knows; with the namespace, the interface or the backup gone there is nothing to."""
        kept = Backups(request.config.data_dir)
        backup = kept.find(request.attachment) if request.netns is not None else None
        if request.netns is not None and backup is not None:
            _restore(request, request.netns, backup)
        kept.drop(request.attachment)

    def check(self, request: CheckRequest) -> None:
        aim, settings = _plan(request)
        found: list[str] = []
        if settings:
            with doing(f"cannot read the settings of {request.netns.path}"), namespaces.entered(request.netns):
                found += sysctls.different(settings)
        if aim.of_link:
            with _inside(request.netns) as pod:
                now = backups.present(_link(pod, request.ifname), aim.of_link)
            found += [
                f"{name} of {request.ifname} is {_shown(now[name])}, not {_shown(value)}"
                for name, value in aim.of_link.items()
                if now[name] != value
            ]
        if found:
            raise Refused(
                f"{request.attachment} is not as tuning left it: {'; '.join(found)}",
                hint="a later plugin of the chain, or something in the pod, changed it",
            )

    def gc(self, request: GcRequest) -> None:
        Backups(request.config.data_dir).collect(request.network, request.valid)

    def status(self, request: StatusRequest) -> None:
        aim = wanted(request.config, {})
        sysctls.planned(aim.sysctl, "IFNAME", request.raw)
        sysctls.check_allowed(aim.sysctl)


def _plan(request: AttachmentRequest) -> tuple[Wanted, dict[Key, str]]:
    aim = wanted(request.config, request.args)
    settings = sysctls.planned(aim.sysctl, request.ifname, request.raw)
    sysctls.check_allowed(aim.sysctl)
    return aim, settings


def _inside(netns: Netns) -> Netlink:
    with doing(f"cannot enter {netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=netns)


def _link(pod: Netlink, ifname: str) -> Link:
    with doing(f"cannot look for {ifname}"):
        link = links.find(pod, ifname)
    if link is None:
        raise NotFound(
            f"there is no interface {ifname} in the pod's namespace",
            hint="list tuning after the plugin that makes the interface",
        )
    return link


def _set_link(pod: Netlink, request: AddRequest, aim: Wanted, undo: Undo) -> None:
    if not aim.of_link:
        return
    link = _link(pod, request.ifname)
    before = backups.present(link, aim.of_link)
    kept = Backups(request.config.data_dir)
    first = kept.find(request.attachment) is None
    kept.keep(request.attachment, Backup(values=before, link=backups.place(request.netns, link)))
    if first:
        undo.push(lambda: kept.drop(request.attachment))
    for name, value in aim.of_link.items():
        if before[name] == value:
            continue
        with doing(f"cannot set {name} of {request.ifname} to {_shown(value)}", hints=_HINTS):
            pod.request(links.set(link.index, **{name: value}))
        undo.push(_setting(pod, link.index, name, before[name]))


def _setting(pod: Netlink, index: int, name: str, value: Any) -> Callable[[], object]:
    return lambda: pod.request(links.set(index, **{name: value}))


def _set_namespace(netns: Netns, settings: dict[Key, str], undo: Undo) -> None:
    if not settings:
        return
    with namespaces.entered(netns):
        before = sysctls.apply(settings)

    def revert() -> None:
        with namespaces.entered(netns):
            sysctls.revert(before)

    undo.push(revert)


def _told(result: Result, ifname: str, aim: Wanted) -> Result:
    """The result with what is new of the pod's interface."""
    if aim.mac is None and aim.mtu is None:
        return result
    return result.replace(interfaces=tuple([_renewed(found, ifname, aim) for found in result.interfaces]))


def _renewed(found: Interface, ifname: str, aim: Wanted) -> Interface:
    if found.name != ifname or not found.sandbox:
        return found
    mac = found.mac if aim.mac is None else aim.mac.hex(":")
    # Plugins of before specification 1.1 tell no MTU, and then this one does not either.
    mtu = found.mtu if aim.mtu is None or not found.mtu else aim.mtu
    return found.replace(mac=mac, mtu=mtu)


def _restore(request: DelRequest, netns: Netns, backup: Backup) -> None:
    with _inside(netns) as pod:
        with doing(f"cannot look for {request.ifname}"):
            link = links.find(pod, request.ifname)
        if link is None or backup.link not in ((), backups.place(netns, link)):
            return
        now = backups.present(link, OF_LINK)
        lost = {name: value for name, value in backup.values.items() if now[name] != value}
        answers = pod.attempt(*[links.set(link.index, **{name: value}) for name, value in lost.items()])
    for (name, value), answer in zip(lost.items(), answers, strict=True):
        if not isinstance(answer, NetlinkError) or answer.errno == errno.ENODEV:
            continue
        if answer.errno in (errno.EPERM, errno.EACCES):
            raise PermissionRefused(f"cannot restore {request.ifname}: {answer}", hint=HINTS[errno.EPERM]) from answer
        request.warn(f"{name} of {request.ifname} could not be set back to {_shown(value)}: {answer}")


def _shown(value: Any) -> str:
    return value.hex(":") if isinstance(value, bytes) else str(value)
