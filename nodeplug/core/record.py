"""Values with named fields: frozen, keyword-only, compared and shown by content.

A stand-in for dataclasses on the exec path, where decorating 20 dataclasses costs 17 ms and this costs 0.3.
Used by every exec room; daemons use dataclasses. Imports nothing.

    class Route(Record):
        dst: str
        gw: str | None = None

`key()` states what a document reader has to know about a field; `nodeplug.core.document` reads it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_kwargs):
        return lambda cls: cls


class Required:
    """The default of a field that has none; shown as `...` in reference pages."""

    def __repr__(self) -> str:
        return "..."


REQUIRED = Required()


class Key:
    """What a document says about one field: its parser, default, help and name on the wire."""

    __slots__ = ("default", "help", "name", "parser")

    def __init__(self, parser: Callable[..., object], default: object, help: str, name: str) -> None:
        self.parser = parser
        self.default = default
        self.help = help
        self.name = name


def key(parser: Callable[..., T], *, default: Any = REQUIRED, help: str = "", name: str = "") -> T:
    """Declare a field that documents may carry.

    `parser(value, at)` returns the field's value or raises `document.Wrong`. `name` is the key in the document where
    it differs from the field's (the wire's `ipMasq` for `ip_masq`).
    """
    return Key(parser, default, help, name)  # type: ignore[return-value]  # the field's type is what its parser returns


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
class Record:
    """Base of all values on the exec path. Subclasses list their fields as annotations, with optional defaults."""

    _fields: dict[str, object] = {}  # noqa: RUF012  # name -> default; replaced, never changed, by each subclass
    _keys: dict[str, Key] = {}  # noqa: RUF012  # likewise
    _required: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        fields, keys = dict(cls._fields), dict(cls._keys)
        for name in cls.__annotations__:
            default = cls.__dict__.get(name, REQUIRED)
            if isinstance(default, Key):
                keys[name] = default
                default = default.default
            if isinstance(default, (list, dict, set)):
                raise TypeError(
                    f"{cls.__name__}.{name}: a default is shared, so it must not be a {type(default).__name__}"
                )
            fields[name] = default
            if name in cls.__dict__:
                delattr(cls, name)
        cls._fields, cls._keys = fields, keys
        cls._required = frozenset([name for name, default in fields.items() if default is REQUIRED])

    def __init__(self, **values: object) -> None:
        mine = self.__dict__
        mine.update(self._fields)  # all of them, in order
        mine.update(values)
        if len(mine) != len(self._fields) or not self._required <= values.keys():
            self._complain(values)

    def _complain(self, values: dict[str, object]) -> None:
        for name in self._fields:
            if name in self._required and name not in values:
                raise TypeError(f"{type(self).__name__}() needs {name}")
        unknown = [name for name in values if name not in self._fields]
        raise TypeError(f"{type(self).__name__}() has no field {', '.join(unknown)}")

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        made = type(self).__new__(type(self))
        mine = made.__dict__
        mine.update(self.__dict__)
        mine.update(changes)
        if len(mine) != len(self._fields):
            self._complain(mine)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen; use replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
