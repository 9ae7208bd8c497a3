"""One connected device plugin, as the kubelet's device manager holds it: a connection, its options, its stream.

Imports pb only; used by `devicemanager`.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from nodeplug.core.errors import Refused, TimedOut
from nodeplug.pb.deviceplugin import v1beta1_pb2 as dp

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

DIAL = 10.0  # seconds, as the kubelet's
ALLOCATE = 60.0  # the kubelet has no deadline here; a harness must have one
PRESTART = 30.0
LIMIT = 4 << 20

Devices = dict[str, tuple[str, tuple[int, ...]]]
"""What a list said last: id -> (health, memory nodes)."""


class Plugin:
    """A connection to a plugin's socket. `lists` gets each list, `ended` is called once when the stream is over."""

    def __init__(self, resource: str, path: str, calls: Counter[str]) -> None:
        self.resource = resource
        self.path = path
        self._calls = calls
        self._channel = grpc.insecure_channel(
            f"unix:{path}",
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.default_authority", "localhost"),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", LIMIT),
            ],
        )
        self._stream: Any = None
        self._thread: threading.Thread | None = None
        self.options = dp.DevicePluginOptions()
        self.closed = False
        self.heard = 0.0
        """When the last list arrived (monotonic)."""

    def connect(self) -> None:
        """Dial, blocking, and ask for the options. Raises `TimedOut` or `Refused`."""
        try:
            grpc.channel_ready_future(self._channel).result(DIAL)
        except grpc.FutureTimeoutError:
            raise TimedOut(f"failed to dial device plugin at {self.path}") from None
        try:
            answer = self._call("GetDevicePluginOptions", b"", DIAL)
        except Refused as error:
            raise Refused(f"failed to get device plugin options: {error}") from None
        self.options = dp.DevicePluginOptions.FromString(answer)

    def follow(
        self, lists: Callable[[Plugin, dp.ListAndWatchResponse], None], ended: Callable[[Plugin, str], None]
    ) -> None:
        """Open ListAndWatch, once: a kubelet never opens it again."""

        def run() -> None:
            why = "EOF"
            try:
                for message in self._stream:
                    self.heard = time.monotonic()
                    lists(self, dp.ListAndWatchResponse.FromString(message))
            except grpc.RpcError as failed:
                error: Any = failed
                why = f"{error.code().name}: {error.details()}"
            ended(self, why)

        if self.closed:
            ended(self, "closed before its stream was opened")
            return
        self._calls["ListAndWatch"] += 1
        method: Any = self._channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch")
        self._stream = method(b"")
        self._thread = threading.Thread(target=run, name="ListAndWatch", daemon=True)
        self._thread.start()

    def allocate(self, ids: list[str]) -> dp.ContainerAllocateResponse:
        """Allocate for one container. Raises `Refused`, as the kubelet fails the pod then."""
        request = dp.AllocateRequest(container_requests=[dp.ContainerAllocateRequest(devices_ids=ids)])
        answer = dp.AllocateResponse.FromString(self._call("Allocate", request.SerializeToString(), ALLOCATE))
        if not answer.container_responses:
            raise Refused("no containers in container allocation response")
        return answer.container_responses[0]

    def preferred(self, available: list[str], chosen: list[str], size: int) -> list[str]:
        """GetPreferredAllocation for one container."""
        request = dp.PreferredAllocationRequest(
            container_requests=[
                dp.ContainerPreferredAllocationRequest(
                    available_deviceIDs=available, must_include_deviceIDs=chosen, allocation_size=size
                )
            ]
        )
        data = self._call("GetPreferredAllocation", request.SerializeToString(), ALLOCATE)
        answers = dp.PreferredAllocationResponse.FromString(data).container_responses
        return list(answers[0].deviceIDs) if answers else []

    def prestart(self, ids: list[str]) -> None:
        """PreStartContainer with the kubelet's deadline."""
        request = dp.PreStartContainerRequest(devices_ids=ids)
        self._call("PreStartContainer", request.SerializeToString(), PRESTART)

    def close(self) -> None:
        """Close the connection, and with it the stream."""
        self.closed = True
        if self._stream is not None:
            self._stream.cancel()
        self._channel.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _call(self, method: str, request: bytes, timeout: float) -> bytes:
        self._calls[method] += 1
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/v1beta1.DevicePlugin/{method}")
        try:
            return ask(request, timeout=timeout)
        except grpc.RpcError as failed:
            error: Any = failed
            raise Refused(f"{method}: {error.code().name}: {error.details()}") from None
