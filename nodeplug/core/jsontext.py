"""JSON text in and out, by the C scanner that CPython's own json package is built on.

`import json` costs 6 ms, half of the import budget of an executed plugin, nearly all of it for the regular expressions
of its pure-Python parts. The scanner and the string encoder behind it need neither. Whoever
reads a document from outside bounds it.
"""

from __future__ import annotations

from _json import encode_basestring as _quoted
from _json import make_scanner

from nodeplug.core.errors import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_WHITESPACE = " \t\r\n"
_DEEPEST = 200


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class _Context:
    """What the scanner wants to know; see json.decoder.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_constant)
    memo: dict[str, str] = {}  # noqa: RUF012  # emptied by the scanner after each document


def loads(data: bytes) -> object:
    """The value of one JSON document in UTF-8.

    Raises `Malformed` with line and column. NaN and Infinity are refused, as is nesting deeper than 200.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 at byte {error.start}") from None
    text = text.strip(_WHITESPACE)
    if not text:
        raise Malformed("empty, where a JSON document was expected")
    # The scanner recurses in C; refuse what would only be stopped by the interpreter's own recursion limit.
    if text.count("[") + text.count("{") > _DEEPEST and _depth(text) > _DEEPEST:
        raise Malformed(f"nested deeper than {_DEEPEST}")
    try:
        found: object
        found, end = make_scanner(_Context())(text, 0)  # type: ignore[arg-type]  # any object with those attributes
    except RecursionError:
        raise Malformed(f"nested deeper than {_DEEPEST}") from None
    except Exception:
        # The scanner words its errors through json.decoder where that is loaded, and fails bare where it is not.
        return _explain(text)
    if end != len(text):
        raise Malformed(f"not JSON: more text follows the document {_place(text, end)}")
    return found


class Repeating(dict[str, object]):
    """An object of a document, and which of its keys it has more than once."""

    repeated: tuple[str, ...] = ()


def repeated(data: bytes, *path: str) -> tuple[str, ...]:
    """The keys that the object at `path` has more than once; `loads` keeps the last of them and says nothing.

    The path's own keys are matched without regard to case. Empty where there is no object. Raises `Malformed`.
    """
    found: object = make_scanner(_Counting())(data.decode("utf-8").strip(_WHITESPACE), 0)[0]  # type: ignore[arg-type]
    for step in path:
        if not isinstance(found, dict):
            return ()
        found = next((value for name, value in reversed(found.items()) if name.lower() == step.lower()), None)
    return found.repeated if isinstance(found, Repeating) else ()


def _counted(pairs: list[tuple[str, object]]) -> Repeating:
    found = Repeating(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found.repeated = tuple(dict.fromkeys(name for name in names if names.count(name) > 1))
    return found


class _Counting(_Context):
    """See `repeated`."""

    object_pairs_hook = staticmethod(_counted)


def _explain(text: str) -> object:
    """Read with the package itself, for its words on what is wrong."""
    import json

    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise Malformed(f"not JSON: {error}") from None


def _depth(text: str) -> int:
    """How deep the brackets outside strings go."""
    deepest = depth = 0
    inside = escaped = False
    for character in text:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _place(text: str, position: int) -> str:
    before = text[:position]
    return f"at line {before.count(chr(10)) + 1} column {position - before.rfind(chr(10))}"


def dumps(value: object, *, indent: int = 0) -> str:
    """`value` as JSON text; with `indent`, one item a line as Go's MarshalIndent writes it.

    Strings, numbers, booleans, None, mappings with string keys, lists and tuples; TypeError for anything else.
    """
    return _dump(value, "\n" if indent else "", " " * indent)


def _dump(value: object, newline: str, step: str) -> str:
    writer = _WRITERS.get(type(value))
    if writer is not None:
        return writer(value)
    inner = newline + step
    colon = ": " if step else ":"
    if isinstance(value, dict):
        parts = [f"{_key(name)}{colon}{_dump(item, inner, step)}" for name, item in value.items()]
        return f"{{{inner}{(',' + inner).join(parts)}{newline}}}" if parts else "{}"
    if isinstance(value, (list, tuple)):
        parts = [_dump(item, inner, step) for item in value]
        return f"[{inner}{(',' + inner).join(parts)}{newline}]" if parts else "[]"
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError("a key in JSON is a string")
    return _quoted(name)


def _float(value: object) -> str:
    text = repr(value)
    if text in ("nan", "inf", "-inf"):
        raise TypeError(f"{text} has no form in JSON")
    return text


_WRITERS: dict[type, Callable[..., str]] = {
    str: _quoted,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _value: "null",
    int: int.__repr__,
    float: _float,
}
