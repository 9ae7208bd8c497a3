"""Which pod sandboxes the node's container runtime knows, asked over its socket (CRI).

Used by the collection after a boot, which is a process of its own: gRPC is nothing for the worker's memory.
"""

from __future__ import annotations

import os

import grpc

from nodeplug.core.errors import Unavailable
from nodeplug.pb.cri import v1_pb2 as pb

SOCKETS = ("/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/k3s/containerd/containerd.sock")
"""Where runtimes listen."""

_METHOD = "/runtime.v1.RuntimeService/ListPodSandbox"
_TIMEOUT = 10.0
_LIMIT = 64 << 20


def find(wanted: str, root: str) -> str:
    """The path of the runtime's socket below `root`: the one wanted, or the first of the usual ones that exists.

    Raises `Unavailable` when there is none.
    """
    for path in (wanted,) if wanted else SOCKETS:
        if os.path.exists(f"{root}{path}"):
            return f"{root}{path}"
    raise Unavailable(f"no container runtime listens on {wanted or ', '.join(SOCKETS)}")


def listed(socket: str) -> frozenset[str]:
    """The ids of all sandboxes, whatever their state: what a runtime lists it will delete by itself.

    Raises `Unavailable` when it does not answer.
    """
    # The library would otherwise look for a proxy in the environment and send the socket's path as authority.
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", _LIMIT),
    ]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        ask = channel.unary_unary(
            _METHOD,
            request_serializer=pb.ListPodSandboxRequest.SerializeToString,
            response_deserializer=pb.ListPodSandboxResponse.FromString,
        )
        try:
            answer = ask(pb.ListPodSandboxRequest(), timeout=_TIMEOUT)
        except grpc.RpcError as error:
            raise Unavailable(f"the runtime on {socket} does not list its pods: {error.details()}") from error
    return frozenset(item.id for item in answer.items)
