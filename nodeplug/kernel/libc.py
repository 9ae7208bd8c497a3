"""The C library's calls that Python does not have. The only module that reaches for foreign functions.

It goes through `_ctypes`, the half of ctypes written in C, which loads in 0.5 ms where the package takes 2.7, and only
when the first call is made; Python 3.12 brings `setns` and `unshare` itself. Every function raises `OSError` with the
call's name and object, and ValueError for a path with a NUL in it.
"""

from __future__ import annotations

import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
AT_FDCWD = -100

# Calls younger than the C libraries of many nodes; from here on every architecture has the same number for one.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_FSPICK = 433
_OPENAT2 = 437
_MOUNT_SETATTR = 442

_SOL_SOCKET = 1
_SO_ATTACH_FILTER = 26
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: how many instructions, and where they are
_INSTRUCTION = 8


class _Library:
    """The functions of the C library that this process has loaded, looked up once each."""

    def __init__(self) -> None:
        import _ctypes

        class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # generic for mypy only
            _type_ = "i"

        class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # generic for mypy only
            _type_ = "L"

        class Char(_ctypes._SimpleCData):  # type: ignore[type-arg]  # generic for mypy only
            _type_ = "c"

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
            _restype_ = Int

        this_process = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None is this process
        self._functions: dict[str, Callable[..., int]] = {}
        self._find: Callable[[str], Callable[..., int]] = lambda name: Function(_ctypes.dlsym(this_process, name))
        self.long: Callable[[int], object] = Long
        self.memory: Callable[[bytes], Any] = lambda data: _filled((Char * len(data))(), data)
        self.address: Callable[[Any], int] = _ctypes.addressof
        self.errno: Callable[[], int] = _ctypes.get_errno  # the calling thread's

    def __getitem__(self, name: str) -> Callable[..., int]:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._find(name)
        return function


def _filled(memory: Any, data: bytes) -> Any:
    memory[:] = data
    return memory


_loaded: list[_Library] = []


def _c() -> _Library:
    if not _loaded:
        _loaded.append(_Library())
    return _loaded[0]


def hold(library: str) -> bool:
    """Load a shared library, by its name, and keep it for the life of the process; False where there is none.

    Whoever asks for it later has it, though its file may be out of reach by then.
    """
    import _ctypes

    try:
        _ctypes.dlopen(library, 0)
    except OSError:
        return False
    return True


def _call(name: str, subject: str, *arguments: object) -> int:
    library = _c()
    result = library[name](*arguments)
    if result == -1:
        number = library.errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", subject)
    return result


def _system(name: str, number: int, subject: str, *arguments: object) -> int:
    """A system call that the C library may not have, by its number."""
    library = _c()
    result = library["syscall"](
        library.long(number), *(library.long(part) if isinstance(part, int) else part for part in arguments)
    )
    if result == -1:
        number = library.errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", subject)
    return result


def _long(value: int) -> object:
    return _c().long(value)


