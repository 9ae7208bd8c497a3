"""Parsers for configuration keys that several plugins have, as the reference plugins read them."""

from __future__ import annotations

from nodeplug.cni.contract import Dns, EnvironmentInvalid
from nodeplug.core.document import Wrong, expects, integer, nested, text
from nodeplug.core.naming import link_name_fault
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nodeplug.core.document import Place

_MTU = integer(68, 65535)


@expects("the name of a link")
def link_name(value: Any, at: Place) -> str:
    """A name that the kernel takes for a link, 1 to 15 bytes."""
    fault = link_name_fault(text(value, at))
    if fault:
        raise Wrong(f"{value!r} cannot be the name of a link: {fault}")
    return str(value)


@expects("the name of a link, or nothing")
def optional_link_name(value: Any, at: Place) -> str:
    """The empty string says nothing."""
    return "" if value == "" else link_name(value, at)


@expects("0 for the kernel's default, or bytes from 68 to 65535")
def mtu(value: Any, at: Place) -> int:
    """The kernel's own bounds for veths and bridges, which it words as "Invalid argument"."""
    return value if value == 0 and isinstance(value, int) and not isinstance(value, bool) else _MTU(value, at)


@expects("a MAC address (such as 02:00:0a:00:00:07)")
def mac(value: Any, at: Place) -> bytes | None:
    """Six bytes; None for an empty string."""
    found = read_mac(text(value, at))
    if found is None and value:
        raise Wrong(f"{value!r} is not the MAC address of one station (such as 02:00:0a:00:00:07)")
    return found


def read_mac(given: str) -> bytes | None:
    """Six bytes from the forms that Go's net package takes; None when it is none, all zero, or a multicast address."""
    digits = given.replace(":", "").replace("-", "") if given[2:3] in (":", "-") else given.replace(".", "")
    separators = len(given) - len(digits)
    if len(digits) != 12 or separators not in (2, 5) or not given.isascii():
        return None
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        return None
    return found if len(found) == 6 and any(found) and not found[0] & 1 else None


@expects("an object", Dns)
def dns(value: Any, at: Place) -> Dns | None:
    """The configuration's `dns`, which takes the place of the address manager's; None when it says nothing.

    An empty list says something: that there is none.
    """
    found = nested(Dns)(value, at)
    said = isinstance(value, dict) and any(item not in (None, "") for item in value.values())
    return found if said else None


class CniArgs(Record):
    """`args.cni`."""

    mac: bytes | None = key(mac, default=None, help="the pod's MAC address; `runtimeConfig.mac` goes before it")


class Args(Record):
    """`args`: what the configuration's author or the runtime adds by convention."""

    cni: CniArgs = key(nested(CniArgs), default=CniArgs(), help="arguments for CNI plugins")


class RuntimeConfig(Record):
    """`runtimeConfig`, for a plugin whose only capability is `mac`."""

    mac: bytes | None = key(mac, default=None, help="the pod's MAC address (capability `mac`); goes before all others")


def requested_mac(runtime_config: RuntimeConfig, args: Args, cni_args: Mapping[str, str]) -> bytes | None:
    """The MAC address asked for: runtimeConfig, then args, then CNI_ARGS; None for the kernel's choice.

    Raises `EnvironmentInvalid` for one in CNI_ARGS that is none.
    """
    given = cni_args.get("MAC", "")
    found = runtime_config.mac or args.cni.mac or read_mac(given)
    if found is None and given:
        raise EnvironmentInvalid(
            f"CNI_ARGS: MAC is {given!r}", hint="give the MAC address of one station, such as 02:00:0a:00:00:07"
        )
    return found
