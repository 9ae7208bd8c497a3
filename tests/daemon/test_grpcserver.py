"""Raw bytes in and out over gRPC, with limits, on a plain socket and behind the relay."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from nodeplug.daemon.grpcserver import Abort, Call, Limits, Server, Service
from nodeplug.daemon.listeners import Place


def echo(request: bytes, _call: Call) -> bytes:
    if request == b"refuse":
        raise Abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
    return request


def client(path: Path) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")])


def call(path: Path, request: bytes, *, authority: str = "localhost", timeout: float = 10.0) -> bytes:
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", authority)]) as channel:
        answer: bytes = channel.unary_unary("/test.Echo/Say")(request, timeout=timeout, wait_for_ready=True)
        return answer


def serve(path: Path, answer: Callable[[bytes, Call], bytes] = echo, **more: object) -> Server:
    service = Service("test.Echo", {"Say": answer})
    return Server(Place(str(path)), [service], limits=Limits(), note=lambda _: None, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("allowed", [None, [os.geteuid()]])
def test_bytes_go_in_and_come_out(tmp_path: Path, allowed: list[int] | None) -> None:
    path = tmp_path / "s"
    with serve(path, allowed_uids=allowed):
        assert call(path, b"hello") == b"hello"
    assert not path.exists()
    assert {entry.name for entry in tmp_path.iterdir()} <= {".s.lock", ".s.in.lock"}


@pytest.mark.parametrize("authority", ["localhost", "", "/run/a.sock", "%2Frun%2Fa.sock", "@abstract", "a b"])
def test_any_authority_is_answered(tmp_path: Path, authority: str) -> None:
    path = tmp_path / "s"
    with serve(path):
        assert call(path, b"hello", authority=authority) == b"hello"


def test_an_abort_reaches_the_caller_as_its_status(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(path), pytest.raises(grpc.RpcError) as failed:
        call(path, b"refuse")
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today")


def test_an_oversized_message_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(path), pytest.raises(grpc.RpcError) as failed:
        call(path, bytes(300_000))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_method_sees_its_deadline(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left: list[float | None] = []

    def answer(request: bytes, call: Call) -> bytes:
        left.append(call.seconds_left)
        return request

    with serve(path, answer):
        call(path, b"", timeout=5.0)
    assert left[0] is not None
    assert 0 < left[0] < 6.0


def test_a_call_under_way_is_answered_during_the_drain(tmp_path: Path) -> None:
    path = tmp_path / "s"
    entered, leave = threading.Event(), threading.Event()

    def slow(request: bytes, _call: Call) -> bytes:
        entered.set()
        leave.wait(10)
        return request

    server = serve(path, slow)
    answers: list[bytes] = []
    caller = threading.Thread(target=lambda: answers.append(call(path, b"last")))
    caller.start()
    assert entered.wait(10)
    closing = threading.Thread(target=server.close, args=(5.0,))
    closing.start()
    leave.set()
    closing.join(10)
    caller.join(10)
    assert answers == [b"last"]


def test_a_call_that_never_ends_does_not_hold_up_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    entered, leave = threading.Event(), threading.Event()

    def stuck(request: bytes, _call: Call) -> bytes:
        entered.set()
        leave.wait(30)
        return request

    server = serve(path, stuck)
    outcome: list[grpc.StatusCode] = []

    def caller() -> None:
        try:
            call(path, b"")
        except grpc.RpcError as error:
            outcome.append(error.code())

    thread = threading.Thread(target=caller)
    thread.start()
    assert entered.wait(10)
    server.close(0.2)
    thread.join(10)
    leave.set()
    assert outcome in ([grpc.StatusCode.CANCELLED], [grpc.StatusCode.UNAVAILABLE])


def test_an_adopted_listener_outlives_the_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen(64)
        for _ in range(3):
            with serve(path, inherited=held.dup()):
                assert call(path, b"hello") == b"hello"
            assert path.exists()
        with socket.socket(socket.AF_UNIX) as client:
            assert client.connect_ex(str(path)) == 0


def test_random_bytes_on_the_socket_do_not_stop_the_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(path, allowed_uids=[os.geteuid()]):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(os.urandom(2000))
        assert call(path, b"hello") == b"hello"


def test_a_stream_learns_that_its_reader_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    over = threading.Event()

    def numbers(request: bytes, call: Call) -> Iterator[bytes]:
        assert call.when_over(over.set)
        yield request
        over.wait(10)

    answers = Service("test.Numbers", {}, {"Count": numbers})
    with Server(Place(str(path)), [answers], limits=Limits(), note=lambda _: None), client(path) as channel:
        stream = channel.unary_stream("/test.Numbers/Count")(b"one", timeout=10, wait_for_ready=True)
        assert next(stream) == b"one"
        assert not over.is_set()
        stream.cancel()
        assert over.wait(10)


def test_an_abort_in_a_stream_reaches_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def numbers(request: bytes, _call: Call) -> Iterator[bytes]:
        yield request
        raise Abort(grpc.StatusCode.ABORTED, "enough")

    answers = Service("test.Numbers", {}, {"Count": numbers})
    with Server(Place(str(path)), [answers], limits=Limits(), note=lambda _: None), client(path) as channel:
        stream = channel.unary_stream("/test.Numbers/Count")(b"one", timeout=10, wait_for_ready=True)
        assert next(stream) == b"one"
        with pytest.raises(grpc.RpcError) as failed:
            next(stream)
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.ABORTED, "enough")
