"""JSON text agrees with the json package, in both directions, and its errors say where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core import jsontext
from nodeplug.core.errors import Malformed

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=25,
)


@given(values)
def test_what_is_written_reads_back(value: object) -> None:
    assert json.loads(jsontext.dumps(value)) == value
    assert (
        jsontext.loads(jsontext.dumps(value, indent=4).encode("utf-8", "surrogatepass")) == value
        if _plain(value)
        else 1
    )


def _plain(value: object) -> bool:
    return "\\ud" not in json.dumps(value)


@given(values)
def test_what_the_package_writes_is_read(value: object) -> None:
    assert jsontext.loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}",:0e-. \\u1atnf', max_size=40).map(str.encode))
def test_bytes_are_read_exactly_where_the_package_reads_them(data: bytes) -> None:
    def strict(name: str) -> object:
        raise ValueError(name)

    try:
        wanted = json.loads(data.decode("utf-8"), parse_constant=strict)
    except ValueError:
        with pytest.raises(Malformed):
            jsontext.loads(data)
    else:
        assert jsontext.loads(data) == wanted


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b"[1] x", "more text follows the document at line 1 column 4"),
        (b"[NaN]", "NaN is not JSON"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b"[" * 500 + b"]" * 500, "nested deeper than 200"),
        (b'{"a":' * 100_000, "nested deeper than 200"),
    ],
)
def test_an_error_says_where(data: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        jsontext.loads(data)


def test_brackets_in_strings_are_no_nesting() -> None:
    assert jsontext.loads(json.dumps(["[" * 1000, '\\"[' * 300]).encode()) == ["[" * 1000, '\\"[' * 300]


def test_errors_are_worded_without_the_package_loaded_before() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from nodeplug.core import jsontext, errors\n"
        "assert 'json' not in sys.modules\n"
        "try: jsontext.loads(b'{\"a\" 1}')\n"
        "except errors.Malformed as error: print(error)"
    )
    root = str(Path(__file__).resolve().parents[2])
    said = subprocess.run([sys.executable, "-IS", "-c", code, root], capture_output=True, text=True, check=True)
    assert said.stdout == "not JSON: Expecting ':' delimiter: line 1 column 6 (char 5)\n"


def test_what_has_no_form_is_refused() -> None:
    for value in (object(), {1: 2}, float("nan"), {"a": b"x"}):
        with pytest.raises(TypeError):
            jsontext.dumps(value)


def test_indented_text_is_laid_out_as_go_does() -> None:
    assert (
        jsontext.dumps({"a": [1, {}], "b": []}, indent=4)
        == '{\n    "a": [\n        1,\n        {}\n    ],\n    "b": []\n}'
    )


def test_keys_that_an_object_has_twice_are_told() -> None:
    text = b'{"A": {"b": {"x": 1, "y": 2, "x": 3, "x": 4}, "c": [1]}, "x": 1}'
    assert jsontext.repeated(text, "a", "B") == ("x",)
    for path in ((), ("a",), ("a", "c"), ("a", "b", "x"), ("none",)):
        assert jsontext.repeated(text, *path) == ()
