"""A gRPC server over raw bytes on a safe unix socket: generic handlers, hard limits, a bounded end.

grpcio's thread server, the fastest Python one. Messages are parsed by the door (a malformed one is its
INVALID_ARGUMENT, never the library's INTERNAL), errors of `nodeplug.core.errors` become status codes by the door's own
table, and nothing an exception carries reaches a log from here. No authority is checked: Go clients derive it from the
socket's path.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from socket import socket
from types import TracebackType
from typing import NoReturn, Self

import grpc

from nodeplug.core.errors import Unavailable
from nodeplug.daemon.listeners import Place, Published, private_files
from nodeplug.daemon.relay import Note, Relay
from nodeplug.daemon.threads import Threads

_LAST_CALLS = 0.1  # seconds

Unary = Callable[[bytes, "Call"], bytes]
"""A method: the request's bytes in, the answer's bytes out. It raises `Abort` for any other outcome, nothing else."""

Streaming = Callable[[bytes, "Call"], Iterator[bytes]]
"""A method that answers with a stream, on a thread of the pool for as long as it lasts. It raises `Abort` at most."""


class Abort(Exception):
    """End the call with a status. `details` is shown to the caller and may be stored by it: no secrets."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Call:
    """What a method may ask about the call it answers."""

    __slots__ = ("_context",)

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    @property
    def seconds_left(self) -> float | None:
        """Until the caller's deadline; None when it has set none."""
        left: float | None = self._context.time_remaining()
        return left

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return not self._context.is_active()

    def when_over(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called, by a thread of the library's, once the call has ended; False when it has already."""
        registered: bool = self._context.add_callback(callback)
        return registered


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes on. Calls beyond `threads + queue` are refused at once with RESOURCE_EXHAUSTED."""

    threads: int = 8
    queue: int = 1024
    message_bytes: int = 256 * 1024
    streams: int = 1024
    metadata_bytes: int = 16 * 1024


class Service(grpc.GenericRpcHandler):
    """A service's methods under its full name ("v2.KeyManagementService"): unary ones, and ones that answer one request
    with a stream.

    `prompt` names unary methods that answer from memory. They have a thread of their own, and so are answered while all
    the others wait for a backend.
    """

    def __init__(
        self,
        name: str,
        unary: Mapping[str, Unary],
        streams: Mapping[str, Streaming] | None = None,
        *,
        prompt: Collection[str] = (),
    ) -> None:
        self._threads = Threads(1, "rpc-prompt")
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for method, answer in unary.items():
            call = _guarded(answer)
            if method in prompt:
                call.experimental_thread_pool = self._threads  # type: ignore[attr-defined]  # grpcio looks for it there
            self._handlers[f"/{name}/{method}"] = grpc.unary_unary_rpc_method_handler(call)
        for method, answers in (streams or {}).items():
            self._handlers[f"/{name}/{method}"] = grpc.unary_stream_rpc_method_handler(_guarded_stream(answers))

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """The handler for a method's full name; grpcio asks."""
        return self._handlers.get(details.method)

    def close(self) -> None:
        """End its own thread; the server does it."""
        self._threads.shutdown()


def _guarded(answer: Unary) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def call(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(request, Call(context))
        except Abort as outcome:
            code, details = outcome.code, outcome.details
        _abort(context, code, details)

    return call


def _guarded_stream(answers: Streaming) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    def call(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from answers(request, Call(context))
            return
        except Abort as outcome:
            code, details = outcome.code, outcome.details
        _abort(context, code, details)

    return call


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort raises")  # says so in grpcio's documentation; for the type checker


class Server:
    """Services on one unix socket, from construction to `close()`.

    Where a listener is inherited or uids are checked, the inner server listens beside the socket on a name only this
    user can open, and a `Relay` stands before it. Raises what `Published` raises, and `Unavailable` when gRPC cannot
    bind.
    """

    def __init__(
        self,
        place: Place,
        services: Collection[Service],
        *,
        limits: Limits,
        note: Note,
        inherited: socket | None = None,
        allowed_uids: Collection[int] | None = None,
    ) -> None:
        # The library's own logger prints tracebacks, and with them what was in a request.
        logging.getLogger("grpc").addHandler(logging.NullHandler())
        logging.getLogger("grpc").propagate = False
        self._services = tuple(services)
        self._threads = Threads(limits.threads, "rpc")
        self._grpc = grpc.server(
            self._threads,
            handlers=list(services),
            maximum_concurrent_rpcs=limits.threads + limits.queue,
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_concurrent_streams", limits.streams),
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", 2 * limits.metadata_bytes),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._published: list[Published] = []
        self._relay: Relay | None = None
        try:
            if inherited is None and allowed_uids is None:
                self._serve_at(place)
            else:
                self._serve_behind_relay(place, inherited, allowed_uids, note)
        except BaseException:
            self.close(0.0)
            raise

    def _serve_at(self, place: Place) -> None:
        name = Published(place)
        self._published.append(name)
        self._bind(name.staging)
        self._grpc.start()
        name.publish()

    def _serve_behind_relay(
        self, place: Place, inherited: socket | None, allowed_uids: Collection[int] | None, note: Note
    ) -> None:
        inner = Place(os.path.join(os.path.dirname(place.path), "." + os.path.basename(place.path) + ".in"))
        self._serve_at(inner)
        listener = inherited
        if listener is None:
            outer = Published(place)
            self._published.append(outer)
            listener = outer.listen()
        self._relay = Relay(listener, inner.path, allowed_uids=allowed_uids, note=note)
        self._relay.start()

    def _bind(self, path: str) -> None:
        try:
            with private_files():
                self._grpc.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise Unavailable(f"gRPC cannot listen on {path}: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether new connections are still let in."""
        return self._relay is None or self._relay.alive

    def close(self, seconds: float) -> None:
        """Refuse new calls, let those under way end for up to `seconds`, then cancel them; free the socket's name.

        A listener that was inherited stays open elsewhere: what connects meanwhile waits there for the next process.
        """
        if self._relay is not None:
            self._relay.stop_accepting()
            # gRPC's shutdown cancels a call that arrives in that moment; let those just accepted make theirs before.
            time.sleep(min(_LAST_CALLS, seconds / 4))
        for name in self._published:
            name.close()
        self._grpc.stop(seconds).wait(seconds + 1.0)
        if self._relay is not None:
            self._relay.wait_idle(0.2)  # the last answers are in its buffers
            self._relay.close()
        self._threads.shutdown()
        for service in self._services:
            service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close(1.0)
