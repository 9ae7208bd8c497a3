"""The pod's end of an attachment: asking for its addresses; its settings, addresses and routes, as a result says.

Shared by the plugins that put a link into a pod. All goes through one socket of the pod's namespace, in one send; the
thread is inside only for the settings under /proc/sys.
"""

from __future__ import annotations

from nodeplug.cni.contract import Result
from nodeplug.cni.plugins.hostlink import HINTS
from nodeplug.core.errors import ConfigInvalid, Refused, Unavailable, doing
from nodeplug.core.inet import Ip
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel import sysctl
from nodeplug.kernel.rtnl import addresses, links, routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nodeplug.cni.contract import AddRequest, IpConfig, Request, Route
    from nodeplug.core.inet import Net
    from nodeplug.core.undo import Undo
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.netns import Netns

_SETTLE = 5.0
"""Seconds for duplicate address detection, which takes one or two."""

_LEAST_MTU_OF_IPV6 = 1280


def require_manager(request: Request) -> None:
    """Raise `ConfigInvalid` where the configuration names no address manager, for a plugin that needs one."""
    if request.ipam is None:
        raise ConfigInvalid(
            "the network configuration is not valid",
            problems=[("$.ipam.type", "required, but missing: this interface is of no use without addresses")],
        )


def ask(request: AddRequest, undo: Undo, disconnect: Callable[[], object]) -> Result:
    """What the address manager says; nothing for a network without one. `disconnect` takes the pod's link away.

    `undo` has the address released, once the link is gone: nobody gets one that is still in use.
    """
    if request.ipam is None:
        return Result()
    # Also when the address manager fails: one that was killed half-way has not undone what it did (CNI specification,
    # section 4).
    undo.push(request.ipam.delete)
    undo.push(disconnect)
    undo.push(request.ipam.leave)
    given = request.ipam.add()
    if not given.ips:
        raise Refused("IPAM plugin returned missing IP config", hint="the address manager answered without an address")
    return given


def check_mtu(net: Net, mtu: int) -> None:
    """Raise `ConfigInvalid` for an address that a link with that MTU (0: the kernel's choice) cannot have."""
    if net.family == 6 and 0 < mtu < _LEAST_MTU_OF_IPV6:
        raise ConfigInvalid(
            f"IPv6 needs an MTU of {_LEAST_MTU_OF_IPV6} or more, and address {net} is to have {mtu}",
            hint='mend "mtu", or give no IPv6 addresses',
        )


def configure(
    pod: Netlink,
    netns: Netns,
    index: int,
    ifname: str,
    result: Result,
    *,
    detect_duplicates: bool,
    also: Sequence[Message] = (),
) -> list[bytes | None]:
    """Give the pod's link `index` the addresses and routes of `result`, and set it up.

    Returns the answers to `also`, which is sent with it. Addresses without an interface are passed over; one of another
    interface than `ifname` is `ConfigInvalid`. Without `detect_duplicates` IPv6 addresses can be used at once; with it
    they are waited for, and `Refused` is raised for one that somebody else has.
    """
    ours = _addresses_of(ifname, result)
    families = {ip.address.family for ip in ours}
    with doing(f"cannot configure {ifname} in {netns.path}", hints=HINTS):
        prepare(netns, ifname, families, detect_duplicates=detect_duplicates)
        messages = [addresses.add(_address(index, ip, nodad=not detect_duplicates)) for ip in ours]
        messages += set_up(index, families)
        messages += route_messages(index, result.routes, ours)
        answers = pod.request(*messages, *also)
    if detect_duplicates and 6 in families:
        _settle(pod, index, ifname)
    return answers[len(messages) :]


def prepare(netns: Netns, ifname: str, families: set[int], *, detect_duplicates: bool) -> None:
    """The settings of the pod's link, and of lo, that IPv6 addresses need."""
    if 6 in families:
        with namespaces.entered(netns):
            _prepare_v6(ifname, detect_duplicates)


def set_up(index: int, families: set[int]) -> list[Message]:
    """Set the pod's link up; its neighbours are told of its addresses then, and whenever its MAC address changes.

    In two messages: in one, arp_notify would come last, and the neighbours of a macvlan hear nothing.
    """
    notify = [links.set(index, arp_notify=True)] if 4 in families else []
    return [*notify, links.set(index, up=True)]


