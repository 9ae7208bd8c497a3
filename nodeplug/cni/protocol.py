"""CNI's wire, both ways: variables and JSON into a request's parts, results and errors into JSON.

The only module that knows how each specification version looks. Order and wording of the checks follow the reference
library's skel package where callers can see them. No I/O.
"""

from __future__ import annotations

from nodeplug.cni.contract import (
    VERSIONS,
    Attachment,
    ContainerUnknown,
    DelegateFailed,
    Dns,
    EnvironmentInvalid,
    FieldUnsupported,
    IpConfig,
    NetConf,
    NetnsInvalid,
    Result,
    Route,
    recalled,
)
from nodeplug.core import document, errors, jsontext
from nodeplug.core.document import anything, array, nested, text
from nodeplug.core.errors import ConfigInvalid, Malformed, VersionUnsupported
from nodeplug.core.naming import link_name_fault
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeVar

    from nodeplug.core.call import Call
    from nodeplug.core.inet import Net

    C = TypeVar("C", bound=NetConf)


class Op(Record):
    """What a command asks of its variables and of the configuration's version."""

    needs: tuple[str, ...] = ()
    since: str = "0.1.0"


_PER_CONTAINER = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")
OPS = {
    "ADD": Op(needs=_PER_CONTAINER),
    "DEL": Op(needs=("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH")),
    "CHECK": Op(needs=_PER_CONTAINER, since="0.4.0"),
    "GC": Op(needs=("CNI_PATH",), since="1.1.0"),
    "STATUS": Op(needs=("CNI_PATH",), since="1.1.0"),
    "VERSION": Op(),
}

# What each error of the house is on this wire; the specification's codes stop at 99 for well-known ones.
CODES: dict[type[BaseException], int] = {
    VersionUnsupported: 1,
    FieldUnsupported: 2,
    ContainerUnknown: 3,
    EnvironmentInvalid: 4,
    errors.Unavailable: 5,
    errors.PermissionRefused: 5,
    errors.NotFound: 5,
    Malformed: 6,
    ConfigInvalid: 7,
    NetnsInvalid: 8,
    errors.TryAgain: 11,
    errors.TimedOut: 11,
    errors.Refused: 100,
    errors.Internal: 999,
}
_STATUS_CODES = {**CODES, errors.Unavailable: 50, errors.PermissionRefused: 50, errors.NotFound: 50}


def environment(call: Call) -> str:
    """The command, when every variable it needs is there and well formed.

    An unknown command is returned as it is: bad JSON is reported before it (`unknown_command` words the refusal).
    Raises `EnvironmentInvalid`.
    """
    command = call.env.get("CNI_COMMAND", "")
    op = OPS.get(command)
    missing = []
    for name in op.needs if op is not None else ():
        value = call.env.get(name, "")
        if not value:
            missing.append(name)
        elif name == "CNI_CONTAINERID" and not is_identifier(value):
            raise EnvironmentInvalid(
                "invalid characters in CNI_CONTAINERID",
                hint=f"{value!r} must start with a letter or digit and go on with those, '_', '.' or '-'",
            )
        elif name == "CNI_IFNAME":
            fault = link_name_fault(value)
            if fault:
                raise EnvironmentInvalid(f"invalid CNI_IFNAME: {fault}", hint=repr(value))
    if missing:
        raise EnvironmentInvalid(f"required env variables [{','.join(missing)}] missing")
    return command


def unknown_command(command: str) -> EnvironmentInvalid:
    return EnvironmentInvalid(f"unknown CNI_COMMAND: {command}", hint=f"known are {', '.join(OPS)}")


def is_identifier(value: str) -> bool:
    """What a container id and a network name look like."""
    return bool(value) and value.isascii() and value[0].isalnum() and all(c.isalnum() or c in "_.-" for c in value)


