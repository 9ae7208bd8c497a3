"""SELinux: what a process makes in the kernel is labelled with the context that the process runs in. See selinux(8).

A running program cannot change its own for a moment: policies allow it at an execution only, and never one thread's
alone. So what is to be labelled is made by a child.
"""

from __future__ import annotations

import sys

from nodeplug.core import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LARGEST = 64 * 1024
_PYTHON = ("-I", "-S", "-c")

# Both say on stderr what was refused.
_ENTER = """
import os, sys
context, *argv = sys.argv[1:]
try:
    fd = os.open("/proc/thread-self/attr/exec", os.O_WRONLY)
    os.write(fd, os.fsencode(context) + b"\\0")
    os.close(fd)
    os.execv(argv[0], argv)
except OSError as error:
    sys.exit(f"the context: {error.strerror}")
"""
_IOCTL = """
import fcntl, sys
try:
    fcntl.ioctl(int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
except OSError as error:
    sys.exit(f"the link: {error.strerror}")
"""


def is_enabled() -> bool:
    """Whether this kernel labels anything."""
    return b"selinuxfs" in files.read_bounded("/proc/filesystems", _LARGEST).split()


def ioctl_in(context: str, fd: int, request: int, argument: bytes) -> Sequence[str]:
    """The command that makes an ioctl on the descriptor `fd`, which it must be given, in that context."""
    python = (sys.executable, *_PYTHON)
    return (*python, _ENTER, context, *python, _IOCTL, str(fd), str(request), argument.hex())
