"""The kernel's device events over netlink: add, remove, change, move, bind, unbind, each with its place in sysfs.

`devices` listens; nothing else does. Group 1 is the kernel's own; it is broadcast to every network namespace that the
first user namespace owns, so a plain pod hears it, and inside another user namespace nothing ever arrives.
See lib/kobject_uevent.c. Raises OSError.
"""

from __future__ import annotations

import errno
from _socket import AF_NETLINK, MSG_DONTWAIT, MSG_TRUNC, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket

from nodeplug.core.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_SO_RCVBUF = 8
_SO_RCVBUFFORCE = 33
_QUEUE = 4 << 20  # bytes; a storm of 10,000 events is about 2.5 MB with the kernel's bookkeeping
_LARGEST = 8192  # UEVENT_BUFFER_SIZE is 2 KiB for the variables, the header comes on top
_MOST = 4096  # events of one call


class Uevent(Record):
    """One event. `devpath` is the place below /sys, with its leading slash; `variables` has all of it as sent."""

    action: str
    devpath: str
    subsystem: str = ""
    devname: str = ""
    sequence: int = 0
    variables: Mapping[str, str]


def parse(data: bytes) -> Uevent | None:
    """One datagram; None for what the kernel does not send (udev's own messages begin with "libudev")."""
    head, *rest = data.split(b"\0")
    action, at, devpath = head.decode("utf-8", "surrogateescape").partition("@")
    if not at or not devpath.startswith("/") or not action.isalpha():
        return None
    variables: dict[str, str] = {}
    for item in rest:
        name, equals, value = item.decode("utf-8", "surrogateescape").partition("=")
        if equals and name:
            variables[name] = value
    sequence = variables.get("SEQNUM", "")
    return Uevent(
        action=action,
        devpath=devpath,
        subsystem=variables.get("SUBSYSTEM", ""),
        devname=variables.get("DEVNAME", ""),
        sequence=int(sequence) if sequence.isascii() and sequence.isdigit() else 0,
        variables=variables,
    )


class Listener:
    """A socket on which the kernel's events arrive. Not shared between threads; `fileno` is for poll."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        try:
            try:
                self._socket.setsockopt(SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)
            except PermissionError:
                self._socket.setsockopt(SOL_SOCKET, _SO_RCVBUF, _QUEUE)
            self._socket.bind((0, _KERNEL_GROUP))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> tuple[list[Uevent], bool]:
        """The events that wait, without blocking, and whether the kernel had to drop some (look at everything then).

        At most 4096 in one call; the rest stays readable.
        """
        found: list[Uevent] = []
        dropped = False
        for _ in range(_MOST):
            try:
                data, sender = self._socket.recvfrom(_LARGEST, MSG_DONTWAIT | MSG_TRUNC)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    dropped = True
                    continue
                if error.errno == errno.EINTR:
                    continue
                raise
            # Only the kernel's word counts: a process with CAP_NET_ADMIN may send to the group too, from its own port.
            if sender[0] != 0:
                continue
            event = parse(data)
            if event is not None:
                found.append(event)
        return found, dropped