class Preamble(NetConf):
    """What is read of every configuration before the plugin's own keys."""

    prev_result: dict[str, Any] | None = key(document.table(anything), default=None, name="prevResult")
    ipam: dict[str, Any] | None = key(document.table(anything), default=None)
    valid: Any = key(anything, default=None, name="cni.dev/valid-attachments")
    valid_misspelt: Any = key(anything, default=None, name="cni.dev/attachments")

    @property
    def ipam_type(self) -> str:
        for name, value in (self.ipam or {}).items():
            if name.lower() == "type" and isinstance(value, str):
                return value
        return ""


class _Valid(Record):
    container: str = key(text, name="containerID")
    ifname: str = key(text)


def configuration(raw: bytes) -> tuple[dict[str, Any], Preamble]:
    """The document on stdin and what every command reads of it. Raises `Malformed` or `ConfigInvalid`."""
    return recalled(raw, "document", lambda: _configuration(raw))


def _configuration(raw: bytes) -> tuple[dict[str, Any], Preamble]:
    found = jsontext.loads(raw)
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise Malformed("the network configuration is not a JSON object")
    preamble = document.decode(Preamble, found, unknown="ignore", fold_case=True)
    if not preamble.network:
        raise ConfigInvalid("missing network name", hint='the configuration needs "name"')
    if not is_identifier(preamble.network):
        raise ConfigInvalid(
            "invalid characters found in network name",
            hint=f"{preamble.network!r} must start with a letter or digit and go on with those, '_', '.' or '-'",
        )
    if not preamble.version:
        preamble = preamble.replace(version="0.1.0")
    return found, preamble


def gate(command: str, version: str, supported: Sequence[str]) -> None:
    """Raise `VersionUnsupported` unless the plugin speaks `version` and the command exists there."""
    if version not in supported:
        raise VersionUnsupported(
            "incompatible CNI versions", hint=f'config is "{version}", plugin supports {_listed(supported)}'
        )
    if VERSIONS.index(version) < VERSIONS.index(OPS[command].since):
        raise VersionUnsupported(
            f"config version does not allow {command}",
            hint=f'config is "{version}", {command} came with {OPS[command].since}',
        )


def _listed(versions: Sequence[str]) -> str:
    return f"[{' '.join(versions)}]"


def plugin_configuration(cls: type[C], data: dict[str, Any], raw: bytes) -> C:
    """The keys a plugin knows of the document that `raw` is the bytes of. Raises `ConfigInvalid` with every problem."""
    return recalled(raw, cls, lambda: _plugin_configuration(cls, data))  # type: ignore[arg-type]  # a class is hashable


def _plugin_configuration(cls: type[C], data: dict[str, Any]) -> C:
    try:
        return document.decode(cls, data, unknown="ignore", fold_case=True)
    except ConfigInvalid as invalid:
        raise ConfigInvalid("the network configuration is not valid", problems=invalid.problems) from None


def valid_attachments(preamble: Preamble) -> frozenset[Attachment] | None:
    """The attachments a GC must keep; None when the request carries no list, which allows nothing to be removed."""
    given = preamble.valid if preamble.valid is not None else preamble.valid_misspelt
    if given is None:
        return None
    problems: list[tuple[str, str]] = []
    at = document.Place('$."cni.dev/valid-attachments"', unknown="ignore", fold_case=True, problems=problems)
    try:
        found = array(nested(_Valid))(given, at)
    except document.Wrong as wrong:
        at.wrong(str(wrong))
    if problems:
        raise ConfigInvalid("the list of valid attachments cannot be read, so nothing was removed", problems=problems)
    return frozenset(Attachment(network=preamble.network, container=v.container, ifname=v.ifname) for v in found)


