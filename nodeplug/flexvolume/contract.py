"""FlexVolume's nouns and the base class of a driver; no I/O, no wire.

Which verb has which arguments, and who sends it, stands in docs/flexvolume.md: what the kubelet does differs from what
its documentation says. The wire itself is `nodeplug.flexvolume.protocol`; who calls a driver is
`nodeplug.flexvolume.dispatch`.
"""

from __future__ import annotations

import time

from nodeplug.core.document import boolean
from nodeplug.core.errors import ConfigInvalid, TimedOut
from nodeplug.core.record import Record, key
from nodeplug.volumes.contract import Pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nodeplug.core.secret import Secret

__all__ = ["Pod"]


class Capabilities(Record):
    """What a driver says of itself when it is probed; every one is always said, for the kubelet has its own defaults.

    `attach` brings the verbs of attaching, which a controller manager calls too, in an image without Python or shell.
    With `fs_group` the kubelet changes group and mode of everything in the volume after each mount that is not
    read-only, with `selinux_relabel` its label. With `supports_metrics` it calls statfs(2) on the volume.
    """

    attach: bool = key(boolean, default=False)
    selinux_relabel: bool = key(boolean, default=True, name="selinuxRelabel")
    supports_metrics: bool = key(boolean, default=True, name="supportsMetrics")
    fs_group: bool = key(boolean, default=True, name="fsGroup")
    requires_fs_resize: bool = key(boolean, default=False, name="requiresFSResize")


class Request(Record):
    """What every verb but init is told."""

    deadline: float  # `time.monotonic()` seconds; the call is ended soon after it
    warn: Callable[[str], None]  # a sentence for the log; the verb still succeeds

    def left(self) -> float:
        """Seconds until the deadline, for a child's timeout. Raises `TimedOut` when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("the time for this call is over", hint="the kubelet tries again")
        return left


class VolumeRequest(Request):
    """The verbs that are given the volume's document. `options` is an instance of the driver's `options` class."""

    volume: str  # the persistent volume's name, or what the pod calls an inline one
    options: Any
    read_only: bool
    fs_type: str


class VolumeNameRequest(VolumeRequest):
    """getvolumename. The kubelet throws the answer away and calls again and again: better not support it."""


class AttachRequest(VolumeRequest):
    node: str


class IsAttachedRequest(VolumeRequest):
    node: str


class WaitForAttachRequest(VolumeRequest):
    device: str  # what attach returned


class DetachRequest(Request):
    volume: str
    node: str


class MountDeviceRequest(VolumeRequest):
    """No pod and no secrets here, whatever is written elsewhere."""

    directory: str  # for all pods of the node; made, not mounted
    device: str


class UnmountDeviceRequest(Request):
    directory: str


class MountRequest(VolumeRequest):
    target: str  # the pod's directory for the volume; made, and not mounted as far as the kubelet can see
    pod: Pod  # as the kubelet says; with options of the same keys a pod's author could only lie about it past the API
    fs_group: int | None
    secrets: Mapping[str, Secret]


class UnmountRequest(Request):
    """The directory is all that comes; the other two are read off it, empty where it has another form."""

    target: str
    pod_uid: str
    volume: str


class ExpandVolumeRequest(VolumeRequest):
    directory: str
    new_size: int  # bytes
    old_size: int


class ExpandFsRequest(VolumeRequest):
    device: str
    directory: str
    new_size: int  # bytes
    old_size: int


class Driver:
    """Subclass this, and `nodeplug.flexvolume.run(Mine)` is the executable.

    The verbs whose methods you define are supported, the others answered "Not supported", upon which the kubelet does
    what docs/flexvolume.md lists. Methods return or raise an error of `nodeplug.core.errors`; any other exception is
    answered as a fault. They may print: nobody hears it. One instance serves one call.
    """

    name = ""
    options: type[Record] = Record  # fields declared with `record.key`, whose parsers take strings
    capabilities = Capabilities()
    # Whether a mount that ends well leaves a mount point at its target. It is looked for before the kubelet hears of
    # success: a driver that mounted nothing would have the container write to the node's disk.
    mounts = True

    def init(self) -> None:
        """Raise where the driver can never work on this node; the kubelet then does not load it, and tries on."""

    def volume_name(self, request: VolumeNameRequest) -> str:
        raise _undefined(self, "getvolumename")

    def attach(self, request: AttachRequest) -> str:
        """Attach the volume to `request.node`; returns the device, which may not be there yet."""
        raise _undefined(self, "attach")

    def wait_for_attach(self, request: WaitForAttachRequest) -> str:
        """Wait until the device is there; returns it."""
        raise _undefined(self, "waitforattach")

    def is_attached(self, request: IsAttachedRequest) -> bool:
        raise _undefined(self, "isattached")

    def detach(self, request: DetachRequest) -> None:
        """Detach it; success when it is not attached."""
        raise _undefined(self, "detach")

    def mount_device(self, request: MountDeviceRequest) -> None:
        """Mount the device where all pods of the node share it."""
        raise _undefined(self, "mountdevice")

    def unmount_device(self, request: UnmountDeviceRequest) -> None:
        raise _undefined(self, "unmountdevice")

    def mount(self, request: MountRequest) -> None:
        """Show the volume at the target. Take everything back on failure: what is mounted there counts as success."""
        raise _undefined(self, "mount")

    def unmount(self, request: UnmountRequest) -> None:
        """Leave the target empty or gone. Success when nothing is mounted there, as after a reboot."""
        raise _undefined(self, "unmount")

    def expand_volume(self, request: ExpandVolumeRequest) -> int:
        """Make the volume itself larger; returns its size in bytes."""
        raise _undefined(self, "expandvolume")

    def expand_fs(self, request: ExpandFsRequest) -> None:
        """Make the file system fill the volume."""
        raise _undefined(self, "expandfs")


def _undefined(driver: Driver, verb: str) -> ConfigInvalid:
    return ConfigInvalid(f"driver {driver.name} does not have {verb}")
