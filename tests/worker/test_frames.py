"""The wire's frames: what goes in comes out, and nothing else gets through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.call import Answer, Call, LastWords
from nodeplug.core.errors import Error, Malformed, VersionUnsupported
from nodeplug.worker import launcher
from nodeplug.worker.frames import (
    ANSWER,
    HEADER,
    LAST_WORDS,
    LIMITS,
    REQUEST,
    Request,
    decode_header,
    decode_request,
    encode_answer,
    encode_last_words,
    encode_request,
)
from tests.sandbox import CHECKOUT

KINDS = (REQUEST, LAST_WORDS, ANSWER)
VERSION_CALL = Call(
    contract="cni", name="loopback", env={"CNI_COMMAND": "VERSION"}, stdin=b'{"cniVersion":"1.1.0"   }\n\n'
)


def without(*unwanted: bytes) -> st.SearchStrategy[str]:
    """What a process may be given, those bytes apart, as Python has it."""

    def text(data: bytes) -> str:
        return bytes(byte for byte in data if bytes((byte,)) not in unwanted).decode("utf-8", "surrogateescape")

    return st.binary(max_size=40).map(text)


strings = without(b"\0")
names = without(b"\0", b"/").filter(bool)
variables = without(b"\0", b"=").filter(bool)
calls = st.builds(
    Call,
    contract=st.just("cni"),
    name=names,
    argv=st.lists(strings, max_size=5).map(tuple),
    env=st.dictionaries(variables, strings, max_size=5),
    stdin=st.binary(max_size=200),
    files=st.sampled_from([{}, {"netns": 7}]),
)
spoken = {"code": st.integers(0, 255), "stdout": st.binary(max_size=200), "stderr": st.binary(max_size=200)}
mount_points = strings.map(lambda text: text and f"/{text}")
answers = st.builds(Answer, **spoken, mounted=mount_points)


def read_request(data: bytes, *descriptors: int) -> Request:
    frame = decode_header(data[: HEADER.size], (REQUEST,))
    return decode_request(frame, data[HEADER.size :], (3, 4, *descriptors), contract="cni")


def read_response(data: bytes) -> LastWords | Answer:
    """As a launcher reads it. ValueError for what is no response, whole as it is."""
    taken = launcher.take_reply(data)
    if taken is None or taken[2]:
        raise ValueError("more or less than a response")
    kind, (code, yourself, stdout, stderr, mounted), _rest = taken
    answer = Answer(code=code, stdout=stdout, stderr=stderr, mounted=mounted.decode("utf-8", "surrogateescape"))
    return LastWords(answer=answer, yourself=yourself) if kind == LAST_WORDS else answer


@given(calls, st.integers(1, 3_600_000))
def test_a_request_comes_out_as_it_went_in(call: Call, milliseconds: int) -> None:
    request = read_request(encode_request(call, patience=milliseconds / 1000), *(call.files or {}).values())
    assert request == Request(call=call, net=3, mount=4, patience=milliseconds / 1000)


@given(answers, st.booleans())
def test_responses_come_out_as_they_went_in(answer: Answer, yourself: bool) -> None:
    assert read_response(encode_answer(answer)) == answer
    words = LastWords(answer=answer.replace(mounted=""), yourself=yourself)
    assert read_response(encode_last_words(words)) == words


@pytest.mark.parametrize("path", [b"relative", b"/with\0nul", b"/ends\0"])
def test_what_can_be_no_mount_point_is_no_answer(path: bytes) -> None:
    with pytest.raises(ValueError, match="mount point"):
        read_response(HEADER.pack(b"npwr", 1, ANSWER, 0, 0, 0, 0, len(path)) + path)


@given(calls, st.data())
def test_mutated_requests_are_refused_or_read_but_never_crash(call: Call, data: st.DataObject) -> None:
    frame = bytearray(encode_request(call.replace(files=None), patience=1))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = read_request(bytes(frame))
    except Error:
        return
    assert "\0" not in "".join((request.call.name, *request.call.argv, *request.call.env.values()))


@given(answers, st.data())
def test_mutated_responses_are_refused_or_read_but_never_crash(answer: Answer, data: st.DataObject) -> None:
    frame = bytearray(encode_answer(answer))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        response = read_response(bytes(frame))
    except ValueError:
        return
    assert isinstance(response, (Answer, LastWords))


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_noise_is_no_header(noise: bytes) -> None:
    with pytest.raises((Malformed, VersionUnsupported)):
        decode_header(noise, KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_length_over_its_limit_is_refused_by_the_header_alone(kind: int, part: int) -> None:
    lengths = [0, 0, 0]
    lengths[part] = LIMITS[kind][part]
    assert decode_header(HEADER.pack(b"npwr", 1, kind, 0, 1, *lengths), KINDS).size() == LIMITS[kind][part]
    for excess in (LIMITS[kind][part] + 1, 0xFFFFFFFF):
        lengths[part] = excess
        with pytest.raises(Malformed, match=f"claims {excess} bytes"):
            decode_header(HEADER.pack(b"npwr", 1, kind, 0, 1, *lengths), KINDS)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (HEADER.pack(b"npwx", 1, REQUEST, 0, 1, 0, 0, 0), "begins with"),
        (HEADER.pack(b"npwr", 2, REQUEST, 0, 1, 0, 0, 0), "wire version 2"),
        (HEADER.pack(b"npwr", 1, 4, 0, 1, 0, 0, 0), "kind 4"),
        (HEADER.pack(b"npwr", 1, 0, 0, 1, 0, 0, 0), "kind 0"),
        (HEADER.pack(b"npwr", 1, REQUEST, 2, 1, 0, 0, 0), "flags 0x2"),
        (HEADER.pack(b"npwr", 1, LAST_WORDS, 2, 1, 0, 0, 0), "flags 0x2"),
        (HEADER.pack(b"npwr", 1, ANSWER, 1, 1, 0, 0, 0), "flags 0x1"),
        (HEADER.pack(b"npwr", 1, REQUEST, 0, 0, 0, 0, 0), "number 0"),
        (HEADER.pack(b"npwr", 1, REQUEST, 0, 3_600_001, 0, 0, 0), "number 3600001"),
        (HEADER.pack(b"npwr", 1, ANSWER, 0, 256, 0, 0, 0), "number 256"),
    ],
)
def test_each_wrong_header_field_has_its_own_complaint(header: bytes, complaint: str) -> None:
    with pytest.raises(Error, match=complaint):
        decode_header(header, KINDS)


@pytest.mark.parametrize(
    ("argv", "environ", "complaint"),
    [
        (b"", b"", "the plugin's name is ''"),
        (b"\0", b"", "the plugin's name is ''"),
        (b"/opt/cni/bin/bridge\0", b"", "must be a file's name"),
        (b"bridge", b"", "argv does not end"),
        (b"bridge\0", b"A=1", "environ does not end"),
    ],
)
def test_each_wrong_string_has_its_own_complaint(argv: bytes, environ: bytes, complaint: str) -> None:
    header = HEADER.pack(b"npwr", 1, REQUEST, 0, 1, len(argv), len(environ), 0)
    with pytest.raises(Malformed, match=complaint):
        read_request(header + argv + environ)


def test_of_two_equal_variables_the_first_counts_and_nameless_ones_are_dropped() -> None:
    environ = b"A=1\0A=2\0=x\0B\0C=\0D=e=f\0"
    request = read_request(HEADER.pack(b"npwr", 1, REQUEST, 0, 1, 2, len(environ), 0) + b"b\0" + environ)
    assert request.call.env == {"A": "1", "C": "", "D": "e=f"}


@pytest.mark.parametrize("descriptors", [(), (3,), (3, 4, 5), (3, 4, 5, 6)])
def test_descriptors_must_be_as_many_as_the_flags_say(descriptors: tuple[int, ...]) -> None:
    data = encode_request(VERSION_CALL, patience=1)
    frame = decode_header(data[: HEADER.size], (REQUEST,))
    with pytest.raises(Malformed, match=f"{len(descriptors)} descriptors"):
        decode_request(frame, data[HEADER.size :], descriptors, contract="cni")


@pytest.mark.parametrize(
    "call",
    [
        VERSION_CALL.replace(stdin=bytes(LIMITS[REQUEST][2] + 1)),
        VERSION_CALL.replace(argv=("x" * LIMITS[REQUEST][0],)),
        VERSION_CALL.replace(env={"A": "x" * LIMITS[REQUEST][1]}),
        VERSION_CALL.replace(argv=("a\0b",)),
        VERSION_CALL.replace(env={"": "x"}),
        VERSION_CALL.replace(env={"A=B": "x"}),
        VERSION_CALL.replace(argv=("\ud800",)),
        VERSION_CALL.replace(files={"other": 3}),
    ],
    ids=["stdin", "argv", "environ", "nul", "nameless", "equals", "surrogate", "file"],
)
def test_a_call_that_does_not_fit_is_refused_before_it_is_sent(call: Call) -> None:
    with pytest.raises(Malformed):
        encode_request(call, patience=1)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(code=256),
        Answer(code=-9),
        Answer(code=0, stdout=bytes(8 * 1024 * 1024 + 1)),
        Answer(code=0, mounted="/" * 4097),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_before_it_is_sent(answer: Answer) -> None:
    with pytest.raises(Malformed):
        encode_answer(answer)


def test_patience_is_kept_within_its_bounds() -> None:
    assert read_request(encode_request(VERSION_CALL, patience=-5)).patience == 0.001
    assert read_request(encode_request(VERSION_CALL, patience=1e9)).patience == 3600


def test_the_example_in_the_documentation_is_what_we_send() -> None:
    page = (CHECKOUT / "docs" / "wire.md").read_text().split("## An example")[1].split("```")[1]
    frames: list[bytes] = []
    for line in page.strip().splitlines():
        title, digits = line[:12].strip(), re.match(r"[0-9a-f ]+?(?=  |$)", line[12:])
        assert digits is not None
        if title:
            frames.append(b"")
        frames[-1] += bytes.fromhex(digits[0])
    assert frames == [
        encode_request(VERSION_CALL, patience=2),
        encode_last_words(LastWords(answer=Answer(code=11, stderr=b"later\n"), yourself=True)),
        encode_answer(Answer(code=0, stdout=b"{}\n")),
    ]


@pytest.mark.parametrize("kind", [LAST_WORDS, ANSWER])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_launcher_has_the_limits_of_the_wire(kind: int, part: int) -> None:
    lengths = [0, 0, 0]
    lengths[part] = LIMITS[kind][part] + 1
    with pytest.raises(ValueError, match="more than may be said"):
        launcher.take_reply(HEADER.pack(b"npwr", 1, kind, 0, 1, *lengths))
    assert LIMITS[REQUEST] == launcher._REQUEST_MOST


def test_a_launchers_request_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posix.environ", {b"A": b"1=2", b"B": b"", b"": b"no name"})
    frame = launcher.request(["bridge", "-x", "two words"], b"{}", flags=1, seconds=2)
    request = read_request(frame, 7)
    assert request.call == Call(
        contract="cni",
        name="bridge",
        argv=("-x", "two words"),
        env={"A": "1=2", "B": ""},
        stdin=b"{}",
        files={"netns": 7},
    )
    assert request.patience == 2
    assert launcher.request(["bridge"], bytes(LIMITS[REQUEST][2] + 1), flags=0, seconds=2) == b""
