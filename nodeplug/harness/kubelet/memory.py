"""What a device manager remembers: resources, who has which devices, the checkpoint, and podresources' view of it.

Pure but for the clock; `devicemanager` holds the lock.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodeplug.pb.deviceplugin import v1beta1_pb2 as dp
from nodeplug.pb.podresources import v1_pb2 as pods

if TYPE_CHECKING:
    from nodeplug.harness.kubelet.plugin import Plugin

CHECKPOINT = "kubelet_internal_checkpoint"


@dataclass
class Known:
    """What the device manager knows of one resource."""

    healthy: set[str] = field(default_factory=set)
    unhealthy: set[str] = field(default_factory=set)
    numa: dict[str, tuple[int, ...]] = field(default_factory=dict)
    plugin: Plugin | None = None
    stopped: float = 0.0  # when its stream ended; 0 while one is open
    lists: int = 0
    heard: float = 0.0  # when the last list arrived (monotonic)


@dataclass
class Held:
    """One container's devices of one resource, with the answer that is replayed."""

    ids: list[str]
    answer: dp.ContainerAllocateResponse


Pods = dict[str, dict[str, dict[str, Held]]]
"""Pod -> container -> resource -> what it has."""


def write_checkpoint(resources: dict[str, Known], held: Pods) -> bytes:
    """The file a kubelet keeps, with the keys it has there."""
    entries = [
        {
            "PodUID": pod,
            "ContainerName": container,
            "ResourceName": resource,
            "DeviceIDs": {"-1": entry.ids},
            "AllocResp": base64.b64encode(entry.answer.SerializeToString()).decode(),
        }
        for pod, containers in held.items()
        for container, by_resource in containers.items()
        for resource, entry in by_resource.items()
    ]
    registered = {name: sorted(known.healthy) for name, known in resources.items()}
    return json.dumps({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": registered}, "Checksum": 0}).encode()


def read_checkpoint(data: bytes) -> tuple[dict[str, Known], Pods]:
    """Resources without healthy devices and as stopped, allocations as they were; nothing of a file that is cut."""
    try:
        kept = json.loads(data)["Data"]
    except ValueError:
        return {}, {}
    resources = {name: Known(stopped=time.monotonic()) for name in kept["RegisteredDevices"]}
    held: Pods = {}
    for entry in kept["PodDeviceEntries"]:
        ids = [id for group in entry["DeviceIDs"].values() for id in group]
        answer = dp.ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"]))
        containers = held.setdefault(entry["PodUID"], {})
        containers.setdefault(entry["ContainerName"], {})[entry["ResourceName"]] = Held(ids, answer)
    return resources, held


def list_pods(held: Pods) -> bytes:
    """podresources' List: one entry for each id, as kubelets give them."""
    answer = pods.ListPodResourcesResponse()
    for pod, containers in held.items():
        namespace, _, name = pod.rpartition("/")
        entry = answer.pod_resources.add(name=name, namespace=namespace or "default")
        for container, resources in containers.items():
            part = entry.containers.add(name=container)
            for resource, kept in resources.items():
                for id in kept.ids:
                    part.devices.add(resource_name=resource, device_ids=[id])
    return answer.SerializeToString()


def list_allocatable(resources: dict[str, Known]) -> bytes:
    """podresources' GetAllocatableResources: healthy devices."""
    answer = pods.AllocatableResourcesResponse()
    for name, known in resources.items():
        for id in sorted(known.healthy):
            answer.devices.add(resource_name=name, device_ids=[id])
    return answer.SerializeToString()
