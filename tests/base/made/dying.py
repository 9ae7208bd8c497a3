import os
import signal


def test_goes_well() -> None:
    pass


def test_kills_its_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
