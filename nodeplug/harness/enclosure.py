"""A world of its own for a function: network, mounts, processes and IPC that end with it, however it ends.

What runs inside finds lo up and no other link, an empty /run, /var/lib and /var/log in memory, and no settings of
nodeplug's. Nothing of it reaches the node. The kernel takes everything back when the first process inside ends, and
that one ends with the caller, by SIGKILL if need be. Control groups are the exception: they are not shut in, so who
makes some removes them. Used by the demo.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from nodeplug.core.errors import PermissionRefused, Unavailable
from nodeplug.kernel import libc, mount

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_SIZE = 1 << 30
_EMPTY = ("/run", "/var/lib", "/var/log", "/etc/nodeplug")
_RUN = {"netns": 0o755, "lock": 0o1777, "tmp": 0o1777}
_FAILED = 70  # EX_SOFTWARE


class Ending:
    """Whether the body was asked to end, by SIGINT; it is told so by KeyboardInterrupt, too.

    An exception of a signal's handler comes up wherever the main thread is, and some places drop it: finalizers and
    other calls that the interpreter, or a C library through it, makes by itself. What is long asks between its steps.
    """

    def __init__(self) -> None:
        self.asked = False

    def ask(self, _number: int, _frame: object) -> None:
        """The signal's handler."""
        self.asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt when the end was asked for."""
        if self.asked:
            raise KeyboardInterrupt


def run(body: Callable[[Ending], int]) -> int:
    """Call `body` in a process inside; returns what it returned, or 128 + the signal that ended it or asked it to end.

    SIGINT reaches it from the terminal; SIGTERM and SIGHUP are passed on to it as SIGINT; a second one of any kills
    everything inside. May be called once by a process, and changes its signal handlers. Raises `PermissionRefused`
    without root and `Unavailable` where namespaces cannot be made.
    """
    if os.geteuid() != 0:
        raise PermissionRefused("namespaces need root", hint="run it as root, with sudo for example")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        libc.unshare(_CLONE_NEWPID)  # of the children only
        first = os.fork()
    except OSError as error:
        raise Unavailable(f"cannot make a pid namespace: {error.strerror}") from error
    if first == 0:
        os._exit(_first_process(body))
    asked: list[int] = []

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            os.kill(first, signal.SIGKILL)
        elif number != signal.SIGINT:  # which a terminal sends to everyone by itself
            os.kill(first, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    _, status = os.waitpid(first, 0)
    return _shell_status(status)


def _first_process(body: Callable[[Ending], int]) -> int:
    """Be init: make the rest of the world, run `body` in a child, reap what is orphaned until it ends."""
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWNET | _CLONE_NEWIPC)
        _furnish()
        # A child that finds its parent ignoring SIGINT would ignore it too.
        child = os.fork()
        if child == 0:
            os._exit(_call(body))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda _number, _frame: os.kill(child, signal.SIGINT))
        while True:
            ended, status = os.wait()
            if ended == child:
                return _shell_status(status)
    except OSError as error:
        sys.stderr.write(f"cannot make namespaces: {error}\n")
        return _FAILED


def _call(body: Callable[[Ending], int]) -> int:
    ending = Ending()
    code = 0
    try:
        # A shell's job in the background, and what it starts, is born ignoring SIGINT.
        signal.signal(signal.SIGINT, ending.ask)
        code = body(ending)
    except KeyboardInterrupt:
        pass
    except SystemExit as ended:  # of a library, when the reader of stdout has gone
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = _FAILED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass  # the reader has gone
    return 128 + signal.SIGINT if ending.asked else code


def _shell_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _furnish() -> None:
    mount.make_private("/", recursive=True)
    libc.mount("proc", "/proc", "proc", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    for path in _EMPTY:
        if os.path.isdir(path):
            mount.tmpfs(path, size=_SIZE)
    for name, mode in _RUN.items():
        directory = Path("/run", name)
        directory.mkdir()
        directory.chmod(mode)
    # sysfs shows the network namespace it was mounted in, so the node's would still list, and change, its links.
    groups = Path("/run/cgroup")
    groups.mkdir()
    mount.bind("/sys/fs/cgroup", str(groups), recursive=True)
    libc.mount("sysfs", "/sys", "sysfs", 0)
    libc.mount(str(groups), "/sys/fs/cgroup", "", mount.MS_MOVE)
    groups.rmdir()
    os.environ["TMPDIR"] = "/run/tmp"
