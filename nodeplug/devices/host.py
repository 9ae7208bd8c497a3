"""What the kernel shows of devices: /dev, sysfs and udev's data, read in small bounded steps.

Used by the sources. The directories can be moved, which is how tests show a node that is not there. Raises nothing:
what cannot be read is empty, since devices vanish between any two calls.
"""

import os
import re
import stat
from dataclasses import dataclass

from nodeplug.core import paths

_LARGEST_ATTRIBUTE = 4096  # sysfs gives at most a page
_LARGEST_RECORD = 64 * 1024
_DEEPEST = 10
_MOST_CHILDREN = 4096
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*\Z")


@dataclass(frozen=True, slots=True)
class Host:
    """Where this node's devices are to be seen."""

    dev: str = "/dev"
    sys: str = "/sys"
    udev: str = "/run/udev/data"
    links: str = paths.RUN + "/devices"

    def stable(self, id: str, role: str) -> str:
        """The link of ours that always leads to the present node of the device `id`; see `links`."""
        return f"{self.links}/{id}/{role}"

    def attribute(self, path: str) -> str:
        """One sysfs attribute, its white space at the ends removed; "" when there is none."""
        return read_text(path, _LARGEST_ATTRIBUTE).strip()

    def variables(self, directory: str) -> dict[str, str]:
        """The `uevent` file of a device: DEVNAME, MAJOR, DRIVER, PCI_SLOT_NAME ..."""
        found = {}
        for line in read_text(f"{directory}/uevent", _LARGEST_ATTRIBUTE).splitlines():
            name, equals, value = line.partition("=")
            if equals:
                found[name] = value
        return found

    def udev_record(self, name: str) -> dict[str, list[str]]:
        """One file of udev's data by its line kinds: "E" (properties), "S" (links) ..."""
        found: dict[str, list[str]] = {}
        for line in read_text(f"{self.udev}/{name}", _LARGEST_RECORD).splitlines():
            kind, colon, value = line.partition(":")
            if colon:
                found.setdefault(kind, []).append(value)
        return found

    def link_name(self, path: str) -> str:
        """The last component of what a sysfs link (driver, subsystem, iommu_group) points to; "" without one."""
        try:
            return os.path.basename(os.readlink(path))
        except OSError:
            return ""

    def real(self, path: str) -> str:
        """The path without links."""
        return os.path.realpath(path)

    def entries(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def node_directory(self, number: tuple[str, int, int]) -> str:
        """Where sysfs describes the device of that number; "" when it does not."""
        kind, major, minor = number
        path = f"{self.sys}/dev/{'char' if kind == 'c' else 'block'}/{major}:{minor}"
        return self.real(path) if os.path.islink(path) else ""

    def children(self, top: str, subsystem: str, *, skip: re.Pattern[str] | None = None) -> list[tuple[str, str]]:
        """(sysfs directory, DEVNAME) of every node below `top` whose subsystem is `subsystem`, in order of path.

        Directories whose name `skip` matches are passed over: a hub's children are devices of their own. Bounded in
        depth and number.
        """
        found: list[tuple[str, str]] = []
        left = _MOST_CHILDREN
        waiting = [(top, 0)]
        while waiting and left > 0:
            directory, depth = waiting.pop()
            left -= 1
            if depth > 0 and self.link_name(f"{directory}/subsystem") == subsystem:
                name = self.variables(directory).get("DEVNAME", "")
                if name:
                    found.append((directory, name))
            if depth < _DEEPEST:
                waiting += [(path, depth + 1) for path in _directories(directory, skip)]
        return sorted(found)


def _directories(path: str, skip: re.Pattern[str] | None) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [
                entry.path
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not (skip is not None and skip.match(entry.name))
            ]
    except OSError:
        return []


def read_text(path: str, limit: int) -> str:
    """At most `limit` bytes of a file as text; bytes that are not UTF-8 become surrogates. "" when it is unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    try:
        return os.read(fd, limit).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    finally:
        os.close(fd)


def device_number(path: str) -> tuple[str, int, int] | None:
    """("c" or "b", major, minor) of the node at `path`, links followed; None when there is no device node."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISCHR(status.st_mode):
        return "c", os.major(status.st_rdev), os.minor(status.st_rdev)
    if stat.S_ISBLK(status.st_mode):
        return "b", os.major(status.st_rdev), os.minor(status.st_rdev)
    return None


def number_list(text: str) -> list[int]:
    """The kernel's list of numbers ("0-3,8"); empty for anything else, and for more than 4096 numbers."""
    found: list[int] = []
    if not _LIST.match(text):
        return found
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last) if dash else int(first)
        if high - low > 4096 or len(found) > 4096:
            return []
        found += range(low, high + 1)
    return found


def clean(text: str) -> str:
    """`text` with what a name, a log line or an environment must not hold (control and undecodable characters) as _."""
    return "".join(char if char.isprintable() and not "\ud800" <= char <= "\udfff" else "_" for char in text)
