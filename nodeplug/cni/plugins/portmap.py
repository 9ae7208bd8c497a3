"""portmap: ports of the host that lead to a pod. Chained after the plugin that made the pod's interface.

The rules are elements of nodeplug's own nft table (`nodeplug.cni.filter`), whatever `backend` says; its keys are
checked as the reference plugin checks them. Masquerading needs no packet mark there, so `markMasqBit` and
`externalSetMarkChain` have no further effect.
"""

from __future__ import annotations

import os

from nodeplug.cni.contract import NetConf, Plugin
from nodeplug.cni.filter import conditions, plan
from nodeplug.cni.filter.index import Index, Owner
from nodeplug.cni.filter.layout import PROTOCOLS
from nodeplug.cni.filter.plan import PORTS, Mapping
from nodeplug.cni.filter.table import filtering
from nodeplug.core import paths
from nodeplug.core.document import array, boolean, integer, nested, text
from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.core.inet import Ip
from nodeplug.core.record import Record, key
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        GcRequest,
        Result,
        StatusRequest,
    )
    from nodeplug.cni.filter.plan import Share
    from nodeplug.core.inet import Net

_IPTABLES = "iptables"
_NFTABLES = "nftables"
_MOST = 4096


class PortMapping(Record):
    """One entry of runtimeConfig.portMappings."""

    host_port: int = key(integer(), default=0, name="hostPort", help="port of the host, 1 to 65535")
    container_port: int = key(integer(), default=0, name="containerPort", help="port of the pod, 1 to 65535")
    protocol: str = key(text, default="tcp", help="tcp, udp or sctp")
    host_ip: str = key(text, default="", name="hostIP", help="the host's address; empty or unspecified for all of them")


class RuntimeConfig(Record):
    """What a runtime adds for the capability portMappings."""

    port_mappings: tuple[PortMapping, ...] = key(
        array(nested(PortMapping), most=_MOST), default=(), name="portMappings", help="the pod's host ports"
    )


