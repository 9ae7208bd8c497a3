"""Network namespaces for tests: make one, call Python or run a child inside it, look at it with iproute2's eyes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nodeplug.kernel import libc
from tests.child import Finished, run

T = TypeVar("T")

RUN_NETNS = Path("/run/netns")
_MS_BIND = 0x1000
_MNT_DETACH = 2
_SIOCSIFFLAGS = 0x8914


class Space:
    """A named network namespace, with lo up. Made by `Ledger.netns`; `HERE` is the one the tests run in."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path

    @classmethod
    def make(cls, name: str) -> Space:
        """A new namespace, named as `ip netns` names them."""
        path = RUN_NETNS / name
        path.touch(exist_ok=False)

        def enter_and_name() -> None:
            libc.unshare(libc.CLONE_NEWNET)
            libc.mount("/proc/thread-self/ns/net", str(path), "none", _MS_BIND)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", 1))

        in_a_thread(enter_and_name)
        return cls(name, str(path))

    def remove(self) -> None:
        """Drop the name; the namespace ends with its last user. No matter whether the name still exists."""
        with contextlib.suppress(OSError):
            libc.umount2(self.path, _MNT_DETACH)
        Path(self.path).unlink(missing_ok=True)

    def call(self, function: Callable[[], T]) -> T:
        """What `function()` returns when called inside, in a thread made for it. It must start no child."""

        def enter_and_call() -> T:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc.setns(fd, libc.CLONE_NEWNET)
            finally:
                os.close(fd)
            return function()

        return in_a_thread(enter_and_call)

    def run(self, *argv: str, **options: Any) -> Finished:
        """`tests.child.run` inside."""
        return run(argv, netns=self.path, **options)

    def ip(self, *arguments: str) -> Any:
        """What `ip -j ...` shows inside, as Python values; [] when it prints nothing."""
        shown = self.run("ip", "-j", "-d", *arguments).ok()
        return shown.json() if shown.text else []

    def links(self) -> set[str]:
        """The names of its links."""
        return set(self.call(lambda: [name for _index, name in socket.if_nameindex()]))


HERE = Space("", "/proc/self/ns/net")


def in_a_thread(function: Callable[[], T]) -> T:
    """Call `function` in a new thread that ends with it: namespaces belong to threads."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
