"""The C library's calls that Python does not have. The only module that imports ctypes.

ctypes costs 2.7 ms to import, so it is imported by the first call, not by this module. Every function raises `OSError`
with the call's name and object.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import CDLL

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

_loaded: list[CDLL] = []


def _libc() -> CDLL:
    if not _loaded:
        import ctypes

        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


def _failed(call: str, subject: str) -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", subject)


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace that `fd` is open on; `kind` is a CLONE_NEW* flag. See setns(2)."""
    if _libc().setns(fd, kind) != 0:
        raise _failed("setns", f"fd {fd}")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces of the kinds in `flags`. See unshare(2)."""
    if _libc().unshare(flags) != 0:
        raise _failed("unshare", f"flags {flags:#x}")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """See mount(2)."""
    if _libc().mount(source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode() or None) != 0:
        raise _failed("mount", target)


def umount2(target: str, flags: int) -> None:
    """See umount2(2)."""
    if _libc().umount2(os.fsencode(target), flags) != 0:
        raise _failed("umount2", target)


def mlockall(flags: int) -> None:
    """Lock the process's memory. See mlockall(2)."""
    if _libc().mlockall(flags) != 0:
        raise _failed("mlockall", f"flags {flags:#x}")


def prctl(option: int, argument: int) -> int:
    """Set or read one attribute of the process. See prctl(2)."""
    result: int = _libc().prctl(option, argument, 0, 0, 0)
    if result < 0:
        raise _failed("prctl", f"option {option}")
    return result
