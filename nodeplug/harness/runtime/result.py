"""CNI results of every version, decoded to one shape and written in any of them.

The shape is that of the newest version. Runtimes decode what a plugin printed and hand the next one a fresh encoding,
so that keys outside the specification do not travel along a chain; this does the same (contract: section "result
JSON by version").
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import ConfigInvalid, VersionUnsupported
from nodeplug.harness.runtime.documents import Fields

if TYPE_CHECKING:
    from collections.abc import Callable

_OLD = ("0.1.0", "0.2.0")
_MIDDLE = ("0.3.0", "0.3.1", "0.4.0")
_NEW = ("1.0.0", "1.1.0")
VERSIONS = (*_OLD, *_MIDDLE, *_NEW)
"""Every version of the specification, oldest first."""


@dataclass(frozen=True)
class Interface:
    """A link the chain made; `sandbox` is the path of its network namespace, empty for the host's."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True)
class Address:
    """An address with its prefix length; `interface` is an index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def family(self) -> str:
        """ "4" or "6"."""
        return "6" if ":" in self.address else "4"

    @property
    def ip(self) -> str:
        """The address without its prefix length."""
        return self.address.partition("/")[0]


@dataclass(frozen=True)
class Route:
    """A route; numbers that are 0 and `table` and `scope` that are None were not given."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True)
class Dns:
    """What a resolver is to be told."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The outcome of an ADD. `cni_version` is the version it was written in."""

    cni_version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()

    def addresses(self, ifname: str) -> tuple[str, ...]:
        """The addresses of the pod's interface, without prefix lengths; of all interfaces where none is told."""
        inside = {n for n, link in enumerate(self.interfaces) if link.name == ifname and link.sandbox}
        return tuple(ip.ip for ip in self.ips if ip.interface is None or ip.interface in inside)


def decode(document: dict[str, Any], default_version: str = "0.1.0") -> Result:
    """The result in a document; one without a version is in `default_version`, the configuration's.

    Raises `VersionUnsupported` for a version that does not exist, `ConfigInvalid` for wrong types and addresses that
    are none.
    """
    fields = Fields(document, "$")
    version = fields.text("cniVersion") or default_version or "0.1.0"
    _known(version)
    if version in _OLD:
        ips, routes = _decode_old(fields)
        return Result(version, ips=ips, routes=routes, dns=_dns(fields))
    return Result(
        version,
        interfaces=tuple(_interface(entry) for entry in fields.objects("interfaces")),
        ips=tuple(_address(entry, "address") for entry in fields.objects("ips")),
        routes=tuple(_route(entry) for entry in fields.objects("routes")),
        dns=_dns(fields),
    )


def _known(version: str) -> None:
    if version not in VERSIONS:
        raise VersionUnsupported(f"no results of version {version!r} are known; these are: {', '.join(VERSIONS)}")


def _decode_old(fields: Fields) -> tuple[tuple[Address, ...], tuple[Route, ...]]:
    families = [found for found in (fields.object("ip4"), fields.object("ip6")) if found is not None]
    ips = tuple(_address(family, "ip") for family in families)
    return ips, tuple(_route(entry) for family in families for entry in family.objects("routes"))


def _interface(fields: Fields) -> Interface:
    return Interface(
        name=fields.text("name"),
        mac=fields.text("mac"),
        sandbox=fields.text("sandbox"),
        mtu=fields.number("mtu") or 0,
        socket_path=fields.text("socketPath"),
        pci_id=fields.text("pciID"),
    )


def _address(fields: Fields, key: str) -> Address:
    return Address(
        address=_checked(fields, key, lambda text: str(ipaddress.ip_interface(text))),
        gateway=_checked(fields, "gateway", lambda text: str(ipaddress.ip_address(text))),
        interface=fields.number("interface"),
    )


