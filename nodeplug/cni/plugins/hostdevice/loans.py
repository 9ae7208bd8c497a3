"""Which device of the host is in which pod, and what it was like before: one file for each, written before it moves.

    /run/nodeplug/cni/devices/np7k3...    {"network", "container", "ifname", "name": "ens5", "mac", ...}

The kernel gives a pod's hardware back to the host when the pod's namespace ends, under whatever name is free, and
nothing else says then what it was called. A link's own name on the host also is its alias while it is away, as with the
reference plugin, so that either takes back what the other lent.
"""

from __future__ import annotations

import os

from nodeplug.cni.contract import Attachment
from nodeplug.core import files, jsontext, paths
from nodeplug.core.errors import Malformed, doing
from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.kernel.rtnl.links import Link

DIRECTORY = paths.RUN + "/cni/devices"
_LARGEST = 64 * 1024


class Loan(Record):
    """A device that belongs to the host. MAC addresses are in hexadecimal digits, `netns` is (device, inode)."""

    network: str
    container: str
    ifname: str
    name: str
    """On the host."""
    alias: str
    """Which it had before."""
    mac: str
    permanent_mac: str
    kind: str
    path: str
    """Of the hardware in the kernel; empty for a virtual link, which ends with the namespace it is in."""
    netns_path: str
    netns: tuple[int, ...]
    finished: bool = False
    """Whether the ADD came to its end; what a killed one left may be taken back."""

    @property
    def attachment(self) -> Attachment:
        return Attachment(network=self.network, container=self.container, ifname=self.ifname)

    @property
    def outlives(self) -> bool:
        """Whether the kernel gives the device back when the pod's namespace ends."""
        return bool(self.path or self.permanent_mac)

    def is_of(self, link: Link) -> bool:
        """Whether `link` is the device."""
        if link.kind != self.kind or (link.alias != self.name and link.name != self.name):
            return False
        if self.permanent_mac:
            return link.permanent_mac.hex() == self.permanent_mac
        return link.mac.hex() == self.mac or link.alias == self.name


def keep(loan: Loan) -> None:
    """Write it down. Raises an error of core.errors."""
    document: dict[str, Any] = {**loan.__dict__, "netns": list(loan.netns)}
    path, data = _path(loan.attachment), jsontext.dumps(document).encode()
    with doing(f"cannot keep what {loan.name} was like in {path}"):
        try:
            files.write_atomic(path, data, 0o600, durable=False)
        except FileNotFoundError:
            files.ensure_directory(DIRECTORY, 0o700)
            files.write_atomic(path, data, 0o600, durable=False)


def finish(attachment: Attachment) -> None:
    """Note that the pod uses the device."""
    loan = find(attachment)
    if loan is not None:
        keep(loan.replace(finished=True))


def find(attachment: Attachment) -> Loan | None:
    """The attachment's; a file that cannot be read counts as none."""
    return _read(_path(attachment))


def every() -> list[Loan]:
    """All of the node."""
    try:
        names = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return []
    found = [_read(f"{DIRECTORY}/{name}") for name in names if name.startswith("np")]
    return [loan for loan in found if loan is not None]


def drop(attachment: Attachment) -> None:
    with doing(f"cannot remove {_path(attachment)}"):
        files.remove(_path(attachment))


def sweep() -> None:
    """Remove what writers left that were killed."""
    try:
        names = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(".np") and files.is_abandoned(name):
            files.remove(f"{DIRECTORY}/{name}")


def _path(attachment: Attachment) -> str:
    return f"{DIRECTORY}/{attachment.identity}"


def _read(path: str) -> Loan | None:
    try:
        found: Any = jsontext.loads(files.read_bounded(path, _LARGEST))
        loan = Loan(**{**found, "netns": tuple([int(part) for part in found["netns"]])})
    except (FileNotFoundError, Malformed, TypeError, ValueError, KeyError):
        return None
    texts = [value for name, value in loan.__dict__.items() if name not in ("netns", "finished")]
    return loan if all(isinstance(value, str) for value in texts) and isinstance(loan.finished, bool) else None