def _prepare_v6(ifname: str, detect_duplicates: bool) -> None:
    conf = ("net", "ipv6", "conf")
    try:
        for name in ("lo", ifname):
            sysctl.ensure("0", *conf, name, "disable_ipv6")
    except FileNotFoundError as error:
        raise Unavailable(
            f"{ifname} is to have an IPv6 address, and this kernel has no IPv6", hint="boot without ipv6.disable=1"
        ) from error
    # Its addresses would be lost, and its routes with them, when somebody sets the link down and up again.
    sysctl.prefer("1", *conf, ifname, "keep_addr_on_down")
    sysctl.prefer("1", *conf, ifname, "ndisc_notify")
    sysctl.prefer("1" if detect_duplicates else "0", *conf, ifname, "accept_dad")
    if detect_duplicates:
        # Hairpin and promiscuous bridges return a probe to its sender, who must know it for his own (RFC 7527).
        sysctl.prefer("1", *conf, ifname, "enhanced_dad")


def announce(pod: Netlink, index: int, mac: bytes) -> None:
    """Let the neighbours know the link's addresses: some may still have those of a pod that is gone.

    Setting the MAC address that it has makes the kernel send what arp_notify and ndisc_notify ask for. What it sent
    when the link came up was lost: the port was not forwarding yet.
    """
    pod.request(links.set(index, mac=mac))


def route_messages(index: int, wanted: Iterable[Route], ours: list[IpConfig]) -> list[Message]:
    """The routes by this link.

    One without a gateway goes by that of the first address of its family, unless its scope says that it is direct.
    Several to one destination become one with as many next hops.
    """
    gateways = {ip.address.family: ip.gateway for ip in reversed(ours) if ip.gateway is not None}
    ways: dict[Route, list[Ip | None]] = {}
    for route in wanted:
        direct = bool(route.scope)  # 0 is the universe
        gateway = route.gw if route.gw is not None or direct else gateways.get(route.dst.family)
        found = ways.setdefault(route.replace(dst=route.dst.network, gw=None), [])
        if gateway not in found:
            found.append(gateway)
    return [routes.add(_route(index, route, found)) for route, found in ways.items()]


def _route(index: int, route: Route, gateways: list[Ip | None]) -> routes.Route:
    hops = [routes.Nexthop(oif=index, gateway=None if ip is None else ip.packed) for ip in gateways]
    whole = routes.Route(
        dst=route.dst.ip.packed,
        prefix=route.dst.prefix,
        table=route.table or routes.TABLE_MAIN,
        priority=route.priority,
        scope=route.scope,
        mtu=route.mtu,
        advmss=route.advmss,
    )
    if len(hops) == 1:
        return whole.replace(oif=index, gateway=hops[0].gateway)
    return whole.replace(nexthops=tuple(hops))


def _addresses_of(ifname: str, result: Result) -> list[IpConfig]:
    ours = [ip for ip in result.ips if ip.interface is not None]
    for ip in ours:
        found = ip.interface or 0
        if not 0 <= found < len(result.interfaces) or result.interfaces[found].name != ifname:
            raise ConfigInvalid(
                f"address {ip.address} belongs to interface {found} of the result, which is not {ifname}",
                hint="the address manager gives addresses without an interface",
            )
    return ours


def _address(index: int, ip: IpConfig, *, nodad: bool) -> addresses.Address:
    net = ip.address
    v4 = net.family == 4
    return addresses.Address(
        index=index,
        ip=net.ip.packed,
        prefix=net.prefix,
        flags=addresses.NODAD if nodad and not v4 else 0,
        # The kernel makes none up, and a network of one or two addresses has none.
        broadcast=net.last.to_bytes(4, "big") if v4 and net.prefix < 31 else None,
    )


def _settle(pod: Netlink, index: int, name: str) -> None:
    """Wait until the kernel knows that nobody else has the link's IPv6 addresses."""
    from nodeplug.kernel.rtnl import watch

    with doing(f"duplicate address detection of {name}"):
        found = watch.wait_for_addresses(pod, index, timeout=_SETTLE)
    taken = [str(Ip(packed=address.ip)) for address in found if address.flags & addresses.DADFAILED]
    if taken:
        raise Refused(
            f"somebody else in the network has the address {', '.join(taken)}",
            hint="find out who; the address manager does not know of it",
        )