def arguments(given: str, known: Sequence[str]) -> dict[str, str]:
    """CNI_ARGS as a dictionary.

    A plugin that takes none (`known` empty) ignores what is malformed; one that takes some refuses unknown keys unless
    IgnoreUnknown is 1 or true, as the reference library does. Raises `EnvironmentInvalid`.
    """
    found: dict[str, str] = {}
    for pair in given.split(";") if given else ():
        name, equals, value = pair.partition("=")
        if not equals or "=" in value:
            if known:
                raise EnvironmentInvalid(f"CNI_ARGS: invalid pair {pair!r}", hint="pairs are KEY=VALUE, separated by ;")
            continue
        found[name] = value
    if known:
        lenient = found.get("IgnoreUnknown", "")
        if lenient.lower() not in ("", "0", "1", "true", "false"):
            raise EnvironmentInvalid(f"CNI_ARGS: IgnoreUnknown is {lenient!r}", hint="use 1 or 0")
        unknown = [name for name in found if name not in known and name != "IgnoreUnknown"]
        if unknown and lenient.lower() not in ("1", "true"):
            raise EnvironmentInvalid(
                f"CNI_ARGS: unknown keys {', '.join(unknown)}",
                hint=f"known are {', '.join(known)}; or set IgnoreUnknown=1",
            )
    return found


class _OldIp(Record):
    """ip4 and ip6 of versions 0.1.0 and 0.2.0."""

    ip: Net = key(document.net)
    gateway: Any = key(anything, default="")
    routes: tuple[Route, ...] = key(array(nested(Route)), default=())


class _OldResult(Record):
    ip4: _OldIp | None = key(nested(_OldIp), default=None)
    ip6: _OldIp | None = key(nested(_OldIp), default=None)
    dns: Dns = key(nested(Dns), default=Dns())


def read_result(data: Any, version: str, path: str) -> Result:
    """A result of `version`, which the result's own cniVersion overrides. `path` names it in problems.

    Raises `ConfigInvalid`; `VersionUnsupported` for a result of a version unknown here.
    """
    if not isinstance(data, dict):
        raise ConfigInvalid("a result is an object", problems=((path, "expected an object with keys"),))
    own = next((value for name, value in data.items() if name.lower() == "cniversion" and value), version)
    if own not in VERSIONS:
        raise VersionUnsupported(f"{path} has cniVersion {own!r}", hint=f"supported are {_listed(VERSIONS)}")
    if own in ("0.1.0", "0.2.0"):
        old = document.decode(_OldResult, data, unknown="ignore", fold_case=True, path=path)
        both = [found for found in (old.ip4, old.ip6) if found is not None]
        again = {"ips": [{"address": str(part.ip), "gateway": part.gateway} for part in both]}
        ips = document.decode(Result, again, path=path).ips
        return Result(ips=ips, routes=tuple(route for part in both for route in part.routes), dns=old.dns)
    return document.decode(Result, data, unknown="ignore", fold_case=True, path=path)


def write_result(result: Result, version: str) -> bytes:
    """stdout of a successful ADD. Raises `ConfigInvalid` when the version cannot express the result."""
    return _encode(_RESULT_FORMS[version](result, version))


def _current(result: Result, version: str) -> dict[str, Any]:
    """1.0.0 and 1.1.0: the reference writes 1.1.0's additions under 1.0.0 as well, and so do we."""
    document: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        document["interfaces"] = [
            _present(
                name=interface.name,
                mac=interface.mac,
                mtu=interface.mtu,
                sandbox=interface.sandbox,
                socketPath=interface.socket_path,
                pciID=interface.pci_id,
            )
            for interface in result.interfaces
        ]
    if result.ips:
        document["ips"] = [_ip(found) for found in result.ips]
    if result.routes:
        document["routes"] = [_route(route) for route in result.routes]
    dns = _dns(result.dns)
    if dns:
        document["dns"] = dns
    return document


def _third(result: Result, version: str) -> dict[str, Any]:
    """0.3.0, 0.3.1 and 0.4.0: addresses say their family, dns is always there."""
    document: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        document["interfaces"] = [
            _present(name=interface.name, mac=interface.mac, sandbox=interface.sandbox)
            for interface in result.interfaces
        ]
    if result.ips:
        document["ips"] = [{"version": str(found.address.family), **_ip(found)} for found in result.ips]
    if result.routes:
        document["routes"] = [_old_route(route) for route in result.routes]
    document["dns"] = _dns(result.dns)
    return document


