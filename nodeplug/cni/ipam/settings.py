"""What host-local is told: the keys of `ipam`, of `runtimeConfig` and of `args.cni`, and what they come to.

DEL and GC read only where the leases are: whatever else has become wrong, or is not sent, since ADD must not keep an
address from being freed. Used by `host_local`; no I/O.
"""

from __future__ import annotations

from nodeplug.cni.contract import NetConf, Route, ip_or_none, recalled
from nodeplug.cni.ipam.ranges import RangeConf, resolve
from nodeplug.core import document
from nodeplug.core.document import absolute_path, anything, array, boolean, expects, nested, net
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from nodeplug.cni.contract import Request
    from nodeplug.cni.ipam.ranges import RangeSet
    from nodeplug.core.document import Place

    R = TypeVar("R", bound=Record)

DATA_DIR = "/var/lib/cni/networks"


@expects("an absolute path")
def _data_dir(value: Any, at: Place) -> str:
    return DATA_DIR if value == "" else absolute_path(value, at)


@expects("an absolute path")
def _path_or_none(value: Any, at: Place) -> str:
    return "" if value == "" else absolute_path(value, at)


@expects("an IP address; a prefix length behind it is ignored")
def _address(value: Any, at: Place) -> Ip:
    return document.ip(value.partition("/")[0] if isinstance(value, str) else value, at)


class HostLocalConf(NetConf):
    """The parts that matter, unread: each verb reads those it needs."""

    ipam: Any = key(anything, default=None)
    runtime: Any = key(anything, default=None, name="runtimeConfig")
    arguments: Any = key(anything, default=None, name="args")


class StoreKeys(Record):
    """The keys of `ipam` that DEL and GC read."""

    data_dir: str = key(
        _data_dir, default=DATA_DIR, name="dataDir", help="leases are files in the directory `<network>` below it"
    )


class IpamKeys(StoreKeys):
    """All keys of `ipam`."""

    subnet: Net | None = key(net, default=None, help="one range set of one range, before those of `ranges`")
    range_start: Ip | None = key(ip_or_none, default=None, name="rangeStart", help="of `subnet`")
    range_end: Ip | None = key(ip_or_none, default=None, name="rangeEnd", help="of `subnet`")
    gateway: Ip | None = key(ip_or_none, default=None, help="of `subnet`")
    ranges: tuple[tuple[RangeConf, ...], ...] = key(
        array(array(nested(RangeConf))), default=(), help="range sets: one address is given from each"
    )
    routes: tuple[Route, ...] = key(array(nested(Route)), default=(), help="passed on in the result")
    resolv_conf: str = key(
        _path_or_none, default="", name="resolvConf", help="a resolv.conf(5) whose content is the result's `dns`"
    )
    status_on_exhaustion: bool = key(
        boolean, default=False, name="statusOnExhaustion", help="whether STATUS fails while a range set is used up"
    )


class RuntimeKeys(Record):
    """The keys of `runtimeConfig`, which a runtime sends by the capabilities `ipRanges` and `ips`."""

    ip_ranges: tuple[tuple[RangeConf, ...], ...] = key(
        array(array(nested(RangeConf))), default=(), name="ipRanges", help="range sets before all of `ipam`"
    )
    ips: tuple[Ip, ...] = key(array(_address), default=(), help="addresses to give, each from the range set it lies in")


class CniArgs(Record):
    ips: tuple[Ip, ...] = key(array(_address), default=(), help="as `runtimeConfig.ips`")


class Args(Record):
    cni: CniArgs = key(nested(CniArgs), default=CniArgs())


class _Document(Record):
    ipam: IpamKeys = key(nested(IpamKeys), help="the address manager's own section")
    runtime: RuntimeKeys = key(nested(RuntimeKeys), default=RuntimeKeys(), name="runtimeConfig")
    arguments: Args = key(nested(Args), default=Args(), name="args")


class _StoreDocument(Record):
    ipam: StoreKeys = key(nested(StoreKeys), default=StoreKeys())


class Settings(Record):
    """What an ADD needs."""

    data_dir: str
    sets: tuple[RangeSet, ...]
    requested: tuple[Ip, ...]
    routes: tuple[Route, ...]
    resolv_conf: str
    status_on_exhaustion: bool
    idle_keys: bool
    """Whether it has some that mean nothing, because they belong to one that is not set."""


def data_dir(request: Request) -> str:
    """Where the leases are. Raises `ConfigInvalid`."""
    return recalled(request.raw, StoreKeys, lambda: _decode(_StoreDocument, request).ipam.data_dir)


def settings(request: Request) -> Settings:
    """All that the request says; no range sets where it names none. Raises `ConfigInvalid` with every problem."""
    told = recalled(request.raw, Settings, lambda: _of_document(request))
    if told.idle_keys:
        request.warn("ipam.rangeStart, rangeEnd and gateway are ignored: they belong to ipam.subnet, which is not set")
    asked = _of_variable(request)
    return told.replace(requested=tuple(dict.fromkeys((*asked, *told.requested)))) if asked else told


def _of_document(request: Request) -> Settings:
    found = _decode(_Document, request)
    ipam = found.ipam
    given = [(f"$.runtimeConfig.ipRanges[{n}]", members) for n, members in enumerate(found.runtime.ip_ranges)]
    if ipam.subnet is not None:
        old = RangeConf(
            subnet=ipam.subnet, range_start=ipam.range_start, range_end=ipam.range_end, gateway=ipam.gateway
        )
        given.append(("$.ipam", (old,)))
    given += [(f"$.ipam.ranges[{n}]", members) for n, members in enumerate(ipam.ranges)]
    return Settings(
        data_dir=ipam.data_dir,
        sets=resolve([(path, _with_paths(path, members)) for path, members in given], request.version),
        requested=tuple(dict.fromkeys((*found.arguments.cni.ips, *found.runtime.ips))),
        routes=ipam.routes,
        resolv_conf=ipam.resolv_conf,
        status_on_exhaustion=ipam.status_on_exhaustion,
        idle_keys=ipam.subnet is None and bool(ipam.range_start or ipam.range_end or ipam.gateway),
    )


def _with_paths(path: str, members: tuple[RangeConf, ...]) -> list[tuple[str, RangeConf]]:
    """The range that `ipam` itself describes has no place in a list."""
    if path == "$.ipam":
        return [(path, members[0])]
    return [(f"{path}[{n}]", member) for n, member in enumerate(members)]


def _of_variable(request: Request) -> list[Ip]:
    """The address that CNI_ARGS asks for, on the requests that have the variable."""
    asked = getattr(request, "args", {}).get("IP", "")
    if not asked:
        return []
    try:
        return [Ip.parse(asked.partition("/")[0])]
    except ValueError as error:
        raise ConfigInvalid(f"CNI_ARGS: IP: {error}") from None


def _decode(cls: type[R], request: Request) -> R:
    conf = request.config
    given = {"ipam": conf.ipam, "runtimeConfig": conf.runtime, "args": conf.arguments}
    try:
        return document.decode(cls, given, unknown="ignore", fold_case=True)
    except ConfigInvalid as invalid:
        raise ConfigInvalid("the network configuration is not valid", problems=invalid.problems) from None
