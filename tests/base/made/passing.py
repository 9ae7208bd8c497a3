import pytest


@pytest.mark.parametrize("number", range(3))
def test_passes(number: int) -> None:
    assert number < 3
