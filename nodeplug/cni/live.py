"""Which attachments still need which of our plugins: those with something on the host that only ours takes away.

What lies inside a pod's namespace (addresses, routes, a VRF) goes with it, and any plugin's DEL manages; leases of
host-local are shared with the reference's. So neither keeps a plugin where it is. Used when plugins are taken out.
"""

from __future__ import annotations

import os

from nodeplug.cni.filter.index import Index
from nodeplug.cni.filter.plan import MASQUERADE, PASSAGE, PORTS
from nodeplug.cni.ipam.dhcp import conf
from nodeplug.cni.ipam.dhcp.lease import Lease
from nodeplug.cni.ipam.dhcp.store import Leases
from nodeplug.cni.plugins import hostlink
from nodeplug.cni.plugins.bandwidth import plugin as bandwidth
from nodeplug.cni.plugins.bridge import spoofing
from nodeplug.cni.plugins.hostdevice import loans
from nodeplug.cni.plugins.tuning.backups import Backups
from nodeplug.cni.plugins.tuning.config import DATA_DIR
from nodeplug.core import files, paths
from nodeplug.core.errors import doing
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Attachment

_OF_PARTS = {MASQUERADE: ("bridge", "ptp"), PORTS: ("portmap",), PASSAGE: ("firewall",)}


def attachments(*, patience: float) -> dict[str, set[Attachment]]:
    """By the plugins' names, once every call that is under way has ended.

    Raises `TryAgain` when that takes longer than `patience` seconds, and other errors of the house.
    """
    _await_calls(patience)
    found: dict[str, set[Attachment]] = {}
    with doing("cannot look for the links of pods"), Netlink(NETLINK_ROUTE) as route:
        for link in links.dump(route, kind=hostlink.KIND):
            owner = hostlink.owner(link)
            if owner is not None:
                found.setdefault("bridge" if link.master else "ptp", set()).add(owner)
        for link in links.dump(route, kind=bandwidth.IFB):
            owner = bandwidth.owner(link)
            if owner is not None:
                found.setdefault("bandwidth", set()).add(owner)
    for holding in Index().holdings():
        owner = holding.owner.attachment
        plugins = _OF_PARTS[holding.share.part]
        # Where the link is gone, nobody can say which of them masquerades.
        for plugin in [name for name in plugins if owner in found.get(name, ())] or plugins:
            found.setdefault(plugin, set()).add(owner)
    found.setdefault("bridge", set()).update(spoofing.guarded())
    found.setdefault("tuning", set()).update(Backups(DATA_DIR).owners())
    found.setdefault("host-device", set()).update(loan.attachment for loan in loans.every())
    # Whose renewal is a chore of ours.
    leases = Leases(conf.settings().directory).all()
    found.setdefault("dhcp", set()).update(lease.attachment for lease in leases if isinstance(lease, Lease))
    return found


def _await_calls(patience: float) -> None:
    """One that began earlier may be about to make something that is not to be seen yet. Each holds a lock."""
    directory = f"{paths.LOCKS}/cni"
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        with files.range_lock(f"{directory}/{name}", None, timeout=patience):
            pass
