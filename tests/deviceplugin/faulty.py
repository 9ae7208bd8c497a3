"""A device plugin that fails where it is told to, to see that the harness does what kubelets do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc

from nodeplug.daemon.grpcserver import Abort, Call, Limits, Server, Service
from nodeplug.daemon.listeners import Place
from nodeplug.pb.deviceplugin import v1beta1_pb2 as dp


class FaultyPlugin:
    """Serves at `path`. Method names in `broken` are answered with an error; `devices` is what is listed."""

    def __init__(self, path: Path, resource: str, devices: int = 2) -> None:
        self.path = path
        self.resource = resource
        self.broken: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.devices = [dp.Device(ID=f"Dev-{number}", health="Healthy") for number in range(devices)]
        self._over = threading.Event()
        unary = {
            name: (lambda request, call, name=name: self._answer(name, request))  # type: ignore[misc]
            for name in ("GetDevicePluginOptions", "Allocate", "GetPreferredAllocation", "PreStartContainer")
        }
        services = [Service("v1beta1.DevicePlugin", unary, {"ListAndWatch": self._list})]
        self._server = Server(Place(str(path), lock=False), services, limits=Limits(), note=lambda _: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.close(0.0)

    def break_stream(self) -> None:
        """End the stream that is open, with an error."""
        self._over.set()

    def register(self, kubelet_socket: Path, version: str = "v1beta1", resource: str = "") -> None:
        """Call Register once. Raises grpc.RpcError."""
        request = dp.RegisterRequest(
            version=version, endpoint=self.path.name, resource_name=resource or self.resource
        ).SerializeToString()
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{kubelet_socket}", options=options) as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/v1beta1.Registration/Register")
            ask(request, timeout=20)

    def _answer(self, name: str, _request: bytes) -> bytes:
        self.calls[name] += 1
        if name in self.broken:
            raise Abort(grpc.StatusCode.INTERNAL, f"{name} is broken")
        return b""

    def _list(self, _request: bytes, call: Call) -> Iterator[bytes]:
        self.calls["ListAndWatch"] += 1
        call.when_over(self._over.set)
        if "ListAndWatch" not in self.broken:
            yield dp.ListAndWatchResponse(devices=self.devices).SerializeToString()
            self._over.wait(60)
        raise Abort(grpc.StatusCode.INTERNAL, "ListAndWatch is broken")
