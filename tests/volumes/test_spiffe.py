"""SPIFFE names against the specification's own words (SPIFFE-ID section 2)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodeplug.volumes.identity import spiffe

# Written from the specification's grammar, apart from the parser: scheme, host, then steps that are neither empty nor
# dots, and no more.
_STEP = r"(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9.\-_]+"
_ID = re.compile(rf"spiffe://[a-z0-9.\-_]{{1,255}}(?:/{_STEP})*\Z")

domains = st.text("abcxyz019-._", min_size=1, max_size=40)
steps = st.text("abcXYZ019-._", min_size=1, max_size=20).filter(lambda step: step not in (".", ".."))


@settings(deadline=None)
@given(domains, st.lists(steps, max_size=5))
def test_what_is_put_together_by_the_rules_is_read_as_it_was(domain: str, path: list[str]) -> None:
    text = "spiffe://" + "/".join([domain, *path])
    found = spiffe.parse(text)
    assert (found.trust_domain, found.path, str(found)) == (domain, "".join(f"/{step}" for step in path), text)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text("spiffe:/.-_aA0%?#@", max_size=40).map(lambda rest: "spiffe://" + rest))
@example("spiffe://example.org/")
@example("spiffe://example.org//a")
@example("spiffe://example.org/a/../b")
@example("spiffe://example.org/%61")
@example("spiffe://Example.org/a")
@example("spiffe://user@example.org/a")
@example("spiffe://example.org:443/a")
@example("spiffe://example.org/a?b")
@example("spiffe://example.org/a#b")
@example("SPIFFE://example.org/a")
@example("spiffe:///a")
@example("spiffe://example.org/a\n")
@example("spiffe://exämple.org/a")
def test_any_text_is_taken_exactly_if_the_specification_does(text: str) -> None:
    try:
        spiffe.parse(text)
        taken = True
    except ValueError:
        taken = False
    assert taken == (_ID.match(text) is not None)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("spiffe://" + "a" * 255, True),
        ("spiffe://" + "a" * 256, False),
        ("spiffe://a/" + "b" * (2048 - 11), True),
        ("spiffe://a/" + "b" * (2049 - 11), False),
    ],
)
def test_lengths_are_those_of_the_specification(text: str, *, taken: bool) -> None:
    if taken:
        assert str(spiffe.parse(text)) == text
    else:
        with pytest.raises(ValueError, match="at most"):
            spiffe.parse(text)


def test_a_service_accounts_name_is_its_namespace_and_itself() -> None:
    assert str(spiffe.of_service_account("example.org", "shop", "web")) == "spiffe://example.org/ns/shop/sa/web"
    assert str(spiffe.of_service_account("example.org", "shop", "")) == "spiffe://example.org/ns/shop/sa/default"


@pytest.mark.parametrize("namespace", ["", "..", "a/b", "a b", "ä"])
def test_a_namespace_that_would_be_more_than_one_step_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError):  # which sentence is the parser's business
        spiffe.of_service_account("example.org", namespace, "web")


def test_a_trust_domain_may_be_named_by_its_authority() -> None:
    assert spiffe.parse_trust_domain("spiffe://example.org") == "example.org"
