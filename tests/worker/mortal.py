"""nodeplugd that dies when it is told to: `mortal.py FILE [nodeplugd's arguments]`.

FILE holds how many steps that change something the worker may still take, of whatever call, before kill -9, and
whether it is being killed. Whoever makes the calls sets the first before each (`Countdown`). Steps are those of
`tests.cni.faults`; no code of ours is replaced.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys

_NUMBER = struct.Struct("=i")
UNLIMITED = -1


class Countdown:
    """The numbers in the file, shared between the two processes."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 2 * _NUMBER.size)
            self._shared = mmap.mmap(fd, 2 * _NUMBER.size)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._shared.close()

    @property
    def left(self) -> int:
        """How many steps; any number when it is negative."""
        return int(_NUMBER.unpack_from(self._shared)[0])

    @left.setter
    def left(self, steps: int) -> None:
        _NUMBER.pack_into(self._shared, 0, steps)

    @property
    def dying(self) -> bool:
        return bool(_NUMBER.unpack_from(self._shared, _NUMBER.size)[0])

    @dying.setter
    def dying(self, whether: bool) -> None:
        _NUMBER.pack_into(self._shared, _NUMBER.size, int(whether))


def _main(path: str) -> None:
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.insert(0, checkout)
    from nodeplug.worker.main import main
    from tests.cni.faults import changes, is_step

    countdown = Countdown(path)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        left = countdown.left  # read once: the other process may set it meanwhile
        if left < 0 or not is_step(event, arguments) or not changes(event, arguments):
            return
        if left == 0:
            countdown.dying = True
            os.kill(os.getpid(), signal.SIGKILL)
        countdown.left = left - 1

    sys.addaudithook(hook)
    main()


if __name__ == "__main__":
    _main(sys.argv.pop(1))