class PortmapConf(NetConf):
    """The keys of portmap."""

    backend: str | None = key(
        text, default=None, help='"iptables" or "nftables"; either way the rules are in nodeplug\'s own nft table'
    )
    snat: bool = key(
        boolean,
        default=True,
        help="masquerade connections from the pod itself, from its neighbours and from the host's 127.0.0.1",
    )
    masq_all: bool = key(boolean, default=False, name="masqAll", help="with snat: masquerade all connections")
    mark_masq_bit: int | None = key(
        integer(), default=None, name="markMasqBit", help="0 to 31; checked, and else without effect: no mark is set"
    )
    external_set_mark_chain: str | None = key(
        text, default=None, name="externalSetMarkChain", help="checked, and else without effect: no mark is set"
    )
    conditions_v4: tuple[str, ...] = key(
        array(text), default=(), name="conditionsV4", help="further matches for IPv4, in iptables' words or nft's"
    )
    conditions_v6: tuple[str, ...] = key(
        array(text), default=(), name="conditionsV6", help="further matches for IPv6, in ip6tables' words or nft's"
    )
    runtime: RuntimeConfig = key(nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig")


class Portmap(Plugin):
    name = "portmap"
    config = PortmapConf

    def add(self, request: AddRequest) -> Result:
        """Returns the result before it, unchanged."""
        result = request.prev_result
        if result is None:
            raise ConfigInvalid("must be called as chained plugin", hint="list portmap after bridge or ptp in plugins")
        share = _share(request, result)
        if not share.entries:
            _remove(request)
            return result
        from nodeplug.cni.filter import reach

        if not os.path.lexists(paths.NO_REFERENCE):
            _contest(request, result, share)
        with filtering(warn=request.warn) as table, Undo() as undo:
            table.add(Owner.of(request.attachment, request.netns), share)
            undo.push(lambda: table.remove(request.attachment, PORTS))
            reach.open_way(table, result, share)
            table.warn_of_forwarding(share)
            undo.commit()
        return result

    def delete(self, request: DelRequest) -> None:
        """By the index alone: the runtime may have lost the ports and the result."""
        if not _remove(request) and _may_be_references(request):
            from nodeplug.cni.reference import hostports

            hostports.remove(request.attachment)

    def check(self, request: CheckRequest) -> None:
        share = _share(request, request.prev_result)
        if not share.entries:
            return
        from nodeplug.cni.filter import reach

        missing = None if Index().has(request.attachment.identity, PORTS) else _reference_faults(request, share)
        if missing is None:
            with filtering(warn=request.warn) as table:
                missing = table.missing(request.attachment, share) + reach.closed(request.prev_result, share)
        if missing:
            raise Refused(
                f"host ports of {request.attachment} are not as ADD left them: {'; '.join(missing)}",
                hint="`nodeplug cni repair` puts the table right",
            )

    def gc(self, request: GcRequest) -> None:
        from nodeplug.cni.reference import hostports

        steps = Steps()
        steps.run(lambda: _collect(request))
        steps.run(lambda: hostports.collect(request.network, request.valid))
        steps.close()

    def status(self, request: StatusRequest) -> None:
        _validate(request.config)
        with filtering(warn=request.warn) as table:
            table.usable()


def _remove(request: AttachmentRequest) -> bool:
    """Whether the attachment had any."""
    if not Index().has(request.attachment.identity, PORTS):
        return False
    with filtering(warn=request.warn) as table:
        table.remove(request.attachment, PORTS)
    return True


def _reference_faults(request: CheckRequest, share: Share) -> list[str] | None:
    from nodeplug.cni.reference import hostports

    return hostports.faults(share, request.attachment)


def _may_be_references(request: AttachmentRequest) -> bool:
    """Whether an attachment that has nothing of ours may have host ports of the reference plugin's."""
    return bool(request.config.runtime.port_mappings) or not os.path.lexists(paths.NO_REFERENCE)


def _collect(request: GcRequest) -> None:
    with filtering(warn=request.warn) as table:
        table.collect(request.network, request.valid)


def _contest(request: AddRequest, result: Result, share: Share) -> None:
    """Have the ports from the reference plugin, whose rules would go on to stand beside ours."""
    from nodeplug.cni.reference import hostports

    addresses = {ip.address.ip.packed for ip in result.ips}
    hostports.contest(share.claims, addresses, request.attachment, request.warn)


def _share(request: AttachmentRequest, result: Result) -> Share:
    """What the configuration and the result before ask for. Raises `ConfigInvalid`."""
    config: PortmapConf = request.config
    _validate(config)
    mappings = _mappings(config.runtime.port_mappings)
    addresses = _addresses(result, request.ifname) if mappings else []
    identity = request.attachment.identity
    return plan.ports(
        request.network,
        addresses,
        mappings,
        snat=config.snat,
        masq_all=config.masq_all,
        conditions=_conditions(config, addresses, mappings),
        chain=identity,
    )


def _validate(config: PortmapConf) -> None:
    """The reference plugin's rules about keys that exclude each other."""
    problems = []
    if config.mark_masq_bit is not None and config.external_set_mark_chain is not None:
        problems.append(("$.markMasqBit", "cannot be together with externalSetMarkChain"))
    if config.mark_masq_bit is not None and not 0 <= config.mark_masq_bit <= 31:
        problems.append(("$.markMasqBit", f"must be between 0 and 31, not {config.mark_masq_bit}"))
    if config.backend not in (None, _IPTABLES, _NFTABLES):
        problems.append(("$.backend", f'unrecognized backend "{config.backend}"; use iptables or nftables'))
    speaks: dict[str, list[str]] = {_IPTABLES: [], _NFTABLES: []}
    if config.external_set_mark_chain is not None:
        speaks[_IPTABLES].append("externalSetMarkChain")
    for name, tokens in (("conditionsV4", config.conditions_v4), ("conditionsV6", config.conditions_v6)):
        if tokens and tokens[0]:
            speaks[_IPTABLES if conditions.is_iptables(tokens) else _NFTABLES].append(name)
    if config.backend in speaks:
        (other,) = (name for name in speaks if name != config.backend)
        if speaks[other]:
            sentence = f"is {config.backend}, but the configuration contains options of {other}: "
            problems.append(("$.backend", sentence + ", ".join(speaks[other])))
    elif speaks[_IPTABLES] and speaks[_NFTABLES]:
        sentence = f"is of iptables, but {', '.join(speaks[_NFTABLES])} in nft's words; use one of them"
        problems.append((f"$.{speaks[_IPTABLES][0]}", sentence))
    if problems:
        raise ConfigInvalid("the configuration of portmap is not valid", problems=problems)


def _mappings(given: Sequence[PortMapping]) -> list[Mapping]:
    """Raises `ConfigInvalid` with every wrong entry."""
    problems: list[tuple[str, str]] = []
    found: dict[tuple[str, int, str], Mapping] = {}
    for number, entry in enumerate(given):
        path = f"$.runtimeConfig.portMappings[{number}]"
        before = len(problems)
        for name, value in (("containerPort", entry.container_port), ("hostPort", entry.host_port)):
            if not 0 < value < 65536:
                problems.append((f"{path}.{name}", f"{value} is not a port; 1 to 65535 are"))
        protocol = entry.protocol.lower() or "tcp"
        if protocol not in PROTOCOLS:
            problems.append((f"{path}.protocol", f'"{entry.protocol}" is not one of {", ".join(PROTOCOLS)}'))
        host_ip = None
        try:
            host_ip = Ip.parse(entry.host_ip) if entry.host_ip else None
        except ValueError as error:
            problems.append((f"{path}.hostIP", str(error)))
        if len(problems) > before:
            continue
        mapping = Mapping(
            protocol=protocol, host_port=entry.host_port, container_port=entry.container_port, host_ip=host_ip
        )
        if found.setdefault((protocol, entry.host_port, str(host_ip or "")), mapping) != mapping:
            problems.append((f"{path}.hostPort", f"{entry.host_port}/{protocol} is mapped twice, to different ports"))
    if problems:
        raise ConfigInvalid("a port mapping is not valid", problems=problems)
    return list(found.values())


def _addresses(result: Result, ifname: str) -> list[Net]:
    """The pod's first address of each family: on the interface that was asked for, or on none that is named."""
    found: dict[int, Net] = {}
    for ip in result.ips:
        if ip.interface is not None and 0 <= ip.interface < len(result.interfaces):
            interface = result.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault(ip.address.family, ip.address)
    return list(found.values())


def _conditions(
    config: PortmapConf, addresses: Sequence[Net], mappings: Sequence[Mapping]
) -> dict[tuple[int, str], tuple[str, ...]]:
    """The conditions in nft's words, where there are any."""
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    for address in addresses:
        family = address.family
        tokens = config.conditions_v4 if family == 4 else config.conditions_v6
        if not tokens or not tokens[0]:
            continue
        path = f"$.conditionsV{family}"
        for protocol in dict.fromkeys(mapping.protocol for mapping in mappings):
            if conditions.is_iptables(tokens):
                found[(family, protocol)] = conditions.translated(tokens, family, protocol, path)
            else:
                found[(family, protocol)] = (conditions.words(tokens, path),)
    return found
