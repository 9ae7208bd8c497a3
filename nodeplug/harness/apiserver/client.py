"""The calls an API server makes: plaintext gRPC to a unix socket, waiting for it to come up, three seconds at most."""

from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from nodeplug.pb.kms import v1beta1_pb2, v2_pb2

TIMEOUT = 3.0
"""Seconds; the default of an EncryptionConfiguration."""

M = TypeVar("M", bound=Message)


class CallFailed(Exception):
    """The plugin answered with a status, or not in time. `code` is the status' name."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.method = method
        self.code = code
        self.details = details


class Channel:
    """One connection, as each entry of an EncryptionConfiguration has one. Reconnects with grpc-go's backoff.

    `authority` is what the Go client sends: "localhost" for v2, made from the socket's path for v1beta1. `backoff`
    scales the pauses between attempts to connect (1.0: one second growing to two minutes).
    """

    def __init__(self, path: str, *, authority: str, timeout: float, backoff: float) -> None:
        self.timeout = timeout
        self._channel = grpc.insecure_channel(
            f"unix:{path}",
            options=[
                ("grpc.default_authority", authority),
                ("grpc.initial_reconnect_backoff_ms", max(1, int(1000 * backoff))),
                ("grpc.min_reconnect_backoff_ms", max(1, int(1000 * backoff))),
                ("grpc.max_reconnect_backoff_ms", max(1, int(120_000 * backoff))),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def call(self, method: str, request: Message, answer: type[M]) -> M:
        """Raises `CallFailed`, also for an answer that is not the message it should be."""
        message = answer()
        try:
            message.ParseFromString(self.send(method, request.SerializeToString()))
        except DecodeError:
            raise CallFailed(method, "INTERNAL", "the answer is not the message it should be") from None
        return message

    def send(self, method: str, data: bytes) -> bytes:
        """Bytes out, bytes back. Raises `CallFailed`."""
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        try:
            return unary(data, timeout=self.timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CallFailed(method, error.code().name, error.details() or "") from None

    def close(self) -> None:
        self._channel.close()


class V2:
    """`v2.KeyManagementService`."""

    def __init__(self, path: str, *, timeout: float = TIMEOUT, backoff: float = 1.0) -> None:
        self._channel = Channel(path, authority="localhost", timeout=timeout, backoff=backoff)

    def status(self) -> v2_pb2.StatusResponse:
        return self._channel.call("/v2.KeyManagementService/Status", v2_pb2.StatusRequest(), v2_pb2.StatusResponse)

    def encrypt(self, uid: str, plaintext: bytes) -> v2_pb2.EncryptResponse:
        request = v2_pb2.EncryptRequest(plaintext=plaintext, uid=uid)
        return self._channel.call("/v2.KeyManagementService/Encrypt", request, v2_pb2.EncryptResponse)

    def decrypt(self, uid: str, encrypted: v2_pb2.EncryptResponse) -> bytes:
        request = v2_pb2.DecryptRequest(
            ciphertext=encrypted.ciphertext, uid=uid, key_id=encrypted.key_id, annotations=encrypted.annotations
        )
        return self._channel.call("/v2.KeyManagementService/Decrypt", request, v2_pb2.DecryptResponse).plaintext

    def close(self) -> None:
        self._channel.close()


class V1:
    """`v1beta1.KeyManagementService`. Asks for the version before the first other call, and only then."""

    def __init__(self, path: str, *, timeout: float = TIMEOUT, backoff: float = 1.0) -> None:
        self._channel = Channel(path, authority=path, timeout=timeout, backoff=backoff)
        self._checked = False

    def _check(self) -> None:
        if self._checked:
            return
        request = v1beta1_pb2.VersionRequest(version="v1beta1")
        reply = self._channel.call("/v1beta1.KeyManagementService/Version", request, v1beta1_pb2.VersionResponse)
        if reply.version != "v1beta1":
            raise CallFailed("Version", "INTERNAL", f"version {reply.version!r} is not v1beta1")
        self._checked = True

    def encrypt(self, plaintext: bytes) -> bytes:
        self._check()
        request = v1beta1_pb2.EncryptRequest(version="v1beta1", plain=plaintext)
        return self._channel.call("/v1beta1.KeyManagementService/Encrypt", request, v1beta1_pb2.EncryptResponse).cipher

    def decrypt(self, cipher: bytes) -> bytes:
        self._check()
        request = v1beta1_pb2.DecryptRequest(version="v1beta1", cipher=cipher)
        return self._channel.call("/v1beta1.KeyManagementService/Decrypt", request, v1beta1_pb2.DecryptResponse).plain

    def close(self) -> None:
        self._channel.close()
