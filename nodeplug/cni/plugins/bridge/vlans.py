"""bridge with VLANs: what the pod's port carries, and the link that holds the gateway of a VLAN.

Loaded only for a configuration with `vlan` or `vlanTrunk`.
"""

from __future__ import annotations

import errno

from nodeplug.cni.plugins.bridge.config import trunk_ids
from nodeplug.cni.plugins.bridge.device import VLAN_HINT
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import Refused, doing
from nodeplug.core.naming import identity
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import bridges, links, veths, vlans
from nodeplug.kernel.rtnl.vlans import Vlans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.rtnl.links import Link

_HINTS = {**HINTS, errno.EOPNOTSUPP: VLAN_HINT}
_NATIVE = 1


def warn_unless_filtering(bridge: Link, warn: Callable[[str], None]) -> None:
    """Tell of a bridge that was there before and ignores VLANs, which the reference leaves as it is."""
    settings = bridges.bridge_of(bridge)
    if settings is not None and not settings.vlan_filtering:
        warn(
            f"bridge {bridge.name} does not filter VLANs, so vlan and vlanTrunk keep nobody apart:"
            f" ip link set {bridge.name} type bridge vlan_filtering 1"
        )


def check_support(host: Netlink, bridge: Link) -> None:
    """Raise `Unavailable` where the kernel has no VLANs of bridge ports."""
    with doing(f"cannot read the VLANs of bridge {bridge.name}", hints=_HINTS):
        vlans.dump(host, bridge.index)


def wanted(config: BridgeConf) -> list[Vlans]:
    """What the pod's port is to carry, besides the default VLAN where that is preserved.

    A trunk without a VLAN of its own has VLAN 1 untagged.
    """
    untagged = config.vlan or _NATIVE
    found = _runs([number for number in trunk_ids(config) if number != untagged])
    if config.vlan or trunk_ids(config):
        found.append(Vlans(first=untagged, last=untagged, pvid=True, untagged=True))
    return found


def set_port(host: Netlink, port: int, config: BridgeConf) -> None:
    """Give the port of that index the VLANs of the configuration, and only those unless the default is preserved."""
    aim = wanted(config)
    with doing(f"cannot set the VLANs of the pod's port on {config.bridge}", hints=_HINTS):
        before = [] if config.preserve_default_vlan or not aim else vlans.dump(host, port)
        messages: list[Message] = [vlans.delete(port, run.replace(pvid=False, untagged=False)) for run in before]
        messages += [vlans.add(port, run) for run in aim]
        if messages:
            host.request(*messages)


def check_port(host: Netlink, port: int, config: BridgeConf) -> None:
    """Raise `Refused` when the port lacks one of its VLANs, or carries one it should not."""
    with doing(f"cannot read the VLANs of the pod's port on {config.bridge}", hints=_HINTS):
        have = _each(vlans.dump(host, port))
    aim = _each(wanted(config))
    lacking = [number for number in aim if have.get(number) != aim[number]]
    extra = [number for number in have if number not in aim] if aim and not config.preserve_default_vlan else []
    if lacking or extra:
        raise Refused(
            f"the pod's port on {config.bridge} has not the VLANs of the configuration:"
            f" lacks {_listed(lacking)}, has besides {_listed(extra)}",
            hint="somebody changed them; `bridge vlan` shows them",
        )


def ensure_gateway_link(host: Netlink, bridge: Link, config: BridgeConf) -> Link:
    """The link `<bridge>.<vlan>`, up, whose other end is an untagged port of the VLAN.

    A link of that name that somebody else made is taken as it is.
    """
    name, port_name = f"{bridge.name}.{config.vlan}", identity("gateway", bridge.name, str(config.vlan))
    with doing(f"cannot make {name}, the gateway's link in VLAN {config.vlan}", hints=_HINTS):
        made, *_ = host.attempt(
            veths.add(port_name, name, up=True, mtu=bridge.mtu, master=bridge.index), links.set(name, up=True)
        )
        if isinstance(made, NetlinkError) and made.errno != errno.EEXIST:
            raise made
        link, port = links.find_each(host, name, port_name)
        if link is None:
            raise OSError(errno.ENODEV, f"{port_name} has lost its other end: delete it", name)
    if port is not None and port.master == bridge.index:
        # Also for one that was there: a call that was killed may have left it without.
        set_port(host, port.index, config.replace(vlan_trunk=None))
    return link


def _runs(numbers: list[int]) -> list[Vlans]:
    """Ascending numbers as runs."""
    found: list[Vlans] = []
    for number in numbers:
        if found and found[-1].last == number - 1:
            found[-1] = found[-1].replace(last=number)
        else:
            found.append(Vlans(first=number, last=number))
    return found


def _each(runs: list[Vlans]) -> dict[int, tuple[bool, bool]]:
    """(pvid, untagged) of each VLAN."""
    return {number: (run.pvid, run.untagged) for run in runs for number in range(run.first, run.last + 1)}


def _listed(numbers: list[int]) -> str:
    runs = [f"{run.first}" if run.first == run.last else f"{run.first}-{run.last}" for run in _runs(sorted(numbers))]
    return ", ".join(runs) or "none"
