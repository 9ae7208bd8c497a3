"""Netlink attributes, there and back, and however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel.attributes import (
    attr,
    attr_list,
    attr_text,
    attr_u8,
    attr_u16,
    attr_u32,
    attrs,
    nest,
    number,
    text,
)

types = st.integers(0, 0x3FFF)


@given(st.lists(st.tuples(types, st.binary(max_size=40)), max_size=20))
def test_attributes_come_back_in_order(wanted: list[tuple[int, bytes]]) -> None:
    data = b"".join(attr(type, value) for type, value in wanted)
    assert len(data) % 4 == 0
    assert attr_list(data) == wanted
    assert attrs(data) == dict(wanted)
    assert attr_list(b"head" + data, 4) == wanted


@given(st.binary(max_size=200), st.integers(0, 220))
def test_any_bytes_are_read_without_going_past_their_end(data: bytes, offset: int) -> None:
    for _type, value in attr_list(data, offset):
        assert value in data
    assert sum(4 + len(value) for _type, value in attr_list(data, offset)) <= max(0, len(data) - offset)


@given(types, st.integers(0, 2**32 - 1))
def test_numbers_of_every_width(type: int, value: int) -> None:
    for make, bits in ((attr_u8, 8), (attr_u16, 16), (attr_u32, 32)):
        small = value % 2**bits
        ((read_type, read),) = attr_list(make(type, small))
        assert (read_type, number(read)) == (type, small)
    assert number(None) == number(b"") == 0


@given(st.text(st.characters(exclude_characters="\0"), max_size=40))
def test_text_comes_back_as_it_went(value: str) -> None:
    try:
        ((_type, read),) = attr_list(attr_text(3, value))
    except UnicodeEncodeError:
        return  # surrogates that stand for no byte
    assert text(read) == value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def test_text_keeps_bytes_that_are_not_utf_8_and_ends_at_a_nul() -> None:
    assert attr_list(attr_text(3, text(b"a\xff\0junk"))) == [(3, b"a\xff\0")]
    assert text(None) == ""
    with pytest.raises(ValueError, match="NUL"):
        attr_text(3, "eth0\0hidden")


def test_a_nest_is_marked_and_read_like_any_other() -> None:
    data = nest(9, attr_u8(1, 7), attr_u8(1, 8))
    assert data[3] & 0x80
    assert [number(value) for _type, value in attr_list(attrs(data)[9])] == [7, 8]


def test_a_value_too_long_for_an_attribute_is_refused() -> None:
    assert len(attr(1, bytes(65531))) == 65536
    with pytest.raises(ValueError, match="netlink attribute 1 of 65532 bytes"):
        attr(1, bytes(65532))
