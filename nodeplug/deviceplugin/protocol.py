"""The kubelet's messages, both ways. The only module of this door that knows them.

Also the client's half of the registration and of podresources, since they are messages too. Raises `Malformed` for
bytes that are no message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from nodeplug.core import errors
from nodeplug.core.errors import Malformed
from nodeplug.deviceplugin.contract import Allocation, Preference
from nodeplug.devices.contract import Device
from nodeplug.devices.ids import base_of, replica_id
from nodeplug.pb.deviceplugin import v1beta1_pb2 as dp
from nodeplug.pb.pluginregistration import v1_pb2 as reg
from nodeplug.pb.podresources import v1_pb2 as pods

VERSION = "v1beta1"
PLUGIN = "v1beta1.DevicePlugin"
WATCHED = "pluginregistration.Registration"
REGISTER = "/v1beta1.Registration/Register"
LIST_PODS = "/v1.PodResourcesLister/List"
HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

M = TypeVar("M", bound=Message)

STATUS: dict[type[BaseException], int] = {
    BaseException: grpc.StatusCode.INTERNAL.value[0],
    errors.ConfigInvalid: grpc.StatusCode.INVALID_ARGUMENT.value[0],
    errors.NotFound: grpc.StatusCode.NOT_FOUND.value[0],
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION.value[0],
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE.value[0],
    errors.TryAgain: grpc.StatusCode.UNAVAILABLE.value[0],
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
    errors.PermissionRefused: grpc.StatusCode.PERMISSION_DENIED.value[0],
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: BaseException) -> grpc.StatusCode:
    """The status a caller gets for an error."""
    return _CODES[errors.code_of(error, STATUS)]


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Malformed(f"the bytes received are no {kind.DESCRIPTOR.name}") from None


def read_allocate(data: bytes) -> list[tuple[str, ...]]:
    """The ids asked for, of each container."""
    request = _parse(dp.AllocateRequest, data)
    return [tuple(sorted(part.devices_ids)) for part in request.container_requests]


def write_allocate(given: Iterable[Allocation]) -> bytes:
    """The answer, byte for byte the same for the same allocation."""
    answer = dp.AllocateResponse()
    for allocation in given:
        part = answer.container_responses.add()
        for name, value in sorted(allocation.env.items()):
            part.envs[name] = value
        for name, value in sorted(allocation.annotations.items()):
            part.annotations[name] = value
        for mount in allocation.mounts:
            part.mounts.add(host_path=mount.host, container_path=mount.container, read_only=mount.read_only)
        for node in allocation.nodes:
            part.devices.add(host_path=node.host, container_path=node.container, permissions=node.permissions)
        for name in allocation.cdi:
            part.cdi_devices.add(name=name)
    return answer.SerializeToString(deterministic=True)


def read_preferred(data: bytes) -> list[Preference]:
    """What is asked for each container."""
    request = _parse(dp.PreferredAllocationRequest, data)
    return [
        Preference(tuple(part.available_deviceIDs), tuple(part.must_include_deviceIDs), part.allocation_size)
        for part in request.container_requests
    ]


def write_preferred(chosen: Iterable[Iterable[str]]) -> bytes:
    """The ids preferred, for each container."""
    answer = dp.PreferredAllocationResponse()
    for ids in chosen:
        answer.container_responses.add(deviceIDs=ids)
    return answer.SerializeToString()


def read_prestart(data: bytes) -> tuple[str, ...]:
    """The ids of the container that is about to start."""
    return tuple(sorted(_parse(dp.PreStartContainerRequest, data).devices_ids))


def write_prestart() -> bytes:
    return dp.PreStartContainerResponse().SerializeToString()


def write_options(*, reset: bool, preferred: bool) -> bytes:
    """The answer of GetDevicePluginOptions."""
    return _options(reset, preferred).SerializeToString()


def _options(reset: bool, preferred: bool) -> dp.DevicePluginOptions:
    return dp.DevicePluginOptions(pre_start_required=reset, get_preferred_allocation_available=preferred)


def write_register(endpoint: str, resource: str, *, reset: bool, preferred: bool) -> bytes:
    """The request of Register; `endpoint` is the name of the socket in the kubelet's directory."""
    return dp.RegisterRequest(
        version=VERSION, endpoint=endpoint, resource_name=resource, options=_options(reset, preferred)
    ).SerializeToString()


def write_info(resource: str) -> bytes:
    """The answer of GetInfo: a device plugin on this very socket."""
    return reg.PluginInfo(
        type="DevicePlugin", name=resource, endpoint="", supported_versions=[VERSION]
    ).SerializeToString()


def read_status(data: bytes) -> tuple[bool, str]:
    """What NotifyRegistrationStatus says: registered, and else why not."""
    status = _parse(reg.RegistrationStatus, data)
    return status.plugin_registered, status.error


def write_status_taken() -> bytes:
    return reg.RegistrationStatusResponse().SerializeToString()


class ListWriter:
    """Writes lists of devices, the bytes of each device kept: of 10,000, one change costs one device.

    A list is a repeated field, so the messages of single devices put together are the message of all.
    """

    def __init__(self, *, replicas: int, numa: bool) -> None:
        self._replicas = replicas
        self._numa = numa
        self._known: dict[str, tuple[Device, bytes]] = {}

    def write(self, devices: Iterable[Device]) -> bytes:
        """The message for these devices."""
        known, kept, parts = self._known, {}, []
        for device in devices:
            entry = known.get(device.id)
            if entry is None or entry[0] is not device:
                entry = (device, self._one(device))
            kept[device.id] = entry
            parts.append(entry[1])
        self._known = kept
        return b"".join(parts)

    def _one(self, device: Device) -> bytes:
        message = dp.ListAndWatchResponse()
        shared = self._replicas > 1
        for number in range(self._replicas):
            entry = message.devices.add(
                ID=replica_id(device.id, number) if shared else device.id,
                health=HEALTHY if device.healthy else UNHEALTHY,
            )
            if self._numa:
                for node in device.numa:
                    entry.topology.nodes.add(ID=node)
        return message.SerializeToString()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a device."""

    namespace: str
    pod: str
    container: str


def write_list_pods() -> bytes:
    return pods.ListPodResourcesRequest().SerializeToString()


def read_list_pods(data: bytes) -> Mapping[str, Mapping[str, list[Holder]]]:
    """By resource, then by device (a share's suffix removed), who has it."""
    found: dict[str, dict[str, list[Holder]]] = {}
    for pod in _parse(pods.ListPodResourcesResponse, data).pod_resources:
        for container in pod.containers:
            holder = Holder(pod.namespace, pod.name, container.name)
            for held in container.devices:
                ids = found.setdefault(held.resource_name, {})
                for id in held.device_ids:
                    ids.setdefault(base_of(id), []).append(holder)
    return found