def _route(fields: Fields) -> Route:
    return Route(
        dst=_checked(fields, "dst", lambda text: str(ipaddress.ip_interface(text))),
        gw=_checked(fields, "gw", lambda text: str(ipaddress.ip_address(text))),
        mtu=fields.number("mtu") or 0,
        advmss=fields.number("advmss") or 0,
        priority=fields.number("priority") or 0,
        table=fields.number("table"),
        scope=fields.number("scope"),
    )


def _checked(fields: Fields, key: str, canonical: Callable[[str], str]) -> str:
    text = fields.text(key)
    if not text and key in ("gateway", "gw"):
        return ""
    if "/" not in text and key not in ("gateway", "gw"):
        raise ConfigInvalid("not an address", problems=[(f"{fields.path}.{key}", f"{text!r} has no prefix length")])
    try:
        return canonical(text)
    except ValueError as error:
        raise ConfigInvalid("not an address", problems=[(f"{fields.path}.{key}", str(error))]) from None


def _dns(fields: Fields) -> Dns:
    found = fields.object("dns")
    if found is None:
        return Dns()
    return Dns(found.texts("nameservers"), found.text("domain"), found.texts("search"), found.texts("options"))


def encode(result: Result, version: str = "") -> dict[str, Any]:
    """The document of a result in `version`, by default the one it came in.

    Fields that the version does not have are left out. Raises `VersionUnsupported` for an unknown version, and
    `ConfigInvalid` for a newer result without addresses in 0.1.0 and 0.2.0, which cannot say that.
    """
    version = version or result.cni_version
    _known(version)
    if version in _OLD:
        return _encode_old(result, version)
    middle = version in _MIDDLE
    document: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        document["interfaces"] = [_write_interface(link, middle=middle) for link in result.interfaces]
    if result.ips:
        document["ips"] = [_write_address(ip, middle=middle) for ip in result.ips]
    if result.routes:
        document["routes"] = [_write_route(route) for route in result.routes]
    if middle or result.dns != Dns():
        document["dns"] = _write_dns(result.dns)
    return document


def _encode_old(result: Result, version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"cniVersion": version}
    for key, family in (("ip4", "4"), ("ip6", "6")):
        first = next((ip for ip in result.ips if ip.family == family), None)
        if first is None:
            continue
        document[key] = _given(ip=first.address, gateway=first.gateway)
        routes = [
            _given(dst=route.dst, gw=route.gw) for route in result.routes if (":" in route.dst) == (family == "6")
        ]
        if routes:
            document[key]["routes"] = routes
    if len(document) == 1 and result.cni_version not in _OLD:
        raise ConfigInvalid(f"a result without addresses cannot be written in version {version}")
    document["dns"] = _write_dns(result.dns)
    return document


def _given(**values: object) -> dict[str, Any]:
    """The values that are not empty."""
    return {key: value for key, value in values.items() if value}


def _write_interface(link: Interface, *, middle: bool) -> dict[str, Any]:
    document = {"name": link.name, **_given(mac=link.mac, sandbox=link.sandbox)}
    return document if middle else document | _given(mtu=link.mtu, socketPath=link.socket_path, pciID=link.pci_id)


def _write_address(ip: Address, *, middle: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"version": ip.family} if middle else {}
    if ip.interface is not None:
        document["interface"] = ip.interface
    return document | _given(address=ip.address, gateway=ip.gateway)


def _write_route(route: Route) -> dict[str, Any]:
    document = _given(dst=route.dst, gw=route.gw, mtu=route.mtu, advmss=route.advmss, priority=route.priority)
    pointers = {"table": route.table, "scope": route.scope}  # 0 is a value of these
    return document | {key: value for key, value in pointers.items() if value is not None}


def _write_dns(dns: Dns) -> dict[str, Any]:
    lists = {"nameservers": dns.nameservers, "search": dns.search, "options": dns.options}
    return _given(domain=dns.domain, **{key: list(values) for key, values in lists.items()})
