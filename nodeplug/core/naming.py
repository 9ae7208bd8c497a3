"""Names of links: derived from identity, so that what a killed process left behind is found without any state.

Imports the interpreter's own SHA-256; hashlib would bring OpenSSL along.
"""

from __future__ import annotations

try:
    from _sha256 import sha256  # type: ignore[import-not-found]  # no stubs for it
except ImportError:  # Python 3.12 and later
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]  # likewise
    except ImportError:
        from hashlib import sha256

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def identity(*parts: str) -> str:
    """`np` and 13 base32 characters (65 bits) of SHA-256 over the parts: fits an interface name (15).

    Parts are joined by NUL, which none of them can hold.
    """
    return "np" + digest("\0".join(parts), 13)


def digest(text: str, length: int) -> str:
    """The first `length` base32 characters of the SHA-256 of `text`."""
    size = (5 * length + 7) // 8
    bits = int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:size], "big")
    letters = _BASE32
    return "".join([letters[bits >> shift & 31] for shift in range(8 * size - 5, 8 * size - 5 * length - 1, -5)])


def sha512_hex(text: str) -> str:
    """The SHA-512 of `text` in hexadecimal digits, of which the reference plugins make their names."""
    try:
        from _sha512 import sha512  # type: ignore[import-not-found]  # no stubs for it
    except ImportError:  # Python 3.12 and later
        from hashlib import sha512
    return str(sha512(text.encode("utf-8", "surrogatepass")).hexdigest())


def link_name_fault(value: str) -> str:
    """What keeps the kernel from taking `value` as a link's name; empty when nothing does."""
    if not value:
        return "it is empty"
    if len(value.encode("utf-8", "surrogatepass")) > 15:
        return "it is longer than 15 bytes"
    if value in (".", ".."):
        return "it is . or .."
    if any(c in "/:" or c.isspace() for c in value):
        return "it holds /, : or white space"
    return ""
