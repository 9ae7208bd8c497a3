"""The kubelet's side of the Container Runtime Interface: pods and containers asked of a runtime over its socket.

Called by the demo, the tests and `nodeplug cni gc`. Generic gRPC calls; no stubs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc

from nodeplug.core.errors import Error, NotFound, TimedOut, Unavailable
from nodeplug.pb.cri import v1_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

TIMEOUT = 120.0
"""Seconds for one call; RunPodSandbox and StopPodSandbox wait for a whole chain of plugins."""

_LIMIT = 16 * 1024 * 1024
_SERVICES = {"ListImages": "ImageService", "ImageStatus": "ImageService"}
_PROTOCOLS = {"tcp": pb.TCP, "udp": pb.UDP, "sctp": pb.SCTP}


class CriFailed(Error):
    """The runtime refused a call; `code` is gRPC's name for why."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {details} ({code})")
        self.method = method
        self.code = code


@dataclass(frozen=True)
class Port:
    """A hostPort of a pod."""

    host: int
    container: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True)
class PodSpec:
    """What a pod is to be. `uid` and `namespace` as the kubelet would give them.

    With `host_network` it stays in the runtime's own network namespace, and no plugin is called.
    """

    name: str
    namespace: str = "default"
    uid: str = ""
    ports: tuple[Port, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    log_directory: str = ""
    host_network: bool = False

    def message(self) -> pb.PodSandboxConfig:
        """The spec on the wire."""
        namespaces = pb.NamespaceOption(network=pb.NODE if self.host_network else pb.POD)
        context = pb.LinuxSandboxSecurityContext(namespace_options=namespaces)
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=self.name, namespace=self.namespace, uid=self.uid or self.name),
            # A pod in the host's network keeps the host's name too; runc refuses to set another.
            hostname="" if self.host_network else self.name,
            log_directory=self.log_directory,
            labels=self.labels,
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=self.cgroup_parent, security_context=context),
        )
        for port in self.ports:
            config.port_mappings.add(
                protocol=_PROTOCOLS[port.protocol],
                container_port=port.container,
                host_port=port.host,
                host_ip=port.host_ip,
            )
        return config


@dataclass(frozen=True)
class Pod:
    """A pod sandbox as the runtime knows it."""

    id: str
    name: str
    namespace: str
    ready: bool
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Executed:
    """What a command in a container came to."""

    status: int
    stdout: bytes
    stderr: bytes


