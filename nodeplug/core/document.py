"""Documents read into records: TOML settings, CNI network configurations, FlexVolume options, all by one reader.

A record's fields carry `record.key(parser, default=, help=)`; `decode` collects every problem with its path and the
nearest valid key, and `reference` prints the page an operator reads. Parsers are functions `(value, at) -> T` that
raise `Wrong`; the ones below build all others. Imports core only; difflib on the way to an error message.
"""

from __future__ import annotations

from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import REQUIRED, Record
from nodeplug.core.secret import Secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Literal, Protocol, TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
    R = TypeVar("R", bound=Record)
    Unknown = Literal["refuse", "ignore"]

    class Parser(Protocol[T_co]):
        """Reads one value. `expects` is a phrase for the reference page and for errors: "a whole number".

        `shown` writes a value as a document has it, where that is not how Python shows it: "0750", "64Mi".
        """

        expects: str
        of: type[Record] | None
        shown: Callable[[Any], str] | None

        def __call__(self, value: Any, at: Place, /) -> T_co: ...


class Wrong(Exception):
    """Raised by a parser with the sentence that says what is wrong with the value."""


class Place:
    """Where in which document a parser is, and what that document's rules are."""

    __slots__ = ("fold_case", "path", "problems", "unknown")

    def __init__(self, path: str, *, unknown: Unknown, fold_case: bool, problems: list[tuple[str, str]]) -> None:
        self.path = path
        self.unknown: Unknown = unknown
        self.fold_case = fold_case
        self.problems = problems

    def below(self, step: str) -> Place:
        """The place of one member (`.name`) or item (`[0]`)."""
        return Place(self.path + step, unknown=self.unknown, fold_case=self.fold_case, problems=self.problems)

    def wrong(self, sentence: str) -> None:
        """Note a problem and go on reading."""
        self.problems.append((self.path, sentence))


def decode(cls: type[R], data: object, *, unknown: Unknown = "refuse", fold_case: bool = False, path: str = "$") -> R:
    """`data` (parsed JSON or TOML) as a `cls`.

    `unknown` says what becomes of keys no field names; `fold_case` matches keys without regard to case, the last of
    several winning, as Go's decoder does; null leaves the default. Raises `ConfigInvalid` with every problem found.
    """
    problems: list[tuple[str, str]] = []
    try:
        found = _record(cls, data, Place(path, unknown=unknown, fold_case=fold_case, problems=problems))
    except Wrong as wrong:
        problems.append((path, str(wrong)))
        found = None
    if problems or found is None:
        raise ConfigInvalid("", problems=problems)
    return found


def encode(record: Record) -> dict[str, object]:
    """What `decode` reads back, for JSON: keys by their names in documents, tuples as lists.

    A field that no document has is left out; a secret is refused by the writer of JSON.
    """
    return {key.name or field: _encoded(getattr(record, field)) for field, key in record._keys.items()}


def _encoded(value: object) -> object:
    if isinstance(value, Record):
        return encode(value)
    return [_encoded(item) for item in value] if isinstance(value, tuple) else value


def _record(cls: type[R], data: object, at: Place) -> R | None:
    """The record, or None when problems were noted."""
    if not isinstance(data, dict):
        raise Wrong(f"expected an object with keys, got {_shown(data)}")
    before = len(at.problems)
    names = {key.name or field: field for field, key in cls._keys.items()}
    folded = {name.lower(): name for name in names} if at.fold_case else {}
    values: dict[str, object] = {}
    wrong = set()
    for given, value in data.items():
        name = given if given in names else folded.get(str(given).lower(), "")
        if not name:
            if at.unknown == "refuse":
                near = _nearest(str(given), names) or f"; the keys here are {', '.join(sorted(names))}"
                at.below(f".{given}").wrong("no such key" + near)
            continue
        if value is None:
            continue
        place = at.below(f".{given}")
        try:
            values[names[name]] = cls._keys[names[name]].parser(value, place)
        except Wrong as error:
            place.wrong(str(error))
            wrong.add(names[name])
    for field, key in cls._keys.items():
        if key.default is REQUIRED and field not in values and field not in wrong:
            at.below(f".{key.name or field}").wrong("required, but missing" + (f" ({key.help})" if key.help else ""))
    return cls(**values) if len(at.problems) == before else None


