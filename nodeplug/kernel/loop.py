"""Loop devices: a file as a block device. See loop(4). For volumes in image files.

A device is attached with AUTOCLEAR, so it lives as long as somebody has it open or mounted and no longer: a process
killed between attaching and mounting leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from nodeplug.core.record import Record

READ_ONLY = 0x1
AUTOCLEAR = 0x4
DIRECT_IO = 0x10

CONTROL = "/dev/loop-control"
_DEVICES = "/sys/block"
_CLR_FD = 0x4C01
_GET_STATUS64 = 0x4C05
_SET_CAPACITY = 0x4C07
_CONFIGURE = 0x4C0A
_CTL_GET_FREE = 0x4C82
# struct loop_info64: device, inode, rdevice, offset, size limit, number, (key's type and size), flags, name, (rest)
_INFO = struct.Struct("=QQQQQIIII64s64s32sQQ")
_CONFIG = struct.Struct(f"=II{_INFO.size}s64x")
_NAME = 64
_ATTEMPTS = 256


class Device(Record):
    """A loop device in use."""

    number: int
    backing: str
    """Its file's path, as whoever attached it saw it; " (deleted)" is left out."""
    deleted: bool = False

    @property
    def path(self) -> str:
        return f"/dev/loop{self.number}"


def attach(file: int, name: str, *, flags: int = AUTOCLEAR | DIRECT_IO) -> tuple[int, Device]:
    """Attach the open file to a free device; returns the device's descriptor, which keeps it, and which it is.

    `name` is for people. Direct I/O is a wish, granted where the file's disk allows it. Raises OSError, ENODEV when
    there are no loop devices on this machine. With AUTOCLEAR closing the descriptor detaches it again, unless it is
    mounted by then.
    """
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(name)[-(_NAME - 1) :], b"", b"", 0, 0)
    configuration = _CONFIG.pack(file, 0, info)
    mode = os.O_RDONLY if flags & READ_ONLY else os.O_RDWR
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ENODEV, "no loop devices: the kernel module `loop` is not there", CONTROL) from None
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _CTL_GET_FREE)
            device = _try(f"/dev/loop{number}", mode, configuration)
            if device >= 0:
                return device, Device(number=number, backing=name)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"others took each of {_ATTEMPTS} free loop devices first", CONTROL)


def _try(path: str, mode: int, configuration: bytes) -> int:
    """The device's descriptor; -1 when another took it between the question which is free and this."""
    try:
        device = os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENXIO):
            return -1  # being claimed, or on its way out
        raise
    try:
        fcntl.ioctl(device, _CONFIGURE, configuration)
    except OSError as error:
        os.close(device)
        if error.errno == errno.EBUSY:
            return -1
        raise OSError(error.errno, f"LOOP_CONFIGURE: {error.strerror}", path) from None
    return device


def devices() -> list[Device]:
    """Every loop device in use on this machine, in containers too."""
    found = []
    for entry in os.listdir(_DEVICES):
        if entry.startswith("loop") and entry[4:].isdigit():
            device = _device(int(entry[4:]))
            if device is not None:
                found.append(device)
    return sorted(found, key=lambda device: device.number)


def _device(number: int) -> Device | None:
    try:
        with open(f"{_DEVICES}/loop{number}/loop/backing_file", "rb", buffering=0) as file:
            shown = os.fsdecode((file.read() or b"").rstrip(b"\n"))
    except OSError:
        return None  # free, or detached meanwhile
    backing = shown.removesuffix(" (deleted)")
    return Device(number=number, backing=backing, deleted=backing != shown)


def find(file: int, name: str) -> list[tuple[int, Device]]:
    """The devices whose file is this open one, each with a descriptor that keeps it; `name` is the file's own.

    Told by device and inode, whatever mount namespace it was attached from; of others with that name none is opened
    for long.
    """
    status = os.fstat(file)
    found = []
    for device in devices():
        if os.path.basename(device.backing) != name:
            continue
        try:
            fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile
        if _identity(fd) == (status.st_dev, status.st_ino):
            found.append((fd, device))
        else:
            os.close(fd)
    return found


def _identity(device: int) -> tuple[int, int] | None:
    """(st_dev, st_ino) of the file behind an open device; None when there is none."""
    try:
        info = _INFO.unpack(fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size)))
    except OSError:
        return None
    # The kernel shows its own form of a device number: 20 bits of minor.
    return _from_huge(info[0]), info[1]


def _from_huge(number: int) -> int:
    """st_dev of a device number as new_encode_dev or huge_encode_dev wrote it."""
    major = (number & 0xFFF00) >> 8
    minor = (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)


def flags_of(device: int) -> int:
    """READ_ONLY, AUTOCLEAR, DIRECT_IO as they are for an open device."""
    return int(_INFO.unpack(fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size)))[8])


def update_size(device: int) -> None:
    """Let an attached device have the size that its file has now."""
    fcntl.ioctl(device, _SET_CAPACITY)


def detach(path: str) -> bool:
    """Free the device; one in use is freed with its last user. False when it was free already."""
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    try:
        fcntl.ioctl(device, _CLR_FD)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise OSError(error.errno, f"LOOP_CLR_FD: {error.strerror}", path) from None
    finally:
        os.close(device)
    return True
