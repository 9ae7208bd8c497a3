"""What dhcp is told: the keys of `ipam`, the node's settings, and the options that come of them.

DEL and GC read none of it: what has become wrong since ADD must not keep a lease from being released.
"""

from __future__ import annotations

from nodeplug.cni.contract import NetConf
from nodeplug.cni.ipam.dhcp import message, options
from nodeplug.core import config, document, paths
from nodeplug.core.document import (
    Wrong,
    absolute_path,
    anything,
    array,
    boolean,
    duration,
    expects,
    integer,
    nested,
    text,
)
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nodeplug.cni.contract import Request
    from nodeplug.core.document import Place

DIRECTORY = paths.VAR + "/dhcp"
SECTION = "cni.dhcp"

REQUESTED = (
    options.SUBNET_MASK,
    options.CLASSLESS_ROUTES,  # before the routers, which it replaces (RFC 3442)
    options.STATIC_ROUTES,
    options.ROUTERS,
    options.NAME_SERVERS,
    options.DOMAIN,
    options.SEARCH,
    options.MTU,
)
"""What a server is asked for unless `skipDefault` says otherwise."""

_OWN = frozenset(
    (
        message.REQUESTED_ADDRESS,
        52,
        message.TYPE,
        message.SERVER,
        message.REQUEST_LIST,
        message.LARGEST_MESSAGE,
    )
)
"""Options by which the protocol itself works; a wrong one would break it, or take another client's lease."""
_LONGEST_VALUE = 255


@expects("an option's number, or its name as in dhcp-options(5)")
def option(value: Any, at: Place) -> int | None:
    """None for the empty string, which `skipDefault` may stand beside."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if text(value, at) == "":
        return None
    try:
        return options.number(value)
    except ValueError as error:
        raise Wrong(str(error)) from None


class Provide(Record):
    """One of `ipam.provide`."""

    option: int | None = key(option, default=None, help="which option to send")
    value: str = key(text, default="", help="its value, sent as it stands")
    from_arg: str = key(
        text, default="", name="fromArg", help="the key of CNI_ARGS whose value is sent instead, where there is one"
    )


class Ask(Record):
    """One of `ipam.request`."""

    option: int | None = key(option, default=None, help="which option to ask for")
    skip_default: bool = key(
        boolean, default=False, name="skipDefault", help="whether nothing but what is listed is asked for"
    )


class IpamKeys(Record):
    """The keys of `ipam`."""

    daemon_socket_path: str = key(
        text, default="", name="daemonSocketPath", help="of the reference's daemon; accepted, and needed for nothing"
    )
    provide: tuple[Provide, ...] = key(array(nested(Provide)), default=(), help="options to send")
    request: tuple[Ask, ...] = key(array(nested(Ask)), default=(), help="options to ask for")
    priority: int = key(integer(0, 0xFFFFFFFF), default=0, help="metric of the routes; the kernel's if 0")


class DhcpConf(NetConf):
    """`ipam` unread: ADD and STATUS read it."""

    ipam: Any = key(anything, default=None)


class _Document(Record):
    ipam: IpamKeys = key(nested(IpamKeys), help="the address manager's own section")


class Settings(Record):
    """`[cni.dhcp]` of the node's settings."""

    directory: str = key(absolute_path, default=DIRECTORY, help="where leases are; nodeplugd looks there too")
    wait: float = key(duration, default=20.0, help="how long ADD waits for a server; then the runtime is to try again")
    broadcast: bool = key(
        boolean, default=False, help="ask servers to answer to everybody; done by itself where a link needs it (ipvlan)"
    )
    unattended: float = key(
        duration, default=600.0, help="while no nodeplugd renews leases, ADD refuses those that end sooner"
    )


def settings(node: Mapping[str, object] | None = None) -> Settings:
    """From the node's settings; read here, where they are not given. Raises `ConfigInvalid`."""
    return config.section(Settings, dict(node) if node is not None else config.load(), SECTION, paths.ETC)


def ipam(request: Request) -> IpamKeys:
    """Raises `ConfigInvalid` with every problem."""
    try:
        return document.decode(_Document, {"ipam": request.config.ipam}, unknown="ignore", fold_case=True).ipam
    except ConfigInvalid as invalid:
        raise ConfigInvalid("the network configuration is not valid", problems=invalid.problems) from None


def provided(keys: IpamKeys, args: Mapping[str, str]) -> dict[int, bytes]:
    """The options to send, by number. Raises `ConfigInvalid`."""
    found: dict[int, bytes] = {}
    problems = []
    for number, one in enumerate(keys.provide):
        at = f"$.ipam.provide[{number}]"
        if one.option is None or one.option in _OWN:
            problems.append((f"{at}.option", "names no option" if one.option is None else "is not for you to choose"))
            continue
        value = args.get(one.from_arg, one.value) if one.from_arg else one.value
        raw = value.encode("utf-8", "surrogatepass")
        if len(raw) > _LONGEST_VALUE:
            source = f"CNI_ARGS {one.from_arg}" if one.from_arg in args else "the value"
            problems.append((at, f"{source} is longer than the {_LONGEST_VALUE} bytes of an option"))
        elif raw:
            found[one.option] = raw
    if problems:
        raise ConfigInvalid("the network configuration is not valid", problems=problems)
    return found


def requested(keys: IpamKeys) -> tuple[int, ...]:
    """The numbers of the options to ask for."""
    listed = [one.option for one in keys.request if one.option is not None]
    skip = any(one.skip_default for one in keys.request)
    return tuple(dict.fromkeys([*(() if skip else REQUESTED), *listed]))


def client_id(container: str, network: str, ifname: str) -> bytes:
    """The client identifier, as the reference makes it: its type, which is none of hardware, and the attachment."""
    return b"\0" + f"{container}/{network}/{ifname}".encode()[:254]
