"""JSON as Go's decoder sees it, which is what the runtimes that call plugins are written in.

Used by the config, result and cache readers of this package. A wrong type is an error that names its place; keys of
known fields are matched without regard to case, as encoding/json does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from nodeplug.core import files
from nodeplug.core.errors import ConfigInvalid, Malformed

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

LIMIT = 4 * 1024 * 1024
"""Bytes of the largest document read: a conflist, a result or a cache file is a few kilobytes."""


def read(path: Path) -> bytes:
    """The bytes of a document. Raises `Malformed` for one over the limit, OSError where it cannot be read."""
    return files.read_bounded(str(path), LIMIT)


def parse(data: bytes, what: str) -> dict[str, Any]:
    """One JSON object; `what` names it in the error. `null` is an empty object, as in Go. Raises `Malformed`."""
    try:
        document = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Malformed(f"{what} is not a JSON object but {shape(document)}")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no value in JSON")


def dump(document: object) -> bytes:
    """Compact JSON."""
    return json.dumps(document, separators=(",", ":")).encode()


def shape(value: object) -> str:
    """What a value is in JSON's words, for errors."""
    names: list[tuple[type, str]] = [(bool, "a boolean"), (int, "a number"), (float, "a number"), (str, "a string")]
    names += [(list, "a list"), (dict, "an object")]
    return next((name for kind, name in names if isinstance(value, kind)), "null")


class Fields:
    """Typed reading of one object's fields. `path` is its place in the document ("$.plugins[0]")."""

    def __init__(self, document: object, path: str) -> None:
        if not isinstance(document, dict):
            raise wrong(path, "an object", document)
        self.path = path
        self._found: dict[str, Any] = {}
        for key, value in document.items():
            if value is not None:  # null leaves the default, as in Go
                self._found[key.casefold()] = value

    def text(self, key: str) -> str:
        """A string; empty when absent."""
        return self._typed(key, str, "a string", "")

    def number(self, key: str) -> int | None:
        """A whole number; None when absent."""
        value = self._found.get(key.casefold())
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(f"{self.path}.{key}", "a whole number", value)
        return value

    def objects(self, key: str) -> list[Fields]:
        """A list of objects; empty when absent. Null members are left out."""
        values: list[object] = self._typed(key, list, "a list", [])
        return [Fields(value, f"{self.path}.{key}[{n}]") for n, value in enumerate(values) if value is not None]

    def object(self, key: str) -> Fields | None:
        """An object; None when absent."""
        value = self._found.get(key.casefold())
        return None if value is None else Fields(value, f"{self.path}.{key}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        values: list[object] = self._typed(key, list, "a list", [])
        for n, value in enumerate(values):
            if not isinstance(value, str):
                raise wrong(f"{self.path}.{key}[{n}]", "a string", value)
        return tuple(str(value) for value in values)

    def flags(self, key: str) -> dict[str, bool]:
        """An object of booleans; empty when absent."""
        values: dict[str, object] = self._typed(key, dict, "an object", {})
        for name, value in values.items():
            if not isinstance(value, bool):
                raise wrong(f"{self.path}.{key}.{name}", "true or false", value)
        return {name: bool(value) for name, value in values.items()}

    def _typed(self, key: str, kind: type[T], said: str, default: T) -> T:
        value = self._found.get(key.casefold(), default)
        if not isinstance(value, kind):
            raise wrong(f"{self.path}.{key}", said, value)
        return value


def wrong(path: str, expected: str, value: object) -> ConfigInvalid:
    """The error for a value of the wrong type."""
    return ConfigInvalid("wrong type", problems=[(path, f"expected {expected}, found {shape(value)}")])
