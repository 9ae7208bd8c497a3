"""The bridge itself: made when it is missing, never changed behind its owner's back, given the pods' gateways."""

from __future__ import annotations

import errno

from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.veth import new_mac
from nodeplug.core.errors import Refused, doing
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.rtnl import addresses, bridges, links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.cni.plugins.bridge.config import BridgeConf
    from nodeplug.kernel.netlink import Netlink
    from nodeplug.kernel.rtnl.links import Link

VLAN_HINT = "this kernel was built without CONFIG_BRIDGE_VLAN_FILTERING: leave vlan and vlanTrunk out"


def ensure(host: Netlink, found: Link | None, config: BridgeConf) -> Link:
    """The bridge, up; `found` is the link of its name, which is made when it is None.

    An existing bridge keeps its MTU and its VLAN filtering. Raises `Refused` when the name is that of another kind.
    """
    with doing(f"cannot make bridge {config.bridge}", hints={**HINTS, errno.EOPNOTSUPP: VLAN_HINT}):
        bridge = found or _make(host, config)
    if bridge.kind != bridges.KIND:
        raise Refused(
            f"{config.bridge!r} already exists but is not a bridge: it is of kind {bridge.kind or 'hardware'!r}",
            hint='give another name as "bridge", or take that link away',
        )
    promisc = config.promisc_mode and not bridge.flags & links.IFF_PROMISC
    if promisc or not bridge.up:
        with doing(f"cannot set bridge {config.bridge} up", hints=HINTS):
            host.request(links.set(bridge.index, up=True, promisc=True if promisc else None))
    return bridge


def _make(host: Netlink, config: BridgeConf) -> Link:
    """A new bridge, or that of another ADD which was quicker."""
    made, answer = host.attempt(
        bridges.add(
            config.bridge,
            up=True,
            mtu=config.mtu or None,
            mac=new_mac(),  # else it would have that of a port, another one as pods come and go
            vlan_filtering=True if config.uses_vlans else None,
        ),
        links.query(config.bridge),
    )
    if isinstance(made, NetlinkError) and made.errno != errno.EEXIST:
        raise made
    if isinstance(answer, NetlinkError):
        raise answer
    bridge = links.parse(answer or b"")
    if made is None:
        _own_routes(bridge.name)
    return bridge


def _own_routes(name: str) -> None:
    """No router advertisement is to change the routes of a network of ours."""
    sysctl.prefer("0", "net", "ipv6", "conf", name, "accept_ra")


def ensure_gateways(host: Netlink, link: Link, wanted: Sequence[Net], *, force: bool) -> None:
    """Give the bridge (or the link that speaks for it in a VLAN) the addresses `wanted`.

    Another IPv4 address than these, or an overlapping IPv6 one, is in the way: `Refused`, unless `force` replaces it.
    """
    with doing(f"cannot give {link.name} the gateway address", hints=HINTS):
        there = addresses.dump(host, index=link.index)
    have = {_net(address): address for address in there}
    missing = [net for net in dict.fromkeys(wanted) if net not in have]
    if not missing:
        return
    in_the_way = [net for net in have if net not in wanted and any(_collide(net, other) for other in missing)]
    if in_the_way and not force:
        raise Refused(
            f"{link.name!r} already has an IP address different from {missing[0]}: {in_the_way[0]}",
            hint='take that address away, or set "forceAddress" to have it replaced',
        )
    _own_routes(link.name)
    with doing(f"cannot give {link.name} the gateway address", hints=HINTS):
        if any(net.family == 6 for net in missing):
            sysctl.ensure("0", "net", "ipv6", "conf", link.name, "disable_ipv6")
        answers = host.attempt(
            *[addresses.delete(have[net]) for net in in_the_way],
            *[addresses.add(_address(link.index, net)) for net in missing],
        )
        for answer in answers:
            # Another ADD may have been quicker, in taking away as in adding.
            if isinstance(answer, NetlinkError) and answer.errno not in (errno.EEXIST, errno.EADDRNOTAVAIL):
                raise answer
        if None in answers[len(in_the_way) :]:
            _keep_mac(host, link.index)


def _keep_mac(host: Netlink, index: int) -> None:
    """Keep the MAC address that the link has now: a bridge somebody else made would follow those of its ports."""
    (answer,) = host.request(links.query(index))
    mac = links.parse(answer or b"").mac
    if any(mac):  # all zero without a port
        host.request(links.set(index, mac=mac))


def _net(address: addresses.Address) -> Net:
    return Net(ip=Ip(packed=address.ip), prefix=address.prefix)


def _collide(there: Net, wanted: Net) -> bool:
    return there.family == wanted.family and (there.family == 4 or there.overlaps(wanted))


def _address(index: int, net: Net) -> addresses.Address:
    v4 = net.family == 4
    return addresses.Address(
        index=index,
        ip=net.ip.packed,
        prefix=net.prefix,
        # A bridge whose ports all are down has no carrier, without which the address would stay tentative.
        flags=0 if v4 else addresses.NODAD,
        broadcast=net.last.to_bytes(4, "big") if v4 and net.prefix < 31 else None,
    )