def _nearest(given: str, names: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(given, names := list(names), n=1) or get_close_matches(given.lower(), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: object) -> str:
    """A value's kind, in words an operator uses; never the value, which may be a secret in the wrong place."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {
        str: "a string",
        int: "a whole number",
        float: "a number with a fraction",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def expects(
    phrase: str, of: type[Record] | None = None, *, shown: Callable[[Any], str] | None = None
) -> Callable[[Callable[[Any, Place], T]], Parser[T]]:
    """Make a function a parser by saying what it reads."""

    def mark(function: Callable[[Any, Place], T]) -> Parser[T]:
        function.expects = phrase  # type: ignore[attr-defined]  # a function takes attributes
        function.of = of  # type: ignore[attr-defined]  # likewise
        function.shown = shown  # type: ignore[attr-defined]  # likewise
        return function  # type: ignore[return-value]  # and has become a Parser

    return mark


@expects("any value")
def anything(value: Any, _at: Place) -> Any:
    return value


@expects("true or false")
def boolean(value: Any, _at: Place) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"expected true or false, got {_shown(value)}")
    return value


@expects("a string")
def text(value: Any, _at: Place) -> str:
    if not isinstance(value, str):
        raise Wrong(f"expected a string, got {_shown(value)}")
    return value


@expects("a non-empty string")
def name(value: Any, at: Place) -> str:
    if not text(value, at):
        raise Wrong("must not be empty")
    return str(value)


@expects("a string that is never shown")
def secret(value: Any, _at: Place) -> Secret:
    if not isinstance(value, str):
        raise Wrong(f"expected a string, got {_shown(value)}")
    return Secret(value)


@expects("a number")
def number(value: Any, _at: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"expected a number, got {_shown(value)}")
    return float(value)


@expects("an absolute path")
def absolute_path(value: Any, at: Place) -> str:
    if not text(value, at).startswith("/") or "\0" in value:
        raise Wrong("expected an absolute path (starting with /)")
    return str(value)


def integer(low: int | None = None, high: int | None = None) -> Parser[int]:
    """A whole number within bounds, both included."""
    if low is None and high is None:
        phrase = "a whole number"
    elif high is None:
        phrase = f"a whole number, {low} or more"
    else:
        phrase = f"a whole number from {low} to {high}"

    @expects(phrase)
    def read(value: Any, _at: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"expected {phrase}, got {_shown(value)}")
        if (low is not None and value < low) or (high is not None and value > high):
            raise Wrong(f"expected {phrase}, got {value}")
        return value

    return read


def choice(*options: str) -> Parser[str]:
    """One of some words."""
    phrase = "one of " + ", ".join(f'"{option}"' for option in options)

    @expects(phrase)
    def read(value: Any, at: Place) -> str:
        if text(value, at) not in options:
            raise Wrong(f'expected {phrase}, got "{value}"' + _nearest(value, options))
        return str(value)

    return read


def array(item: Parser[T], *, most: int = 100_000) -> Parser[tuple[T, ...]]:
    """A list of such items."""

    @expects(f"a list of: {item.expects}", item.of)
    def read(value: Any, at: Place) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Wrong(f"expected a list, got {_shown(value)}")
        if len(value) > most:
            raise Wrong(f"has {len(value)} items, and at most {most} are read")
        return tuple(_each(item, ((f"[{n}]", part) for n, part in enumerate(value)), at))

    return read


def table(item: Parser[T]) -> Parser[dict[str, T]]:
    """An object with free keys and such values."""

    @expects(f"an object whose values are: {item.expects}", item.of)
    def read(value: Any, at: Place) -> dict[str, T]:
        if not isinstance(value, dict):
            raise Wrong(f"expected an object with keys, got {_shown(value)}")
        return dict(zip(value, _each(item, ((f".{key}", part) for key, part in value.items()), at), strict=False))

    return read


def _each(item: Parser[T], parts: Any, at: Place) -> list[T]:
    found = []
    for step, part in parts:
        place = at.below(step)
        try:
            found.append(item(part, place))
        except Wrong as wrong:
            place.wrong(str(wrong))
    return found


def nested(cls: type[R]) -> Parser[R]:
    """An object with the keys of `cls`."""

    @expects("an object", cls)
    def read(value: Any, at: Place) -> R:
        # None stands for problems already noted: decode raises before anybody sees it.
        return _record(cls, value, at)  # type: ignore[return-value]  # see above

    return read


def converted(convert: Callable[[str], T], phrase: str) -> Parser[T]:
    """A string that `convert` reads; its ValueError is the sentence."""

    @expects(phrase)
    def read(value: Any, at: Place) -> T:
        try:
            return convert(text(value, at))
        except ValueError as error:
            raise Wrong(str(error)) from None

    return read


ip = converted(Ip.parse, "an IP address")
net = converted(Net.parse, "an address with a prefix length (such as 10.1.0.0/16)")

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@expects('a duration: seconds, or a number with ms, s, m, h or d ("90s", "12h")')
def duration(value: Any, _at: Place) -> float:
    """Seconds."""
    found = _scaled(value, _SECONDS) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < 1e10:
        raise Wrong(f"expected {duration.expects}, got {_shown(value)}")
    return float(found)


@expects('a size: bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T ("64Mi")')
def size(value: Any, _at: Place) -> int:
    """Bytes."""
    found = _scaled(value, _BYTES) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < 1 << 63 or found % 1:
        raise Wrong(f"expected {size.expects}, got {_shown(value)}")
    return int(found)


def _scaled(value: str, units: Mapping[str, float]) -> float | None:
    digits = value.rstrip("kKMGTimshd").rstrip()
    unit = value[len(digits) :].strip()
    try:
        amount = float(digits)
    except ValueError:
        return None
    if not unit:
        return amount
    return amount * units[unit] if unit in units else None


def reference(cls: type[Record], heading: str = "") -> str:
    """A Markdown table of the keys of `cls`, one more for each record nested in it."""
    lines = [f"### `{heading}`", ""] if heading else []
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    inner = []
    for field, key in cls._keys.items():
        given = key.name or field
        parser: Parser[object] = key.parser  # type: ignore[assignment]  # fields declare parsers
        fallback = "required" if key.default is REQUIRED else _default(key.default, parser.shown)
        lines.append(f"| `{given}` | {parser.expects.replace('|', chr(92) + '|')} | {fallback} | {key.help} |")
        if parser.of is not None and parser.of is not cls:
            inner.append(reference(parser.of, f"{heading}.{given}" if heading else given))
    return "\n".join(lines) + "\n" + "".join("\n" + page for page in inner)


def _default(value: object, shown: Callable[[Any], str] | None = None) -> str:
    if value is None or value == () or isinstance(value, (Record, Secret)):
        return "none"
    if shown is not None:
        return f"`{shown(value)}`"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
