"""vrf, called by the door. All it makes is in the pod's namespace and ends with it."""

from __future__ import annotations

import errno

from nodeplug.cni.contract import VERSIONS, NetConf, Plugin
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.keys import link_name
from nodeplug.cni.plugins.vrf import membership
from nodeplug.core import files, paths
from nodeplug.core.document import integer
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, doing
from nodeplug.core.record import key
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import addresses, links, vrfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, Result
    from nodeplug.core.files import RangeLock
    from nodeplug.core.inet import Ip
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

_HINTS = {**HINTS, errno.EOPNOTSUPP: "this kernel has no VRF (CONFIG_NET_VRF)"}


class VrfConf(NetConf):
    vrfname: str = key(link_name, help="the VRF, made when the pod has none of that name")
    table: int = key(
        integer(0, 0xFFFFFFFF), default=0, help="its routing table; 0 for the least that no other VRF of the pod has"
    )


class Vrf(Plugin):
    name = "vrf"
    config = VrfConf
    versions = VERSIONS[3:]

    def add(self, request: AddRequest) -> Result:
        """The result before it, unchanged."""
        result = request.prev_result
        if result is None:
            raise ConfigInvalid("missing prevResult from earlier plugin", hint="list vrf after the one for the link")
        config: VrfConf = request.config
        with _inside(request.netns) as pod, _alone(request.netns), Undo() as undo:
            link = _link(pod, request)
            with doing(f"cannot put {request.ifname} into VRF {config.vrfname}", hints=_HINTS):
                vrf, table = _ensure_vrf(pod, config, undo)
                if link.master != vrf.index:
                    _refuse_other_master(pod, link)
                    membership.join(pod, link, vrf, table, undo)
            undo.commit()
        return result

    def delete(self, request: DelRequest) -> None:
        """Take the interface out, and the VRF away with its last member. Whatever is gone already is success."""
        if request.netns is None:
            return
        config: VrfConf = request.config
        leaving = doing(f"cannot take {request.ifname} out of VRF {config.vrfname}", hints=_HINTS)
        with _inside(request.netns) as pod, _alone(request.netns), leaving:
            vrf, link = links.find(pod, config.vrfname), links.find(pod, request.ifname)
            if vrf is None or vrf.kind != vrfs.KIND:
                return
            if link is not None and link.master == vrf.index:
                pod.request(links.set(link.index, master=0))
            if not links.dump(pod, master=vrf.index):
                (answer,) = pod.attempt(links.delete(vrf.index))
                if isinstance(answer, NetlinkError) and answer.errno != errno.ENODEV:
                    raise answer

    def check(self, request: CheckRequest) -> None:
        config: VrfConf = request.config
        with _inside(request.netns) as pod, doing(f"cannot look at VRF {config.vrfname}", hints=_HINTS):
            vrf, link = links.find(pod, config.vrfname), links.find(pod, request.ifname)
            held = {address.ip for address in addresses.dump(pod, index=link.index)} if link is not None else set()
        if vrf is None or vrf.kind != vrfs.KIND:
            raise NotFound(f"VRF {config.vrfname} is gone from {request.netns.path}")
        table = vrfs.table_of(vrf)
        found = []
        if link is None or link.master != vrf.index:
            found.append(f"failed to find {request.ifname} associated to vrf {config.vrfname}")
        if config.table not in (0, table):
            found.append(f"it has table {table}, not {config.table}")
        if not vrf.up:
            found.append("it is down")
        lost = [str(ip) for ip in _addresses(request.prev_result, request.ifname) if ip.packed not in held]
        if lost and link is not None:
            found.append(f"{request.ifname} has lost {', '.join(lost)}")
        if found:
            raise Refused(
                f"VRF {config.vrfname} of {request.attachment} is not as vrf left it: {'; '.join(found)}",
                hint="something in the pod changed it",
            )


def _inside(netns: Netns) -> Netlink:
    with doing(f"cannot enter {netns.path}", hints=HINTS):
        return Netlink(NETLINK_ROUTE, netns=netns)


def _alone(netns: Netns) -> RangeLock:
    """No other call of this plugin is in the namespace: two would choose the same table, or one remove the VRF that
    the other joins.
    """
    device, inode = netns.identity()
    return files.range_lock(f"{paths.LOCKS}/vrf", f"{device}:{inode}")


def _link(pod: Netlink, request: AddRequest) -> Link:
    with doing(f"cannot look for {request.ifname}"):
        link = links.find(pod, request.ifname)
    if link is None:
        raise NotFound(
            f"could not get link by name {request.ifname} in {request.netns.path}",
            hint="list vrf after the plugin that makes the interface",
        )
    return link


def _refuse_other_master(pod: Netlink, link: Link) -> None:
    if link.master:
        master = links.find(pod, link.master)
        raise Refused(
            f"interface {link.name} has already a master set: {master.name if master else link.master}",
            hint="an interface has one master; chain it into one VRF or bridge only",
        )


def _ensure_vrf(pod: Netlink, config: VrfConf, undo: Undo) -> tuple[Link, int]:
    """The VRF of that name and its table."""
    found = links.find(pod, config.vrfname)
    if found is not None:
        table = vrfs.table_of(found)
        if table is None:
            raise Refused(
                f"link {config.vrfname} of the pod is not a VRF, but of kind {found.kind or 'none'!r}",
                hint="choose another vrfname",
            )
        if config.table not in (0, table):
            raise Refused(
                f"VRF {config.vrfname} already exist with different routing table {table}",
                hint=f"configure table {table}, or another vrfname",
            )
        if not found.up:
            pod.request(links.set(found.index, up=True))
        return found, table
    table = config.table or _free_table(pod)
    _, answer = pod.request(vrfs.add(config.vrfname, table), links.query(config.vrfname))
    vrf = links.parse(answer or b"")
    undo.push(lambda: pod.attempt(links.delete(vrf.index)))
    return vrf, table


def _free_table(pod: Netlink) -> int:
    used = {vrfs.table_of(link) for link in links.dump(pod, kind=vrfs.KIND)}
    table = 1
    while table in used:
        table += 1
    return table


def _addresses(result: Result, ifname: str) -> list[Ip]:
    """The addresses that the result gives to that interface."""
    return [
        ip.address.ip
        for ip in result.ips
        if ip.interface is not None
        and 0 <= ip.interface < len(result.interfaces)
        and result.interfaces[ip.interface].name == ifname
        and result.interfaces[ip.interface].sandbox
    ]
