"""FlexVolume, the kubelet's contract for volumes by executables: what a driver's author imports.

from nodeplug.flexvolume import Driver, MountRequest, UnmountRequest, run
"""

from nodeplug.flexvolume.contract import (
    AttachRequest,
    Capabilities,
    DetachRequest,
    Driver,
    ExpandFsRequest,
    ExpandVolumeRequest,
    IsAttachedRequest,
    MountDeviceRequest,
    MountRequest,
    Pod,
    UnmountDeviceRequest,
    UnmountRequest,
    VolumeNameRequest,
    WaitForAttachRequest,
)
from nodeplug.flexvolume.main import run

__all__ = [
    "AttachRequest",
    "Capabilities",
    "DetachRequest",
    "Driver",
    "ExpandFsRequest",
    "ExpandVolumeRequest",
    "IsAttachedRequest",
    "MountDeviceRequest",
    "MountRequest",
    "Pod",
    "UnmountDeviceRequest",
    "UnmountRequest",
    "VolumeNameRequest",
    "WaitForAttachRequest",
    "run",
]
