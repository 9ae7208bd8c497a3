import time
from pathlib import Path

SIGN = Path(__file__).with_name("waiting.sign")


def test_goes_well() -> None:
    pass


def test_waits() -> None:
    try:
        SIGN.touch()
        time.sleep(100)
    finally:
        SIGN.unlink(missing_ok=True)