class Cri:
    """A client of one runtime's socket. Closed by `close()` or `with`."""

    def __init__(self, socket: Path, *, timeout: float = TIMEOUT) -> None:
        self.socket = socket
        self.timeout = timeout
        # The library would otherwise look for a proxy in the environment and send the socket's path as authority.
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", _LIMIT),
            ],
        )

    def close(self) -> None:
        """Give the connection up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def version(self) -> tuple[str, str]:
        """The runtime's name and version."""
        answer = self._call("Version", pb.VersionRequest(), pb.VersionResponse)
        return answer.runtime_name, answer.runtime_version

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """Whether each condition holds ("RuntimeReady", "NetworkReady"), and the runtime's message."""
        answer = self._call("Status", pb.StatusRequest(), pb.StatusResponse)
        return {found.type: (found.status, found.message) for found in answer.status.conditions}

    def images(self) -> list[str]:
        """The names of all images."""
        answer = self._call("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
        return sorted(tag for image in answer.images for tag in image.repo_tags)

    def run_pod(self, spec: PodSpec, *, timeout: float | None = None) -> str:
        """Start a pod sandbox, network and all; returns its id."""
        request = pb.RunPodSandboxRequest(config=spec.message())
        answer = self._call("RunPodSandbox", request, pb.RunPodSandboxResponse, timeout)
        return str(answer.pod_sandbox_id)

    def pod(self, pod_id: str) -> Pod:
        """One sandbox with its addresses. Raises `NotFound`."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
        status = self._call("PodSandboxStatus", request, pb.PodSandboxStatusResponse).status
        found = (status.network.ip, *(entry.ip for entry in status.network.additional_ips))
        ready = status.state == pb.SANDBOX_READY
        addresses = tuple(address for address in found if address)
        return Pod(status.id, status.metadata.name, status.metadata.namespace, ready, addresses)

    def pods(self) -> list[Pod]:
        """All sandboxes, the stopped ones too, without addresses."""
        answer = self._call("ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse)
        return [
            Pod(item.id, item.metadata.name, item.metadata.namespace, item.state == pb.SANDBOX_READY)
            for item in answer.items
        ]

    def stop_pod(self, pod_id: str, *, timeout: float | None = None) -> None:
        """End all processes of a pod and its network. May be repeated."""
        self._call(
            "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), pb.StopPodSandboxResponse, timeout
        )

    def remove_pod(self, pod_id: str, *, timeout: float | None = None) -> None:
        """Forget a pod with all its containers; a running one is stopped first."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        self._call("RemovePodSandbox", request, pb.RemovePodSandboxResponse, timeout)

    def run_container(
        self,
        pod_id: str,
        spec: PodSpec,
        *,
        image: str,
        name: str,
        command: tuple[str, ...] = (),
        devices: Sequence[tuple[str, str, str]] = (),
        mounts: Mapping[str, Path] | None = None,
    ) -> str:
        """Create and start a container in a pod; returns its id. Without `command` it does as its image says.

        `devices` are (path on the host, path inside, permissions), as a device plugin's allocation has them; `mounts`
        are directories of the host by their path inside, as a kubelet names a pod's volumes.
        """
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log" if spec.log_directory else "",
            devices=[
                pb.Device(host_path=host, container_path=inside, permissions=permissions)
                for host, inside, permissions in devices
            ],
            mounts=[pb.Mount(container_path=inside, host_path=str(host)) for inside, host in (mounts or {}).items()],
        )
        create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=spec.message())
        container_id = str(self._call("CreateContainer", create, pb.CreateContainerResponse).container_id)
        self._call("StartContainer", pb.StartContainerRequest(container_id=container_id), pb.StartContainerResponse)
        return container_id

    def containers(self, pod_id: str) -> list[str]:
        """The ids of a pod's containers, the ended ones too."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod_id))
        answer = self._call("ListContainers", request, pb.ListContainersResponse)
        return [container.id for container in answer.containers]

    def execute(self, container_id: str, *command: str, timeout: float = 20.0) -> Executed:
        """Run a command in a container to its end, which comes after `timeout` seconds at the latest."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=int(timeout))
        answer = self._call("ExecSync", request, pb.ExecSyncResponse, timeout + 10)
        return Executed(answer.exit_code, answer.stdout, answer.stderr)

    def info(self, container_id: str) -> str:
        """What the runtime tells of a container in its own words, JSON (its pid, under containerd)."""
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
        return str(self._call("ContainerStatus", request, pb.ContainerStatusResponse).info["info"])

    def pod_info(self, pod_id: str) -> str:
        """What the runtime tells of a sandbox in its own words, JSON (its pid and netns, under containerd)."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
        return str(self._call("PodSandboxStatus", request, pb.PodSandboxStatusResponse).info["info"])

    def _call(self, method: str, request: Message, answer: Any, timeout: float | None = None) -> Any:
        service = _SERVICES.get(method, "RuntimeService")
        call: grpc.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=timeout or self.timeout)
        except grpc.RpcError as error:
            raise self._translated(method, error) from None

    def _translated(self, method: str, error: Any) -> Error:
        code, details = error.code(), error.details() or "no details"
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"{method}: no runtime answers on {self.socket}: {details}")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimedOut(f"{method}: the runtime did not answer in time")
        if code == grpc.StatusCode.NOT_FOUND:
            return NotFound(f"{method}: {details}")
        return CriFailed(method, code.name, details)
