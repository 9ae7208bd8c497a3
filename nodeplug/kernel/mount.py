"""Mounting, and what is mounted. See mount(2) and proc(5) on mountinfo. For volumes and named namespaces."""

from __future__ import annotations

import errno
import os

from nodeplug.core.record import Record
from nodeplug.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

OWN = "/proc/thread-self/mountinfo"
"""The calling thread's: a thread may have a mount namespace of its own."""
_LARGEST = 32 * 1024 * 1024


class Mount(Record):
    """One line of mountinfo."""

    id: int
    parent: int
    """Id of the mount it hangs on; a top of the tree may hang on one that is not listed."""
    device: tuple[int, int]
    """(major, minor), as in st_dev of its files."""
    root: str
    """The directory of the file system that is seen here; what was bound, within its file system."""
    point: str
    options: tuple[str, ...]
    """Of this mount: "ro", "nosuid" ..."""
    propagation: tuple[str, ...]
    """"shared:7", "master:2" ...; empty for private."""
    fstype: str
    source: str
    super_options: tuple[str, ...]
    """Of the file system."""


def parse(line: bytes) -> Mount:
    """The mount in one line of mountinfo. Raises ValueError when it is none."""
    left, dash, right = line.rstrip(b"\n").partition(b" - ")
    fields, rest = left.split(b" "), right.split(b" ")
    if not dash or len(fields) < 6 or len(rest) < 3:
        raise ValueError(f"not a line of mountinfo: {line[:200]!r}")
    major, _, minor = fields[2].partition(b":")
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=(int(major), int(minor)),
        root=_plain(fields[3]),
        point=_plain(fields[4]),
        options=_options(fields[5]),
        propagation=tuple([_plain(field) for field in fields[6:] if field]),
        fstype=_plain(rest[0]),
        source=_plain(rest[1]),
        super_options=_options(rest[2]),
    )


def mounts(mountinfo: str = OWN) -> list[Mount]:
    """Every mount of the namespace that `mountinfo` is of, in the kernel's order: what covers comes after."""
    return [parse(line) for line in _lines(mountinfo)]


def find(path: str, mountinfo: str = OWN) -> Mount | None:
    """What is mounted on `path`, the topmost of several; None when nothing is.

    The path is absolute (else ValueError), and its last part is not followed when it is a symbolic link. Links before
    it are followed as the calling thread sees them, also when `mountinfo` is another's.
    """
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not an absolute path")
    head, tail = os.path.split(path.rstrip("/") or "/")
    point = os.path.realpath(path) if tail in ("", ".", "..") else os.path.join(os.path.realpath(head), tail)
    needle = b" " + _escaped(point) + b" "
    found = None
    for line in _lines(mountinfo):
        if needle in line:
            mount = parse(line)
            if mount.point == point:
                found = mount
    return found


def is_mounted(path: str, mountinfo: str = OWN) -> bool:
    """Whether something is mounted on `path`."""
    return find(path, mountinfo) is not None


def bind(source: str, target: str, *, flags: int = 0, recursive: bool = False) -> None:
    """Show `source` at `target` as well; `flags` (MS_RDONLY, MS_NOSUID ...) are for this mount only.

    With `recursive` what is mounted below `source` comes along, with the flags it has. The kernel takes
    `flags` in a second step; when it refuses that, the first is undone. After kill -9 between the two a mount without
    the flags is there, and its `options` tell.
    """
    libc.mount(source, target, "", MS_BIND | (MS_REC if recursive else 0))
    if flags:
        try:
            remount(target, flags)
        except BaseException:
            libc.umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW)
            raise


def remount(target: str, flags: int) -> None:
    """Give the mount at `target` exactly these MS_* flags; the file system below stays as it is."""
    libc.mount("", target, "", MS_REMOUNT | MS_BIND | flags)


def make_private(target: str, *, recursive: bool = False) -> None:
    """Let mounts below `target` stay in this namespace."""
    libc.mount("", target, "", MS_PRIVATE | (MS_REC if recursive else 0))


def tmpfs(target: str, *, size: int, mode: int = 0o755, inodes: int = 0, flags: int = MS_NOSUID | MS_NODEV) -> None:
    """Mount a file system in memory that holds `size` bytes and as many files as `inodes` (0: the kernel's default)."""
    if size <= 0:
        raise ValueError(f"a tmpfs of {size} bytes: 0 would mean without limit")
    limit = f",nr_inodes={inodes}" if inodes else ""
    libc.mount("tmpfs", target, "tmpfs", flags, f"size={size},mode={mode:o}{limit}")


def unmount(target: str, *, detach: bool = False, again: bool = False) -> bool:
    """Unmount what is mounted on `target`, the topmost of several; False when nothing is, or no such path exists.

    Raises OSError(EBUSY) while it is in use, unless `detach`, which hides it at once and ends it with its last user.
    `again` is for who has just unmounted another there: that EINVAL then means nothing else needs no look at mountinfo.
    """
    try:
        libc.umount2(target, UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0))
    except OSError as error:
        if error.errno == errno.ENOENT or (error.errno == errno.EINVAL and (again or not is_mounted(target))):
            return False
        raise
    return True


def _lines(mountinfo: str) -> Iterator[bytes]:
    with open(mountinfo, "rb", buffering=0) as file:
        parts = []
        size = 0
        while part := file.read(1 << 16):
            parts.append(part)
            size += len(part)
            if size > _LARGEST:
                raise OSError(errno.EFBIG, f"more than {_LARGEST >> 20} MiB of mounts", mountinfo)
    return iter(b"".join(parts).splitlines())


def _plain(field: bytes) -> str:
    # Space, tab, newline, backslash and "#" are written as a backslash and three octal digits.
    first, *others = field.split(b"\\")
    parts = [first]
    for part in others:
        digits = part[:3]
        if len(digits) == 3 and all(48 <= digit <= 55 for digit in digits) and digits[0] < 52:
            parts.append(bytes((int(digits, 8),)) + part[3:])
        else:
            parts.append(b"\\" + part)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def _escaped(path: str) -> bytes:
    data = path.encode("utf-8", "surrogateescape")
    for character in b"\\ \t\n":
        data = data.replace(bytes((character,)), b"\\%03o" % character)
    return data


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(_plain(field).split(","))
