"""The master that a pod's link sits on: a link of the host, or with `linkInContainer` one of the pod.

Shared by macvlan, ipvlan and vlan, with the keys they have in common.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from nodeplug.cni.contract import Dns, NetConf
from nodeplug.cni.plugins import podcommands
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.cni.plugins.keys import dns, mtu, optional_link_name
from nodeplug.cni.plugins.podlink import OPTIONS
from nodeplug.core.document import boolean, choice, expects
from nodeplug.core.errors import ConfigInvalid, NotFound, Refused, doing
from nodeplug.core.record import key
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink
from nodeplug.kernel.rtnl import links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nodeplug.cni.contract import AddRequest, DelRequest, StatusRequest
    from nodeplug.core.document import Parser, Place
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

# Addresses of documentation (RFC 5737, RFC 3849), which hardly a route leads to but the default one.
_ANYWHERE = (bytes((203, 0, 113, 1)), bytes.fromhex("20010db8") + bytes(12))


def mode(*names: str) -> Parser[str]:
    """One of some words, of which the empty string is the first."""
    one = choice(*names)

    @expects(one.expects)
    def read(value: Any, at: Place) -> str:
        return names[0] if value == "" else one(value, at)

    return read


class MasterConf(NetConf):
    """The keys of a link that sits on another one."""

    master: str = key(optional_link_name, default="", help="the link it sits on; that of the default route if unset")
    mtu: int = key(mtu, default=0, help="its MTU, at most that of its master; 0 for the same")
    link_in_container: bool = key(
        boolean, default=False, name="linkInContainer", help="the master is a link of the pod, not of the host"
    )
    dns: Dns | None = key(dns, default=None, help="takes the place of the address manager's; so does an empty list")


def make(
    request: AddRequest,
    pod: Netlink,
    kind: str,
    master: str,
    describe: Callable[[Link, Netns | None], Message],
    *,
    taken: str = "",
) -> None:
    """Make the link that `describe(master, netns)` describes, in the namespace where the master is.

    `netns` is where it is to appear, None for that very namespace. `master` is a name, or empty for the link of the
    default route. `taken` says what to do where the master has such a link already.
    """
    config: MasterConf = request.config
    with Netlink(NETLINK_ROUTE) as host:
        route, netns = (pod, None) if config.link_in_container else (host, request.netns)
        found = find(route, master, config)
        with doing(
            f"cannot make {kind} {request.ifname} on {found.name}",
            hints={
                **HINTS,
                errno.EOPNOTSUPP: f"this kernel has no {kind} links ({OPTIONS[kind]})",
                errno.EEXIST: taken,
                errno.EBUSY: f"{found.name} carries links that exclude this one, or is a bridge's port",
            },
        ):
            route.request(describe(found, netns))


def find(route: Netlink, name: str, config: MasterConf) -> Link:
    """The master, seen from `route`. Raises `NotFound`, and `ConfigInvalid` for an MTU that is larger than its own."""
    where = "the pod" if config.link_in_container else "the host"
    with doing(f"cannot look for the master on {where}", hints=HINTS):
        link = _look(route, name)
    if link is None and name:
        raise NotFound(f"failed to lookup master {name!r}: {where} has no such link", hint='mend "master"')
    if link is None:
        raise NotFound(
            f"no default route interface found: {where} has no default route by a link", hint='name one as "master"'
        )
    if config.mtu > link.mtu:
        raise ConfigInvalid(
            "the network configuration is not valid",
            problems=[("$.mtu", f"invalid MTU {config.mtu}, must be [0, master MTU({link.mtu})] of {link.name}")],
        )
    return link


def _look(route: Netlink, name: str) -> Link | None:
    if name:
        return links.find(route, name)
    index = _default(route)
    return links.find(route, index) if index else None


def _default(route: Netlink) -> int:
    """The index of the link of the default route, IPv4's before IPv6's; 0 for none."""
    for family, address in zip((AF_INET, AF_INET6), _ANYWHERE, strict=True):
        found = routes.match(route, address)
        # Where somebody routes that address by itself, or not at all, the table has to be looked through.
        ways = [found] if found is not None and found.prefix == 0 else routes.dump(route, family)
        for way in sorted(ways, key=lambda way: way.priority):
            index = way.oif or next((hop.oif for hop in way.nexthops if hop.oif), 0)
            if way.prefix == 0 and way.type == routes.UNICAST and index:
                return index
    return 0


def check(route: Netlink, name: str, config: MasterConf, link: Link) -> None:
    """Raise `Refused` when the pod's link sits on another master than the configured one."""
    from nodeplug.cni.plugins.checking import MEND

    master = find(route, name, config)
    if not _sits_on(link, master):
        raise Refused(f"{link.name} does not sit on {master.name}", hint=MEND)


def _sits_on(link: Link, master: Link) -> bool:
    # A link on a macvlan or an ipvlan sits on what that one sits on, says the kernel.
    return bool(link.parent) and link.parent in (master.index, master.parent)


def made_on(request: DelRequest, name: str, link: Link) -> bool:
    """Whether the pod's link sits on the configured master, for a DEL that has nothing else to know it by."""
    config: MasterConf = request.config
    netns = request.netns if config.link_in_container else None
    try:
        with Netlink(NETLINK_ROUTE, netns=netns) as route:
            master = _look(route, name)
    except OSError:
        return False
    return master is not None and _sits_on(link, master)


def status(request: StatusRequest, kind: str, name: str) -> None:
    """The errors of `podcommands.status`, and `NotFound` where the host has no such master."""
    config: MasterConf = request.config
    podcommands.status(request, kind)
    if not config.link_in_container:
        with Netlink(NETLINK_ROUTE) as host:
            find(host, name, config)
