"""Records: values by name, frozen, compared by content."""

from __future__ import annotations

import pytest

from nodeplug.core.record import Record


class Point(Record):
    x: int
    y: int = 0


class Named(Point):
    name: str = ""


def test_fields_come_from_the_class_and_its_bases() -> None:
    assert Named(x=1, name="a").__dict__ == {"x": 1, "y": 0, "name": "a"}


def test_equal_content_is_equal_and_hashes_alike() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert hash(Point(x=1)) == hash(Point(x=1))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Named(x=1)


def test_a_record_is_frozen_and_replace_makes_another() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match="frozen"):
        point.x = 2  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError, match="frozen"):
        del point.x
    assert (point.replace(y=5), point) == (Point(x=1, y=5), Point(x=1))


def test_missing_and_unknown_fields_are_named() -> None:
    with pytest.raises(TypeError, match="needs x"):
        Point(y=1)  # type: ignore[call-arg]  # that is the point
    with pytest.raises(TypeError, match="no field z"):
        Point(x=1, z=2)  # type: ignore[call-arg]  # likewise


def test_a_shared_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="default is shared"):

        class Bad(Record):
            items: list[int] = []  # noqa: RUF012  # that is the point


def test_repr_names_the_fields() -> None:
    assert repr(Point(x=1)) == "Point(x=1, y=0)"