def _first(result: Result, version: str) -> dict[str, Any]:
    """0.1.0 and 0.2.0: one address of each family, no interfaces."""
    document: dict[str, Any] = {"cniVersion": version}
    for family, name in ((4, "ip4"), (6, "ip6")):
        found = next((ip for ip in result.ips if ip.address.family == family), None)
        if found is None:
            continue
        routes = [_old_route(route) for route in result.routes if route.dst.family == family]
        document[name] = _present(
            ip=str(found.address), gateway=str(found.gateway) if found.gateway is not None else "", routes=routes
        )
    if len(document) == 1:
        raise ConfigInvalid(
            "cannot convert: no valid IP addresses",
            hint=f"a result without addresses has no form in version {version}; use cniVersion 0.3.0 or later",
        )
    document["dns"] = _dns(result.dns)
    return document


_RESULT_FORMS = {version: _first for version in VERSIONS[:2]}
_RESULT_FORMS.update({version: _third for version in VERSIONS[2:5]})
_RESULT_FORMS.update({version: _current for version in VERSIONS[5:]})


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _ip(found: IpConfig) -> dict[str, Any]:
    document: dict[str, Any] = {"address": str(found.address)}
    if found.interface is not None:
        document["interface"] = found.interface
    if found.gateway is not None:
        document["gateway"] = str(found.gateway)
    return document


def _old_route(route: Route) -> dict[str, Any]:
    return _present(dst=str(route.dst), gw=str(route.gw) if route.gw is not None else "")


def _route(route: Route) -> dict[str, Any]:
    document = _old_route(route)
    document.update(_present(mtu=route.mtu, advmss=route.advmss, priority=route.priority))
    # Pointers in the reference: 0 (RT_SCOPE_UNIVERSE, RT_TABLE_UNSPEC) is a value and is written.
    if route.table is not None:
        document["table"] = route.table
    if route.scope is not None:
        document["scope"] = route.scope
    return document


def _dns(dns: Dns) -> dict[str, Any]:
    return _present(
        nameservers=list(dns.nameservers), domain=dns.domain, search=list(dns.search), options=list(dns.options)
    )


def write_version(supported: Sequence[str]) -> bytes:
    """stdout of VERSION."""
    return (jsontext.dumps({"cniVersion": VERSIONS[-1], "supportedVersions": list(supported)}) + "\n").encode()


def write_error(error: errors.Error, command: str, version: str) -> bytes:
    """stdout of a failed command: `code`, `msg`, and `details` where there are any."""
    code = error_code(error, command)
    details = error.hint
    if isinstance(error, ConfigInvalid):
        found = [f"{path}: {sentence}" for path, sentence in error.problems]
        details = "; ".join([*found, *([details] if details else [])])
    document: dict[str, Any] = {"cniVersion": version if version in VERSIONS else VERSIONS[-1], "code": code}
    document["msg"] = error.message or "the network configuration is not valid"
    if details:
        document["details"] = details
    return _encode(document)


def error_code(error: errors.Error, command: str) -> int:
    """The specification's code for an error; a delegate's own is kept."""
    if isinstance(error, DelegateFailed):
        return error.code
    return errors.code_of(error, _STATUS_CODES if command == "STATUS" else CODES)


def _encode(document: Mapping[str, Any]) -> bytes:
    return jsontext.dumps(document, indent=4).encode("utf-8", "replace")


def about(name: str, supported: Sequence[str]) -> bytes:
    """What a person sees who runs a plugin by hand (stderr)."""
    return (
        f"CNI plugin {name} (nodeplug)\n"
        f"CNI protocol versions supported: {', '.join(supported)}\n"
        "A container runtime calls it with CNI_COMMAND set; by hand, use `nodeplug cni add --help`.\n"
    ).encode()
