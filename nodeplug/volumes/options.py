"""Parsers of volumes' options. Flex has only strings, CSI too; a state file has what was read: each takes both.

Used by back-ends in their `options` records, beside those of core.document.
"""

from __future__ import annotations

from nodeplug.core.document import Wrong, duration, expects, size, text
from nodeplug.volumes.sizes import exact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Parser, Place


@expects("true or false")
def flag(value: Any, _at: Place) -> bool:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise Wrong("expected true or false")
    return bool(value == "true")


def count(low: int, high: int) -> Parser[int]:
    """A whole number within bounds, both included, in decimal digits."""
    phrase = f"a whole number from {low} to {high}"

    @expects(phrase)
    def read(value: Any, _at: Place) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong(f"expected {phrase}")
        return value

    return read


@expects("a user's or group's number")
def number_id(value: Any, at: Place) -> int:
    return _number_id(value, at)


_number_id = count(0, (1 << 32) - 2)  # the last one means "unchanged" to the kernel


def _octal(value: int) -> str:
    return f'"{value:04o}"'


@expects('access rights in octal digits ("0750")', shown=_octal)
def mode(value: Any, _at: Place) -> int:
    if isinstance(value, str) and 0 < len(value) <= 5 and not value.strip("01234567"):
        value = int(value, 8)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
        raise Wrong('expected access rights in octal digits, such as "0750"')
    return value


@expects('a size, more than nothing: bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T ("64Mi")')
def some_size(value: Any, at: Place) -> int:
    """Bytes."""
    found = size(value, at)
    if found <= 0:
        raise Wrong("must be more than nothing")
    return found


@expects('a size: bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T ("64Mi")', shown=exact)
def limit(value: Any, at: Place) -> int:
    """Bytes, in settings."""
    return size(value, at)


def _in_units(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f'"{seconds // length:g}{unit}"'
    return f'"{seconds:g}s"'


@expects('a duration: seconds, or a number with ms, s, m, h or d ("90s", "12h")', shown=_in_units)
def span(value: Any, at: Place) -> float:
    """Seconds."""
    return duration(value, at)


@expects("a name of lower-case letters, digits and dashes within, at most 63 characters, or nothing")
def label(value: Any, at: Place) -> str:
    """As the kubelet's namespaces are, so that it can be part of a path."""
    if text(value, at) and not is_label(value):
        raise Wrong(f"expected {label.expects}")
    return str(value)


def is_label(value: str) -> bool:
    inside = value.replace("-", "a")
    return (
        0 < len(value) <= 63
        and value.isascii()
        and inside.isalnum()
        and value == value.lower()
        and not value.startswith("-")
        and not value.endswith("-")
    )


@expects("words between commas; a comma within one is written \\,")
def words(value: Any, at: Place) -> tuple[str, ...]:
    """An empty string is no word at all; space around words does not count."""
    if isinstance(value, (list, tuple)):
        return tuple(text(item, at) for item in value)
    found = [""]
    escaped = False
    for character in text(value, at):
        if escaped or character not in ",\\":
            # A backslash before anything else stands for itself.
            found[-1] += character if not escaped or character in ",\\" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            found.append("")
    if escaped:
        found[-1] += "\\"
    parts = tuple(part.strip() for part in found)
    if parts == ("",):
        return ()
    if "" in parts:
        raise Wrong("has an empty word between its commas")
    return parts
