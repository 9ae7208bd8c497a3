"""What a driver printed, read as the kubelet reads it: one JSON value by the rules of Go's encoding/json.

Those rules differ from Python's: keys match without regard to case, the last of several wins, null leaves a field as it
is, a value of another type is an error that names the field, bytes that are no UTF-8 are replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nodeplug.core.errors import Error

SUCCESS = "Success"
NOT_SUPPORTED = "Not supported"


class Unreadable(Error):
    """The output is not what the kubelet can read; the message is Go's, or nearly."""


class Failed(Error):
    """The driver answered with a status other than success; the message is the kubelet's, which pods show."""


class NotSupported(Error):
    """The driver does not support the verb, which the kubelet remembers."""

    def __init__(self) -> None:
        super().__init__(NOT_SUPPORTED)


class Panic(Error):
    """Upon this the kubelet ends."""


@dataclass(frozen=True)
class Capabilities:
    """With the kubelet's defaults, which stand for whatever a driver leaves out."""

    attach: bool = True
    selinuxRelabel: bool = True
    supportsMetrics: bool = False
    fsGroup: bool = True
    requiresFSResize: bool = True


@dataclass(frozen=True)
class Status:
    """The fields of an answer, under the names they have on the wire. `capabilities` is None for an explicit null."""

    status: str = ""
    message: str = ""
    device: str = ""
    volumeName: str = ""
    attached: bool = False
    capabilities: Capabilities | None = field(default_factory=Capabilities)
    volumeNewSize: int = 0


class _Number(str):
    """A number that has a fraction or an exponent, which fits no field."""


class _Pairs(list[tuple[str, Any]]):
    """An object with its keys as they came."""


def parse(output: bytes) -> Status:
    """The value in a driver's whole output. Raises `Unreadable`."""
    text = output.decode("utf-8", "replace")
    stripped = text.strip(" \t\r\n")
    if not stripped:
        raise Unreadable("unexpected end of JSON input")
    try:
        found, end = _DECODER.raw_decode(stripped)
    except RecursionError:
        raise Unreadable("exceeded max depth") from None
    except json.JSONDecodeError as error:
        raise Unreadable(_complaint(stripped, error)) from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    if end != len(stripped):
        rest = stripped[end:].lstrip(" \t\r\n")
        raise Unreadable(f"invalid character {rest[0]!r} after top-level value")
    if found is None:
        return Status()
    if not isinstance(found, _Pairs):
        raise Unreadable(f"json: cannot unmarshal {_kind(found)} into Go value of type flexvolume.DriverStatus")
    return _read_status(found)


def judge(verb: str, output: bytes) -> Status:
    """What the kubelet makes of an output that came with exit status 0.

    Raises `Unreadable`, `NotSupported` or `Failed`.
    """
    status = parse(output)
    if status.status == NOT_SUPPORTED:
        raise NotSupported
    if status.status != SUCCESS:
        raise Failed(f"{verb} command failed, status: {status.status}, reason: {status.message}")
    return status


def _constant(name: str) -> Any:
    raise ValueError(f"invalid character {name[0]!r} looking for beginning of value")


def _integer(text: str) -> Any:
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else _Number(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_int=_integer, parse_float=_Number, parse_constant=_constant, strict=True
)


def _complaint(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
        return "unexpected end of JSON input"
    where = "looking for beginning of value" if error.msg == "Expecting value" else "in JSON"
    return f"invalid character {text[error.pos]!r} {where}"


def _read_status(found: _Pairs) -> Status:
    status = Status()
    wrong: list[str] = []
    for key, value in found:
        name = _field(Status, key)
        if name == "capabilities":
            if value is None:
                status = replace(status, capabilities=None)
            elif isinstance(value, _Pairs):
                before = status.capabilities or Capabilities(*[False] * len(fields(Capabilities)))
                status = replace(status, capabilities=_read_capabilities(value, before, wrong))
            else:
                wrong.append(_mismatch(value, "DriverStatus.Capabilities", "flexvolume.DriverCapabilities"))
        elif name and value is not None:
            kind = type(getattr(Status(), name))
            if type(value) is kind:
                status = replace(status, **{name: value})
            else:
                wrong.append(_mismatch(value, f"DriverStatus.{name}", _GO[kind]))
    if wrong:
        raise Unreadable(wrong[0])
    return status


def _read_capabilities(found: _Pairs, before: Capabilities, wrong: list[str]) -> Capabilities:
    for key, value in found:
        name = _field(Capabilities, key)
        if not name or value is None:
            continue
        if type(value) is bool:
            before = replace(before, **{name: value})
        else:
            wrong.append(_mismatch(value, f"DriverCapabilities.Capabilities.{name}", "bool"))
    return before


def _field(cls: type[Status | Capabilities], key: str) -> str:
    names = [known.name for known in fields(cls)]
    if key in names:
        return key
    return next((name for name in names if name.casefold() == key.casefold()), "")


_GO = {str: "string", bool: "bool", int: "int64"}


def _mismatch(value: object, place: str, wanted: str) -> str:
    return f"json: cannot unmarshal {_kind(value)} into Go struct field {place} of type {wanted}"


def _kind(value: object) -> str:
    if isinstance(value, _Pairs):
        return "object"
    if isinstance(value, _Number):
        return f"number {value}"
    return {bool: "bool", int: "number", str: "string", list: "array"}.get(type(value), type(value).__name__)