def _bytes(text: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError(f"a NUL character in {text!r}")
    return data


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace that `fd` is open on; `kind` is a CLONE_NEW* flag. See setns(2)."""
    native = getattr(os, "setns", None)
    if native is None:
        _call("setns", f"fd {fd}", fd, kind)
        return
    try:
        native(fd, kind)
    except OSError as error:
        raise OSError(error.errno, f"setns: {error.strerror}", f"fd {fd}") from None


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces of the kinds in `flags`. See unshare(2)."""
    native = getattr(os, "unshare", None)
    if native is None:
        _call("unshare", f"flags {flags:#x}", flags)
        return
    try:
        native(flags)
    except OSError as error:
        raise OSError(error.errno, f"unshare: {error.strerror}", f"flags {flags:#x}") from None


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """See mount(2). `data` is the file system's own options; an error does not repeat them."""
    _call("mount", target, _bytes(source), _bytes(target), _bytes(fstype), _long(flags), _bytes(data) or None)


def umount2(target: str, flags: int) -> None:
    """See umount2(2)."""
    _call("umount2", target, _bytes(target), flags)


def open_tree(directory: int, path: str, flags: int) -> int:
    """A descriptor of the mount at `path`, or of a copy of it that is mounted nowhere. See open_tree(2)."""
    return _system("open_tree", _OPEN_TREE, path or f"fd {directory}", directory, _bytes(path), flags)


def move_mount(source: int, directory: int, path: str, flags: int) -> None:
    """Mount what descriptor `source` is of; `flags` say how both are meant. See move_mount(2)."""
    subject = path or f"fd {directory}"
    _system("move_mount", _MOVE_MOUNT, subject, source, b"", directory, _bytes(path), flags)


def fsopen(fstype: str, flags: int) -> int:
    """A descriptor on which a file system is configured. See fsopen(2)."""
    return _system("fsopen", _FSOPEN, fstype, _bytes(fstype), flags)


def fsconfig(fd: int, command: int, key: str, value: str | None, number: int) -> None:
    """See fsconfig(2). An error names the key and does not repeat its value."""
    arguments = (_bytes(key) or None, _bytes(value) if value is not None else None, number)
    _system("fsconfig", _FSCONFIG, key or f"command {command}", fd, command, *arguments)


def fsmount(fd: int, flags: int, attributes: int) -> int:
    """A descriptor of a mount of what was configured, mounted nowhere. See fsmount(2)."""
    return _system("fsmount", _FSMOUNT, f"fd {fd}", fd, flags, attributes)


def fspick(directory: int, path: str, flags: int) -> int:
    """A descriptor on which the file system of a mount is configured anew. See fspick(2)."""
    return _system("fspick", _FSPICK, path or f"fd {directory}", directory, _bytes(path), flags)


def openat2(directory: int, path: str, how: bytes) -> int:
    """`how` is a struct open_how. See openat2(2)."""
    return _system("openat2", _OPENAT2, path, directory, _bytes(path), how, len(how))


def mount_setattr(directory: int, path: str, flags: int, attributes: bytes) -> None:
    """`attributes` is a struct mount_attr. See mount_setattr(2)."""
    subject = path or f"fd {directory}"
    _system("mount_setattr", _MOUNT_SETATTR, subject, directory, _bytes(path), flags, attributes, len(attributes))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve, free or move a range of a file. See fallocate(2)."""
    _call("fallocate", f"fd {fd}", fd, mode, _long(offset), _long(length))


def inotify_init1(flags: int) -> int:
    """A new inotify descriptor. See inotify_init1(2)."""
    return _call("inotify_init1", f"flags {flags:#x}", flags)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """The watch descriptor for `path`. See inotify_add_watch(2)."""
    return _call("inotify_add_watch", path, fd, _bytes(path), _long(mask))


def inotify_rm_watch(fd: int, watch: int) -> None:
    """See inotify_rm_watch(2)."""
    _call("inotify_rm_watch", f"watch {watch}", fd, watch)


def mlockall(flags: int) -> None:
    """Lock the process's memory. See mlockall(2)."""
    _call("mlockall", f"flags {flags:#x}", flags)


def prctl(option: int, argument: int) -> int:
    """Set or read one attribute of the process. See prctl(2)."""
    return _call("prctl", f"option {option}", option, _long(argument), _long(0), _long(0), _long(0))


def getsockopt(fd: int, level: int, option: int, buffer: bytearray) -> None:
    """Let the kernel fill `buffer`, which also tells it what is asked: socket.getsockopt cannot. See getsockopt(2)."""
    library = _c()
    memory, length = library.memory(bytes(buffer)), library.memory(len(buffer).to_bytes(4, sys.byteorder))
    _call("getsockopt", f"option {option}", fd, level, option, memory, length)
    buffer[:] = bytes(memory)[: len(buffer)]


def attach_filter(fd: int, program: bytes) -> None:
    """Let a socket hear only what a classic BPF program accepts. See SO_ATTACH_FILTER in socket(7)."""
    library = _c()
    memory = library.memory(program)
    told = _PROGRAM.pack(len(program) // _INSTRUCTION, library.address(memory))
    _call("setsockopt", "SO_ATTACH_FILTER", fd, _SOL_SOCKET, _SO_ATTACH_FILTER, told, len(told))
