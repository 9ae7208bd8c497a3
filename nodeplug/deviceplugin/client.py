"""Calls to a unix socket of the kubelet or the runtime, each bounded. No channel outlives its call."""

import errno
import os
import socket
from typing import Any

import grpc

from nodeplug.core.errors import Error, NotFound, PermissionRefused, Refused, TimedOut, TryAgain, Unavailable, from_os

_SPARE = 16  # descriptors; a server takes about 6, a channel 4

_KINDS: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.UNAVAILABLE: TryAgain,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TryAgain,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNIMPLEMENTED: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionRefused,
}


def listens(path: str) -> bool:
    """Whether somebody accepts connections there. A socket's file may be there before its server listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            return probe.connect_ex(path) in (0, errno.EAGAIN)
    except OSError:
        return False  # a path too long, or no descriptor


def ensure_descriptors() -> None:
    """Raise `TryAgain` when this process has hardly a descriptor left.

    gRPC ends the whole process when it cannot make one it needs, so it is asked for nothing then.
    """
    spare: list[int] = []
    try:
        for _ in range(_SPARE):
            spare.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise TryAgain(f"no descriptors are left: {error.strerror}", hint="raise LimitNOFILE") from None
    finally:
        for fd in spare:
            os.close(fd)


def call(path: str, method: str, request: bytes, *, timeout: float, limit: int = 4 << 20) -> bytes:
    """One unary call. Raises `TryAgain` (nobody there), `TimedOut`, `NotFound` (method unknown) or `Refused`."""
    ensure_descriptors()
    if not listens(path):
        raise TryAgain(f"nobody listens on {path}")
    options = [
        # Without these the library looks for a proxy, names the path as authority (Go servers refuse some), and keeps
        # the connection, and the kubelet's memory of it, for other channels to the same path.
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", limit),
    ]
    try:
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            return ask(request, timeout=timeout)
    except grpc.RpcError as failed:
        raise _translated(failed, f"{method} at {path}") from None
    except OSError as error:
        raise from_os(error, f"cannot call {path}") from None
    except ValueError as error:
        raise Unavailable(f"cannot call {path}: {error}") from None


def _translated(failed: Any, doing: str) -> Error:
    code = failed.code()  # every error a call raises is a call, too; the stubs do not say so
    return _KINDS.get(code, Refused)(f"{doing}: {code.name}: {failed.details() or 'no details'}")
