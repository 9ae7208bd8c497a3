"""static: the addresses that the configuration, or the runtime, names. It keeps no state.

Reached through `dispatch.IPAM`. Nothing of the configuration is read before it is needed: a DEL succeeds whatever has
become of it.
"""

from __future__ import annotations

from nodeplug.cni.contract import Dns, IpConfig, NetConf, Plugin, Result, Route, ip_or_none
from nodeplug.core import document
from nodeplug.core.document import anything, array, nested, net, text
from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    from nodeplug.cni.contract import AddRequest, AttachmentRequest, CheckRequest, StatusRequest

    T = TypeVar("T")


class StaticConf(NetConf):
    ipam: Any = key(anything, default=None)
    runtime: Any = key(anything, default=None, name="runtimeConfig")
    arguments: Any = key(anything, default=None, name="args")


class Address(Record):
    """`address` stays text until it is known that nothing replaces it."""

    address: str = key(text, default="", help="with its prefix length: `10.1.0.5/24`")
    gateway: Ip | None = key(ip_or_none, default=None, help="of routes that name none")


class IpamKeys(Record):
    """The keys of `ipam`."""

    addresses: tuple[Address, ...] = key(array(nested(Address)), default=(), help="the addresses to give")
    routes: tuple[Route, ...] = key(array(nested(Route)), default=(), help="passed on in the result")
    dns: Dns = key(nested(Dns), default=Dns(), help="passed on in the result")


class Ips(Record):
    """`args.cni` and `runtimeConfig`: addresses that replace those of `ipam` and of CNI_ARGS."""

    ips: tuple[Net, ...] = key(array(net), default=(), help="the addresses to give, instead of all others")


class _Args(Record):
    cni: Ips = key(nested(Ips), default=Ips())


class _Document(Record):
    ipam: IpamKeys = key(nested(IpamKeys), help="the address manager's own section")
    runtime: Ips = key(nested(Ips), default=Ips(), name="runtimeConfig")
    arguments: _Args = key(nested(_Args), default=_Args(), name="args")


class Static(Plugin):
    name = "static"
    config = StaticConf
    args = ("IP", "GATEWAY")
    needs_netns = False

    def add(self, request: AddRequest) -> Result:
        ipam, ips = _read(request)
        return Result(ips=ips, routes=ipam.routes, dns=ipam.dns)

    def check(self, request: CheckRequest) -> None:
        """Each address is in the result, with its gateway; one that has none may have been given the host by bridge."""
        _, wanted = _read(request)
        given = {found.address.ip: found.gateway for found in request.prev_result.ips}
        for found in wanted:
            ip = found.address.ip
            if ip not in given:
                raise Refused(f"the result lacks {ip}, which is configured for interface {request.ifname}")
            if found.gateway is not None and given[ip] != found.gateway:
                raise Refused(
                    f"Failed to match addr {ip} on interface {request.ifname}: its gateway is {given[ip] or 'none'}",
                    hint=f"configured is {found.gateway}",
                )

    def status(self, request: StatusRequest) -> None:
        """The configuration can be read."""
        _decode(request.config)


def _read(request: AttachmentRequest) -> tuple[IpamKeys, tuple[IpConfig, ...]]:
    """`ipam` and the addresses to give. Raises `ConfigInvalid`."""
    found = _decode(request.config)
    ips = _of_variables(request.args)
    replacing = found.runtime.ips or found.arguments.cni.ips
    if replacing:
        ips = [IpConfig(address=address) for address in replacing]
    else:
        ips = [*_of_ipam(found.ipam.addresses), *ips]
    families = [given.address.family for given in ips]
    # A result of these versions has room for one address of each family.
    if request.version in ("0.1.0", "0.2.0") and len(set(families)) < len(families):
        raise ConfigInvalid(
            f"CNI version {request.version} does not support more than 1 address per family",
            hint="use cniVersion 0.3.0 or later",
        )
    return found.ipam, tuple(ips)


def _decode(conf: StaticConf) -> _Document:
    given = {"ipam": conf.ipam, "runtimeConfig": conf.runtime, "args": conf.arguments}
    try:
        return document.decode(_Document, given, unknown="ignore", fold_case=True)
    except ConfigInvalid as invalid:
        raise ConfigInvalid("the network configuration is not valid", problems=invalid.problems) from None


def _of_ipam(addresses: tuple[Address, ...]) -> list[IpConfig]:
    problems = []
    found = []
    for number, given in enumerate(addresses):
        try:
            found.append(IpConfig(address=Net.parse(given.address), gateway=given.gateway))
        except ValueError as error:
            problems.append((f"$.ipam.addresses[{number}].address", str(error)))
    if problems:
        raise ConfigInvalid("the network configuration is not valid", problems=problems)
    return found


def _of_variables(args: Mapping[str, str]) -> list[IpConfig]:
    """CNI_ARGS: IP adds addresses to those of `ipam`; GATEWAY gives each of these the gateway in its network."""
    addresses = [_part(Net.parse, "IP", part) for part in _parts(args, "IP")]
    gateways = [_part(Ip.parse, "GATEWAY", part) for part in _parts(args, "GATEWAY")]
    return [
        IpConfig(address=address, gateway=next((ip for ip in reversed(gateways) if address.holds(ip)), None))
        for address in addresses
    ]


def _parts(args: Mapping[str, str], name: str) -> list[str]:
    given = args.get(name, "")
    return [part.strip() for part in given.split(",")] if given else []


def _part(parse: Callable[[str], T], name: str, given: str) -> T:
    try:
        return parse(given)
    except ValueError as error:
        raise ConfigInvalid(f"CNI_ARGS: {name}: {error}") from None
