"""Options as a pod's author writes them: strings, read once, and read again from what a state file has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeplug.core import document
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key
from nodeplug.volumes import options, state
from nodeplug.volumes.contract import Request
from nodeplug.volumes.service import DRIVERS, implementation
from nodeplug.volumes.sizes import exact, shown


class Every(Record):
    """One option of each kind."""

    flag: bool = key(options.flag, default=False)
    count: int = key(options.count(1, 10), default=1)
    id: int = key(options.number_id, default=0)
    mode: int = key(options.mode, default=0)
    size: int = key(options.some_size, default=1)
    words: tuple[str, ...] = key(options.words, default=())
    label: str = key(options.label, default="")


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("flag", "true", True),
        ("flag", "false", False),
        ("count", "10", 10),
        ("id", "4294967294", 4294967294),
        ("mode", "0750", 0o750),
        ("mode", "2775", 0o2775),
        ("size", "64Mi", 64 << 20),
        ("size", "1000", 1000),
        ("words", "a, b ,c", ("a", "b", "c")),
        ("words", "", ()),
        ("words", "/a\\,b,/c\\d,/e\\\\", ("/a,b", "/c\\d", "/e\\")),
        ("label", "cache-0", "cache-0"),
    ],
)
def test_a_string_is_read_and_what_was_read_is_read_again(name: str, written: str, meant: Any) -> None:
    assert getattr(document.decode(Every, {name: written}), name) == meant
    kept = list(meant) if isinstance(meant, tuple) else meant
    assert getattr(document.decode(Every, json.loads(json.dumps({name: kept}))), name) == meant


@pytest.mark.parametrize(
    ("name", "written"),
    [
        *(("flag", value) for value in ("True", "1", "yes", "", 1, 0)),
        *(("count", value) for value in ("0", "11", "1.0", " 1", "-1", "+1", "٣", "1" * 30, True, 1.0)),
        *(("id", value) for value in ("4294967295", "-1", "root")),
        *(("mode", value) for value in ("", "08", "778", "0o7", "170000", "77777", 8 << 12, True, -1)),
        *(("size", value) for value in ("0", "-1", "1.5", "1Q", "", "inf", "nan", "Mi", True, "9Ei")),
        *(("words", value) for value in ("a,,b", ",", "a,", 7, ["a", 7])),
        *(("label", value) for value in ("A", "-a", "a-", "a.b", "a/b", "..", "a" * 64, "ä")),
    ],
)
def test_what_is_none_is_refused_at_its_path(name: str, written: object) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        document.decode(Every, {name: written})
    assert {path for path, _ in caught.value.problems} <= {f"$.{name}", f"$.{name}[1]"}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Every._keys)), st.one_of(st.text(), st.integers(), st.none())))
def test_any_options_are_read_or_refused(given: dict[str, object]) -> None:
    try:
        document.decode(Every, given)
    except ConfigInvalid as error:
        assert error.problems


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)))
def test_words_are_read_back_whatever_is_in_them(words: list[str]) -> None:
    written = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
    assert document.decode(Every, {"words": written}).words == tuple(words)


@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_the_options_of_every_volume_survive_their_state(driver: str) -> None:
    kind = implementation(driver).options
    sized = {"tmpfs": {"size": "1Mi"}, "loop": {"size": "1Gi"}, "log": {"size": "1Gi"}, "overlay": {"size": "1Mi"}}
    least = {**sized, "bind": {"path": "/a"}}
    read = document.decode(kind, least.get(driver, {}))
    request = Request(driver=driver, volume="v", target="/t", options=read)
    assert document.decode(kind, json.loads(json.dumps(state.record_of(request, 0.0).options))) == read


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigInvalid, match="did you mean size") as caught:
        document.decode(implementation("tmpfs").options, {"sise": "1Mi"})
    assert ("$.size", "required, but missing (bytes it may hold)") in caught.value.problems


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1Ki"), (64 << 20, "64Mi"), (3 << 29, "1.5Gi"), (5 << 50, "5Pi")],
)
def test_sizes_are_shown_as_they_are_written(size: int, words: str) -> None:
    assert shown(size) == words


@settings(deadline=None)
@given(st.integers(1, 1 << 20), st.sampled_from([1, 1 << 10, 1 << 20, 1 << 40]))
def test_an_exact_size_is_read_back(size: int, unit: int) -> None:
    assert document.decode(Every, json.loads(f'{{"size": {exact(size * unit)}}}')).size == size * unit
