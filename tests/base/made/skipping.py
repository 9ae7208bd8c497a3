from tests.needs import needs


@needs("program:no-such-program")
def test_unannounced() -> None:
    pass
