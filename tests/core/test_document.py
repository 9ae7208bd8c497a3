"""Documents into records: every problem found, each with its path and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core import document
from nodeplug.core.document import array, boolean, choice, decode, integer, nested, reference, secret, table, text
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Net
from nodeplug.core.record import Record, key
from nodeplug.core.secret import Secret


class Inner(Record):
    level: int = key(integer(0, 9), help="how deep")


class Outer(Record):
    name: str = key(text, help="what it is called")
    ip_masq: bool = key(boolean, default=False, name="ipMasq", help="masquerade")
    mtu: int = key(integer(0, 65535), default=0, help="bytes")
    inner: tuple[Inner, ...] = key(array(nested(Inner)), default=(), help="levels")
    labels: dict[str, str] | None = key(table(text), default=None, help="free words")
    mode: str = key(choice("packed", "spread"), default="packed", help="how to place")
    subnet: Net | None = key(document.net, default=None, help="where")
    password: Secret | None = key(secret, default=None, help="kept to itself")


def problems(data: object, **options: Any) -> dict[str, str]:
    with pytest.raises(ConfigInvalid) as caught:
        decode(Outer, data, **options)
    return dict(caught.value.problems)


def test_a_document_becomes_a_record() -> None:
    found = decode(Outer, {"name": "a", "ipMasq": True, "inner": [{"level": 3}], "subnet": "10.0.0.0/8"})
    assert (found.name, found.ip_masq, found.inner, found.subnet) == (
        "a",
        True,
        (Inner(level=3),),
        Net.parse("10.0.0.0/8"),
    )


def test_all_problems_are_told_with_their_paths() -> None:
    found = problems({"mtu": 70000, "inner": [{"level": 1}, {"level": "x"}, {}], "mode": "spraed", "labels": {"a": 1}})
    assert found == {
        "$.name": "required, but missing (what it is called)",
        "$.mtu": "expected a whole number from 0 to 65535, got 70000",
        "$.inner[1].level": "expected a whole number from 0 to 9, got a string",
        "$.inner[2].level": "required, but missing (how deep)",
        "$.mode": 'expected one of "packed", "spread", got "spraed"; did you mean spread?',
        "$.labels.a": "expected a string, got a whole number",
    }


def test_an_unknown_key_is_refused_with_the_nearest_one_or_ignored() -> None:
    assert problems({"name": "a", "imMasq": True}) == {"$.imMasq": "no such key; did you mean ipMasq?"}
    assert decode(Outer, {"name": "a", "other": 1}, unknown="ignore").name == "a"


def test_case_is_folded_where_asked_and_the_last_spelling_wins() -> None:
    assert decode(Outer, {"NAME": "a", "IPMasq": True, "ipmasq": False}, fold_case=True) == Outer(name="a")
    assert "$.NAME" in problems({"NAME": "a"})


def test_null_leaves_the_default_as_go_does() -> None:
    assert decode(Outer, {"name": "a", "mtu": None}).mtu == 0
    assert problems({"name": None}) == {"$.name": "required, but missing (what it is called)"}


@pytest.mark.parametrize("wrong", ["true", 1, 1.0, [], {}])
def test_a_wrong_type_is_an_error_and_never_converted(wrong: object) -> None:
    assert "expected true or false" in problems({"name": "a", "ipMasq": wrong})["$.ipMasq"]


@pytest.mark.parametrize("wrong", [1500.0, True, "1500", -1])
def test_a_whole_number_is_whole_and_no_boolean(wrong: object) -> None:
    assert "expected a whole number" in problems({"name": "a", "mtu": wrong})["$.mtu"]


def test_a_secret_in_the_wrong_place_is_not_shown() -> None:
    found = problems({"name": {"password": "hunter2"}, "password": ["hunter2"], "labels": ["hunter2"]})
    assert "hunter2" not in str(found)
    assert "hunter2" not in repr(decode(Outer, {"name": "a", "password": "hunter2"}))


@pytest.mark.parametrize(
    ("given_", "seconds"), [(5, 5.0), ("5", 5.0), ("250ms", 0.25), ("2m", 120.0), ("12h", 43200.0), ("1d", 86400.0)]
)
def test_durations_have_units(given_: object, seconds: float) -> None:
    class Timed(Record):
        wait: float = key(document.duration)

    assert decode(Timed, {"wait": given_}).wait == seconds


@pytest.mark.parametrize("given_", ["", "x", "5y", "-1s", True, [], "s"])
def test_a_bad_duration_says_what_is_expected(given_: object) -> None:
    class Timed(Record):
        wait: float = key(document.duration)

    with pytest.raises(ConfigInvalid, match="duration"):
        decode(Timed, {"wait": given_})


@pytest.mark.parametrize(
    ("given_", "count"), [(7, 7), ("64Mi", 64 << 20), ("1k", 1000), ("0.5Ki", 512), ("3G", 3 * 10**9)]
)
def test_sizes_have_units(given_: object, count: int) -> None:
    class Sized(Record):
        most: int = key(document.size)

    assert decode(Sized, {"most": given_}).most == count


@pytest.mark.parametrize("given_", ["0.5", "x", "-1", -1, 1.5, True, "1Xi", "inf", "nan"])
def test_a_bad_size_says_what_is_expected(given_: object) -> None:
    class Sized(Record):
        most: int = key(document.size)

    with pytest.raises(ConfigInvalid, match="size"):
        decode(Sized, {"most": given_})


def test_the_reference_lists_every_key_with_its_default_and_meaning() -> None:
    page = reference(Outer, "thing")
    assert "| `name` | a string | required | what it is called |" in page
    assert "| `ipMasq` | true or false | `false` | masquerade |" in page
    assert '| `mode` | one of "packed", "spread" | `"packed"` | how to place |' in page
    assert "### `thing.inner`" in page and "| `level` |" in page


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["name", "ipMasq", "mtu", "inner", "labels", "mode", "subnet", "password", "IPMASQ", "x"])


@given(st.dictionaries(keys, json_values, max_size=8) | json_values, st.booleans())
def test_any_document_gives_a_record_or_problems_never_another_error(data: object, fold: bool) -> None:
    try:
        found = decode(Outer, data, unknown="ignore", fold_case=fold)
    except ConfigInvalid as invalid:
        assert invalid.problems
    else:
        assert isinstance(found.name, str)
        assert isinstance(found.mtu, int)
