"""Both ends of the wire over real sockets: what each does when the other is slow, silent, gone or wrong."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeplug.core.call import Answer, Call, LastWords
from nodeplug.core.errors import Error, Malformed, TimedOut, VersionUnsupported
from nodeplug.kernel import netns as namespaces
from nodeplug.worker.frames import (
    HEADER,
    LIMITS,
    REQUEST,
    Request,
    encode_answer,
    encode_last_words,
    encode_request,
)
from nodeplug.worker.wire import Fallback, Gone, Incoming, ask, receive, send_answer, send_last_words
from tests.child import until
from tests.ledger import Ledger
from tests.needs import needs

CALL = Call(contract="cni", name="bridge", argv=("-v",), env={"CNI_COMMAND": "ADD"}, stdin=b"{}")
DONE = Answer(code=0, stdout=b'{"ips":[]}\n')
LATER = Answer(code=1, stdout=b'{"code":11}\n')
Serve = Callable[[socket.socket], None]


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def worker(ledger: Ledger, serve: Serve) -> str:
    """A worker that answers one connection by `serve`; returns its socket's path."""
    listener = ledger.listener()

    def body() -> None:
        connection, _ = listener.accept()
        with connection:
            serve(connection)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    ledger.adopt("worker thread", lambda: thread.join(10))
    return str(listener.getsockname())


def take(connection: socket.socket) -> Request:
    return receive(connection, contract="cni", deadline=soon())


def says(*frames: bytes, pause: float = 0.0) -> Serve:
    """A worker that reads the request and then sends exactly these bytes."""

    def serve(connection: socket.socket) -> None:
        take(connection).close()
        for frame in frames:
            connection.sendall(frame)
            time.sleep(pause)

    return serve


def words(*, yourself: bool) -> LastWords:
    return LastWords(answer=LATER, yourself=yourself)


def test_an_answer_that_names_a_mount_point_holds_where_it_is_one(ledger: Ledger) -> None:
    there, elsewhere = DONE.replace(mounted="/proc"), DONE.replace(mounted="/proc/self")
    assert ask(worker(ledger, says(encode_answer(there))), CALL, deadline=soon()) == there
    later = [encode_last_words(words(yourself=False)), encode_answer(elsewhere)]
    assert ask(worker(ledger, says(*later)), CALL, deadline=soon()) == LATER
    outcome = ask(worker(ledger, says(encode_answer(elsewhere))), CALL, deadline=soon())
    assert isinstance(outcome, Fallback) and "/proc/self is not to be seen here" in outcome.reason


def pair(ledger: Ledger) -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        ledger.adopt("socket pair", end.close)
    return ends


