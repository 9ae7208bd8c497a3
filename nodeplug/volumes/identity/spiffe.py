"""SPIFFE names. Pure rules: SPIFFE-ID section 2, X509-SVID section 3. Imports core only."""

from __future__ import annotations

from nodeplug.core.record import Record

SCHEME = "spiffe://"
LONGEST = 2048  # bytes, SPIFFE-ID section 2.3
LONGEST_DOMAIN = 255

_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_IN_DOMAIN = frozenset(_LOWER + _DIGITS + "-._")
_IN_SEGMENT = frozenset(_LOWER + _LOWER.upper() + _DIGITS + "-._")


class SpiffeId(Record):
    """A name in a trust domain. `path` begins with a slash, or is empty for the domain's own authority."""

    trust_domain: str
    path: str = ""

    def __str__(self) -> str:
        return SCHEME + self.trust_domain + self.path


def parse_trust_domain(text: str) -> str:
    """A trust domain's name, as it stands or as the name of its authority (`spiffe://example.org`).

    Raises ValueError with the sentence that says what is wrong: another alphabet (capitals too: two spellings would be
    two domains), a port, a user, a percent escape, too long.
    """
    name = text.removeprefix(SCHEME)
    if not name:
        raise ValueError("a trust domain has a name, such as example.org")
    _check(name, _IN_DOMAIN, "a trust domain's name has a-z, 0-9, '-', '.' and '_' only")
    if len(name) > LONGEST_DOMAIN:
        raise ValueError(f"a trust domain's name has at most {LONGEST_DOMAIN} characters, not {len(name)}")
    return name


def parse(text: str) -> SpiffeId:
    """The name in `text`. Raises ValueError with the sentence that says what is wrong."""
    if len(text) > LONGEST:
        raise ValueError(f"a SPIFFE ID has at most {LONGEST} characters, not {len(text)}")
    if not text.startswith(SCHEME):
        raise ValueError(f"a SPIFFE ID begins with {SCHEME}")
    domain, slash, path = text.removeprefix(SCHEME).partition("/")
    for segment in path.split("/") if slash else ():
        parse_segment(segment)
    return SpiffeId(trust_domain=parse_trust_domain(domain), path=slash + path)


def parse_segment(text: str) -> str:
    """One step of a path. Raises ValueError."""
    if text in ("", ".", ".."):
        raise ValueError("a path has no empty steps, no '.' and no '..', and does not end with a slash")
    _check(text, _IN_SEGMENT, "a path has letters, digits, '-', '.' and '_' between its slashes")
    return text


def of_service_account(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    """The name of a Kubernetes service account's pods; without one they run as "default". Raises ValueError."""
    path = f"/ns/{parse_segment(namespace)}/sa/{parse_segment(service_account or 'default')}"
    return parse(SCHEME + parse_trust_domain(trust_domain) + path)


def _check(text: str, allowed: frozenset[str], sentence: str) -> None:
    for character in text:
        if character not in allowed:
            raise ValueError(f"{sentence}, and {character!r} is none of them")
