"""A value that must never be shown: passwords, keys, tokens, secret options.

It masks itself in `str`, `repr`, formatting, JSON (it is not serialisable) and pickling. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

MASK = "[secret]"


class Secret:
    """Holds bytes; `reveal()` is the only way to them, so that a search for that word finds every use."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else value

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        from hmac import compare_digest

        return isinstance(other, Secret) and compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash of a secret says something about it

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