def send_with(connection: socket.socket, data: bytes, descriptors: int) -> None:
    """`data` with that many descriptors, all of /dev/null."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        rights = struct.pack(f"={descriptors}i", *[null] * descriptors)
        connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])
    finally:
        os.close(null)


def descriptors_in_use() -> int:
    return len(os.listdir("/proc/self/fd"))


# The whole conversation


def test_a_call_is_carried_whole_and_answered(ledger: Ledger) -> None:
    arrived: list[Request] = []

    def serve(connection: socket.socket) -> None:
        request = take(connection)
        arrived.append(request)
        for fd, kind in ((request.net, "net"), (request.mount, "mnt")):
            assert os.readlink(f"/proc/self/fd/{fd}") == os.readlink(f"/proc/self/ns/{kind}")
            assert not os.get_inheritable(fd)
        request.close()
        send_last_words(connection, words(yourself=False), deadline=soon())
        send_answer(connection, DONE, deadline=soon())

    before = descriptors_in_use()
    path = worker(ledger, serve)
    assert ask(path, CALL, deadline=soon()) == DONE
    assert arrived[0].call == CALL.replace(files={})
    assert 4 < arrived[0].patience <= 5
    assert until(lambda: descriptors_in_use() == before + 1, "only the listener stays open")


@needs("sandbox")
def test_the_worker_gets_the_callers_namespaces_not_its_own(ledger: Ledger) -> None:
    caller, subject = ledger.netns(), ledger.netns()
    seen: list[int] = []

    def serve(connection: socket.socket) -> None:
        request = take(connection)
        assert request.call.files is not None
        seen.extend(os.fstat(fd).st_ino for fd in (request.net, request.call.files["netns"]))
        request.close()
        send_answer(connection, DONE, deadline=soon())

    path = worker(ledger, serve)
    with namespaces.Netns.open(subject.path) as opened:
        call = CALL.replace(files={"netns": opened.fd})
        assert caller.call(lambda: ask(path, call, deadline=soon())) == DONE
    assert seen == [os.stat(caller.path).st_ino, os.stat(subject.path).st_ino]


def test_the_largest_call_and_answer_pass(ledger: Ledger) -> None:
    call = CALL.replace(stdin=os.urandom(LIMITS[REQUEST][2]))
    answer = Answer(code=255, stdout=os.urandom(8 << 20), stderr=os.urandom(1 << 20))

    def serve(connection: socket.socket) -> None:
        request = take(connection)
        request.close()
        assert request.call == call.replace(files={})
        send_answer(connection, answer, deadline=soon())

    assert ask(worker(ledger, serve), call, deadline=soon(20), greeting=20) == answer


def test_frames_may_arrive_in_any_pieces(ledger: Ledger) -> None:
    stream = encode_last_words(words(yourself=False)) + encode_answer(DONE)
    assert ask(worker(ledger, says(*[bytes((byte,)) for byte in stream])), CALL, deadline=soon()) == DONE


def test_the_latest_last_words_count(ledger: Ledger) -> None:
    first = encode_last_words(LastWords(answer=Answer(code=9), yourself=True))
    path = worker(ledger, says(first, encode_last_words(words(yourself=False))))
    assert ask(path, CALL, deadline=soon()) == LATER


# The client, when the worker is not as it should be


def test_no_socket_means_fallback(directory: Path) -> None:
    outcome = ask(str(directory / "missing"), CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    assert "No such file" in outcome.reason
    assert str(directory) in outcome.reason


def test_a_socket_nobody_listens_on_means_fallback(ledger: Ledger) -> None:
    listener = ledger.listener()
    path = listener.getsockname()
    listener.close()
    outcome = ask(path, CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    assert "refused" in outcome.reason


def test_a_full_queue_means_fallback_at_once(ledger: Ledger) -> None:
    listener = ledger.listener(backlog=0)
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ledger.adopt("the one in the queue", waiting.close)
    waiting.connect(listener.getsockname())
    outcome = ask(listener.getsockname(), CALL, deadline=soon(60), greeting=60)
    assert isinstance(outcome, Fallback)
    assert "temporarily unavailable" in outcome.reason


def test_a_worker_that_accepts_and_never_reads_means_fallback(ledger: Ledger) -> None:
    listener = ledger.listener()
    large = CALL.replace(stdin=bytes(LIMITS[REQUEST][2]))
    assert isinstance(ask(listener.getsockname(), large, deadline=soon(60), greeting=0.1), Fallback)
    assert isinstance(ask(listener.getsockname(), CALL, deadline=soon(60), greeting=0.1), Fallback)


def test_a_deadline_in_the_past_means_fallback(ledger: Ledger) -> None:
    outcome = ask(ledger.listener().getsockname(), CALL, deadline=soon(-1))
    assert isinstance(outcome, Fallback)


def test_a_call_that_does_not_fit_means_fallback(ledger: Ledger) -> None:
    outcome = ask(ledger.listener().getsockname(), CALL.replace(stdin=bytes(5 << 20)), deadline=soon())
    assert isinstance(outcome, Fallback)
    assert "the limit is" in outcome.reason


def test_an_unusable_path_or_descriptor_means_fallback(directory: Path) -> None:
    outcome = ask(str(directory / "x" / ("long" * 40)), CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    bad = CALL.replace(files={"netns": 987654})
    assert isinstance(ask(str(directory / "x"), bad, deadline=soon()), Fallback)


def test_closed_before_last_words_means_fallback(ledger: Ledger) -> None:
    outcome = ask(worker(ledger, says()), CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    assert outcome.last_words is None


def test_closed_without_reading_means_fallback(ledger: Ledger) -> None:
    assert isinstance(ask(worker(ledger, lambda _connection: None), CALL, deadline=soon()), Fallback)


def test_closed_after_last_words_means_last_words(ledger: Ledger) -> None:
    assert ask(worker(ledger, says(encode_last_words(words(yourself=False)))), CALL, deadline=soon()) == LATER


def test_closed_after_last_words_that_say_yourself_means_fallback_with_them(ledger: Ledger) -> None:
    outcome = ask(worker(ledger, says(encode_last_words(words(yourself=True)))), CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    assert outcome.last_words == LATER


@pytest.mark.parametrize("kept", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3])
def test_an_answer_cut_off_means_last_words(ledger: Ledger, kept: int) -> None:
    path = worker(ledger, says(encode_last_words(words(yourself=False)), encode_answer(DONE)[:kept]))
    assert ask(path, CALL, deadline=soon()) == LATER


@pytest.mark.parametrize("kept", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3])
def test_last_words_cut_off_mean_fallback(ledger: Ledger, kept: int) -> None:
    path = worker(ledger, says(encode_last_words(words(yourself=False))[:kept]))
    outcome = ask(path, CALL, deadline=soon())
    assert isinstance(outcome, Fallback)
    assert outcome.last_words is None


@pytest.mark.parametrize("yourself", [True, False])
def test_silence_after_last_words_ends_with_the_deadline(ledger: Ledger, yourself: bool) -> None:
    released = threading.Event()

    def serve(connection: socket.socket) -> None:
        take(connection).close()
        send_last_words(connection, words(yourself=yourself), deadline=soon())
        released.wait(20)

    outcome = ask(worker(ledger, serve), CALL, deadline=soon(0.3))
    released.set()
    assert outcome == LATER or (yourself and isinstance(outcome, Fallback) and outcome.last_words == LATER)


def test_noise_after_last_words_means_last_words(ledger: Ledger) -> None:
    path = worker(ledger, says(encode_last_words(words(yourself=False)), b"x" * 100))
    assert ask(path, CALL, deadline=soon()) == LATER


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(max_size=120))
def test_a_worker_that_talks_nonsense_means_fallback(ledger: Ledger, noise: bytes) -> None:
    assert isinstance(ask(worker(ledger, says(noise)), CALL, deadline=soon()), Fallback)


def test_whoever_gives_up_either_the_client_has_the_words_or_the_worker_knows(ledger: Ledger) -> None:
    """The promise the wire is built on, at the moment where it is hardest to keep: both act at the same instant."""
    greeting = 0.004
    rolls = random.Random(7)
    outcomes = set()
    for _ in range(80):
        may_act: list[bool] = []

        def serve(connection: socket.socket, may_act: list[bool] = may_act) -> None:
            take(connection).close()
            time.sleep(max(0.0, greeting + rolls.uniform(-0.002, 0.001)))
            try:
                send_last_words(connection, words(yourself=False), deadline=soon())
                may_act.append(True)
            except Gone:
                may_act.append(False)

        outcome = ask(worker(ledger, serve), CALL, deadline=soon(30), greeting=greeting)
        ledger.close()
        if may_act:  # empty when the client gave up before its request was through
            assert may_act[0] == (outcome == LATER)
            outcomes.add(may_act[0])
    assert outcomes, "no request came through"


# The server, when the client is not as it should be


@pytest.mark.parametrize("kept", range(len(encode_request(CALL, patience=1))))
def test_a_request_cut_off_at_any_byte_is_gone(ledger: Ledger, kept: int) -> None:
    ours, theirs = pair(ledger)
    before = descriptors_in_use()
    if kept:
        send_with(theirs, encode_request(CALL, patience=1)[:kept], 2)
    theirs.close()
    with pytest.raises(Gone):
        take(ours)
    assert descriptors_in_use() == before - 1


def test_a_request_byte_by_byte_is_read_when_there_is_time(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    data = encode_request(CALL, patience=1)

    def trickle() -> None:
        send_with(theirs, data[:1], 2)
        for byte in data[1:]:
            theirs.sendall(bytes((byte,)))

    sender = threading.Thread(target=trickle)
    sender.start()
    request = take(ours)
    sender.join()
    request.close()
    assert request.call == CALL.replace(files={})


def test_a_request_byte_by_byte_does_not_outlast_the_deadline(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    stop = threading.Event()

    def trickle() -> None:
        send_with(theirs, encode_request(CALL.replace(stdin=bytes(100_000)), patience=1)[:60], 2)
        while not stop.wait(0.02):
            theirs.sendall(b"\0")

    before = descriptors_in_use()
    sender = threading.Thread(target=trickle)
    sender.start()
    with pytest.raises(TimedOut):
        receive(ours, contract="cni", deadline=soon(0.3))
    stop.set()
    sender.join()
    assert descriptors_in_use() == before


def test_a_client_that_sends_nothing_does_not_outlast_the_deadline(ledger: Ledger) -> None:
    ours, _theirs = pair(ledger)
    with pytest.raises(TimedOut):
        receive(ours, contract="cni", deadline=soon(0.1))


@pytest.mark.parametrize("descriptors", [0, 1, 3, 8, 9, 200])
def test_a_wrong_count_of_descriptors_is_refused_and_none_stays_open(ledger: Ledger, descriptors: int) -> None:
    ours, theirs = pair(ledger)
    before = descriptors_in_use()
    send_with(theirs, encode_request(CALL, patience=1), descriptors)
    with pytest.raises(Malformed, match="descriptors"):
        take(ours)
    assert descriptors_in_use() == before


def test_descriptors_that_come_later_are_not_taken(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    before = descriptors_in_use()
    data = encode_request(CALL, patience=1)
    incoming = Incoming(ours, contract="cni")  # type: ignore[arg-type]  # socket's own kind
    theirs.sendall(data[: HEADER.size])
    assert incoming.read() is None
    send_with(theirs, data[HEADER.size :], 2)
    with pytest.raises(Malformed, match="0 descriptors"):
        incoming.read()
    theirs.close()
    assert descriptors_in_use() == before - 1


def test_another_version_is_told_apart_from_noise(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    send_with(theirs, HEADER.pack(b"npwr", 9, REQUEST, 0, 1, 0, 0, 0), 2)
    with pytest.raises(VersionUnsupported):
        take(ours)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(max_size=120))
def test_noise_is_refused_and_no_descriptor_stays_open(ledger: Ledger, noise: bytes) -> None:
    ours, theirs = socket.socketpair()
    before = descriptors_in_use()
    with ours:
        with theirs:
            if noise:
                send_with(theirs, noise, 2)
        with pytest.raises(Error):
            take(ours)
        assert descriptors_in_use() == before - 1


def test_a_client_that_never_reads_does_not_outlast_the_deadline(ledger: Ledger) -> None:
    ours, _theirs = pair(ledger)
    with pytest.raises(TimedOut):
        send_answer(ours, Answer(code=0, stdout=bytes(8 << 20)), deadline=soon(0.2))


def test_a_client_that_is_gone_is_noticed_before_anything_is_changed(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    theirs.close()
    with pytest.raises(Gone):
        send_last_words(ours, words(yourself=False), deadline=soon())


def test_a_client_that_shut_its_receiving_side_is_noticed(ledger: Ledger) -> None:
    ours, theirs = pair(ledger)
    theirs.shutdown(socket.SHUT_RD)
    with pytest.raises(Gone):
        send_last_words(ours, words(yourself=False), deadline=soon())
