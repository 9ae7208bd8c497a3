"""shim.c and the launcher, as the client's side of docs/wire.md: every way in which a worker can be wrong."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeplug.core.call import Answer, LastWords
from nodeplug.ops import shim
from nodeplug.worker.frames import (
    ANSWER,
    HEADER,
    LAST_WORDS,
    LIMITS,
    MAGIC,
    VERSION,
    Request,
    encode_answer,
    encode_last_words,
)
from nodeplug.worker.wire import receive
from tests.child import Finished, run
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("program:cc")
DONE = Answer(code=0, stdout=b'{"ips":[]}\n', stderr=b"a warning\n")
LATER = Answer(code=1, stdout=b'{"code":11}\n')
WORDS = encode_last_words(LastWords(answer=LATER, yourself=False))
YOURSELF = encode_last_words(LastWords(answer=LATER, yourself=True))
# The launcher's place is taken by a shell script that tells what it was given.
TELLS = '#!/bin/sh\necho "launcher $@"\ncat\nexit 7\n'
STDIN = b'{"name": "net"}'
PT_INTERP = 3  # elf(5): the program header of what is linked dynamically
Serve = Callable[[socket.socket], None]


@pytest.fixture(scope="module", params=["as installed", "checked"])
def program(module_ledger: Ledger, request: pytest.FixtureRequest) -> Path:
    """The shim as nodes have it; and with a C library and what finds memory faults, where the compiler has that."""
    directory = module_ledger.directory()
    made = directory / "shim"
    if request.param == "as installed":
        made.write_bytes(shim.binary("c"))
        made.chmod(0o755)
        return made
    source = str(CHECKOUT / "nodeplug" / "worker" / "shim.c")
    strict = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    checked = run(["cc", *strict, "-fsanitize=address,undefined", "-fno-sanitize-recover", "-o", made, source])
    if checked.code != 0:
        run(["cc", *strict, "-static", "-o", made, source]).ok()
    return made


class Place:
    """A plugin directory with the shim in it as `bridge`."""

    def __init__(self, ledger: Ledger, program: Path, *, launcher: bool = True, absent: str = "") -> None:
        self.ledger = ledger
        self.directory = ledger.directory()
        self.private = self.directory / ".nodeplug"
        self.private.mkdir()
        shutil.copy(program, self.directory / "bridge")
        if launcher:
            (self.private / "exec").write_text(TELLS)
            (self.private / "exec").chmod(0o755)
        if absent:
            (self.private / "absent").write_text(absent)
        self.requests: list[Request] = []

    def worker(self, serve: Serve, *, times: int = 1) -> None:
        path = self.private / "worker.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def body() -> None:
            for _ in range(times):
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()

        def end() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            listener.close()

        self.ledger.adopt("worker", end)

    def says(self, *frames: bytes) -> None:
        """A worker that reads the request and then sends exactly these bytes."""

        def serve(connection: socket.socket) -> None:
            request = receive(connection, contract="cni", deadline=time.monotonic() + 10)
            request.close()
            self.requests.append(request)
            try:
                for frame in frames:
                    connection.sendall(frame)
            except OSError:
                pass  # it has seen enough

        self.worker(serve)

    def call(self, *arguments: str, command: str | None = "ADD", stdin: bytes = STDIN, **env: str) -> Finished:
        whole = {"ASAN_OPTIONS": "detect_leaks=0", **env, **({"CNI_COMMAND": command} if command is not None else {})}
        return run([self.directory / "bridge", *arguments], env=whole, stdin=stdin)


def told(finished: Finished) -> bool:
    """Whether the launcher ran, and was given all that the shim was."""
    return (finished.code, finished.stdout) == (7, b"launcher bridge\n" + STDIN)


def is_later(finished: Finished) -> bool:
    return (finished.code, finished.stdout) == (1, LATER.stdout)


@pytest.fixture
def place(ledger: Ledger, program: Path) -> Place:
    return Place(ledger, program)


def test_it_compiles_small_static_and_without_a_warning() -> None:
    made = shim.binary("c")
    assert made.startswith(b"\x7fELF")
    assert len(made) < 128 << 10  # no C library is in it, whose start would cost more than all it does
    (headers,), (size, count) = struct.unpack_from("<Q", made, 32), struct.unpack_from("<HH", made, 54)
    kinds = [struct.unpack_from("<I", made, headers + n * size)[0] for n in range(count)]
    assert PT_INTERP not in kinds


def test_a_call_is_carried_whole_and_its_answer_printed(place: Place) -> None:
    place.says(WORDS, encode_answer(DONE))
    done = place.call("-x", "two words", EMPTY="", CNI_NETNS="/proc/self/ns/net")
    assert (done.code, done.stdout, done.stderr) == (0, DONE.stdout, DONE.stderr)
    call = place.requests[0].call
    assert (call.name, call.argv, call.stdin) == ("bridge", ("-x", "two words"), STDIN)
    assert call.env["CNI_COMMAND"] == "ADD" and call.env["EMPTY"] == ""
    assert call.files is not None and set(call.files) == {"netns"}
    assert 80 < place.requests[0].patience <= 90


@pytest.mark.parametrize("netns", ["", "/nowhere"])
def test_a_namespace_that_cannot_be_opened_does_not_come_along(place: Place, netns: str) -> None:
    place.says(encode_answer(DONE))
    assert place.call(CNI_NETNS=netns).code == 0
    assert place.requests[0].call.files == {}


def test_a_fifo_in_the_namespaces_place_holds_nobody_up(place: Place) -> None:
    os.mkfifo(place.directory / "fifo")
    place.says(encode_answer(DONE))
    assert place.call(CNI_NETNS=str(place.directory / "fifo")).code == 0


def test_the_largest_call_and_answer_pass(place: Place) -> None:
    stdin, large = os.urandom(LIMITS[2 - 1][2]), Answer(code=3, stdout=os.urandom(8 << 20), stderr=os.urandom(1 << 20))
    place.says(WORDS, encode_answer(large))
    done = place.call(stdin=stdin)
    assert (done.code, done.stdout, done.stderr) == (3, large.stdout, large.stderr)
    assert place.requests[0].call.stdin == stdin


def test_what_is_too_large_for_the_wire_is_run_by_the_launcher(place: Place) -> None:
    place.says(encode_answer(DONE))
    stdin = os.urandom((4 << 20) + 1)
    assert place.call(stdin=stdin).stdout == b"launcher bridge\n" + stdin
    assert told(place.call(LARGE="x" * 100_000, LARGER="x" * 100_000, LARGEST="x" * 100_000))


def test_version_and_about_do_not_wait_for_stdin(place: Place) -> None:
    (place.private / "exec").write_text("#!/bin/sh\necho launcher\nexit 7\n")
    read, write = os.pipe()
    try:
        for command in ({"CNI_COMMAND": "VERSION"}, {}):
            env = {"ASAN_OPTIONS": "detect_leaks=0", **command}
            done = subprocess.run([place.directory / "bridge"], env=env, stdin=read, timeout=20, check=False)
            assert done.returncode == 7
    finally:
        os.close(read)
        os.close(write)


def test_no_worker_means_the_launcher(place: Place) -> None:
    assert told(place.call())


def test_a_socket_nobody_listens_on_means_the_launcher(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place.private / "worker.sock"))
    assert told(place.call())


def test_a_full_queue_means_the_launcher_at_once(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(place.private / "worker.sock"))
        listener.listen(0)
        first.connect(str(place.private / "worker.sock"))
        assert told(place.call())


def test_a_worker_that_accepts_and_never_reads_means_the_launcher(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.private / "worker.sock"))
        listener.listen()
        assert told(place.call())
        large = bytes(LIMITS[1][2])
        assert place.call(stdin=large).code == 7


def test_closed_before_last_words_means_the_launcher(place: Place) -> None:
    place.says()
    assert told(place.call())


def test_closed_without_reading_means_the_launcher(place: Place) -> None:
    place.worker(lambda _connection: None)
    assert told(place.call())


def test_closed_after_last_words_means_last_words(place: Place) -> None:
    place.says(WORDS)
    assert is_later(place.call())


def test_last_words_that_say_yourself_mean_the_launcher(place: Place) -> None:
    place.says(YOURSELF)
    assert told(place.call(command="DEL"))


def test_the_latest_last_words_count(place: Place) -> None:
    place.says(YOURSELF, WORDS)
    assert is_later(place.call())


@pytest.mark.parametrize("kept", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3])
def test_what_is_cut_off_never_was(ledger: Ledger, program: Path, kept: int) -> None:
    answer, words = Place(ledger, program), Place(ledger, program)
    answer.says(WORDS, encode_answer(DONE)[:kept])
    assert is_later(answer.call())
    words.says(WORDS[:kept])
    assert told(words.call())


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("kind", [LAST_WORDS, ANSWER])
def test_a_frame_that_claims_too_much_ends_the_stream(ledger: Ledger, program: Path, kind: int, part: int) -> None:
    lengths = [0, 0, 0]
    lengths[part] = LIMITS[kind][part] + 1
    place = Place(ledger, program)
    place.says(WORDS, HEADER.pack(MAGIC, VERSION, kind, 0, 0, *lengths), encode_answer(DONE))
    assert is_later(place.call())


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_worker_says_it_ends_in_an_answer_last_words_or_the_launcher(
    program: Path, data: st.DataObject
) -> None:
    """Mutated, shuffled, cut and invented frames; the sanitizers end the shim with a code of their own."""
    frames = st.sampled_from([WORDS, YOURSELF, encode_answer(DONE), encode_answer(LATER)])
    stream = bytearray(b"".join(data.draw(st.lists(frames, max_size=4))))
    for _ in range(data.draw(st.integers(0, 4)) if stream else 0):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream += data.draw(st.binary(max_size=60))
    ledger = Ledger()
    try:
        place = Place(ledger, program)
        place.says(bytes(stream))
        done = place.call()
        assert done.code >= 0 and b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, done
    finally:
        ledger.close()


def test_frames_may_come_byte_by_byte(place: Place) -> None:
    place.says(*[bytes((byte,)) for byte in WORDS + encode_answer(DONE)])
    assert place.call().stdout == DONE.stdout


ABSENT = (
    '0 1 CNI_COMMAND=ADD {"code": 11}\n1 1 CNI_COMMAND=DEL {"code": 11, "retried": true}\nnonsense\n'
    '0 1 CNI_COMMAND=STATUS {"code": 50}\n0 0 * {"anything": "else"}\n'
)


def test_with_neither_worker_nor_launcher_it_says_what_the_file_says(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program, launcher=False, absent=ABSENT)
    assert (place.call().code, place.call().json()) == (1, {"code": 11})
    assert place.call(command="STATUS").json() == {"code": 50}
    assert place.call(command="OTHER").json() == {"anything": "else"}
    began = time.monotonic()
    assert place.call(command="DEL").json() == {"code": 11, "retried": True}
    assert time.monotonic() - began >= 1


def test_a_launcher_that_cannot_run_counts_as_none(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program, launcher=False, absent=ABSENT)
    (place.private / "exec").write_text("#!/no/python3 -IS\n")
    (place.private / "exec").chmod(0o755)
    assert place.call().json() == {"code": 11}


def test_last_words_go_before_the_file_when_the_call_cannot_be_run(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program, launcher=False, absent=ABSENT)
    place.says(YOURSELF)
    assert is_later(place.call(command="CHECK"))


def test_a_worker_that_comes_while_it_is_looked_for_answers(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program, launcher=False, absent=ABSENT.replace("1 1 CNI_COMMAND=DEL", "20 1 CNI_COMMAND=DEL"))
    later = threading.Timer(0.5, lambda: place.says(encode_answer(DONE)))
    later.start()
    assert place.call(command="DEL").stdout == DONE.stdout
    later.join()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.binary(max_size=200))
def test_any_content_of_that_file_is_survived(program: Path, text: bytes) -> None:
    ledger = Ledger()
    try:
        place = Place(ledger, program, launcher=False)
        (place.private / "absent").write_bytes(b"0 3 CNI_COMMAND=X no\n" + text.replace(b"9", b"0"))
        done = place.call(command="GC")
        assert done.code >= 0 and b"Sanitizer" not in done.stderr, done
    finally:
        ledger.close()


OLD = '#!/bin/sh\necho "old $@"\ncat\nexit 5\n'


def leave(place: Place, text: str = "CNI_COMMAND=ADD\nnonsense\nCNI_COMMAND=STATUS\n") -> Path:
    """Have the plugin be taken out; returns where what comes in its place is to stand."""
    (place.private / "leaving").write_text(text)
    (place.private / "old").mkdir()
    return place.private / "old" / "bridge"


def test_a_plugin_that_is_taken_out_hands_its_calls_to_what_comes_in_its_place(place: Place) -> None:
    old = leave(place)
    old.write_text(OLD)
    old.chmod(0o755)
    place.says(encode_answer(DONE))
    for command in ("ADD", "STATUS"):
        done = place.call("-x", "two words", command=command)
        assert (done.code, done.stdout) == (5, b"old -x two words\n" + STDIN)
    assert place.call(command="DEL").stdout == DONE.stdout
    assert told(place.call(command="GC"))


def test_where_that_is_no_program_it_is_the_answer(place: Place) -> None:
    leave(place).write_text('{"code": 11}')
    done = place.call()
    assert (done.code, done.json()) == (1, {"code": 11})
    assert told(place.call(command="DEL"))


def test_where_nothing_stands_the_plugin_stays(place: Place) -> None:
    leave(place)
    assert told(place.call())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.binary(max_size=200))
def test_any_content_of_what_is_said_of_that_is_survived(program: Path, text: bytes) -> None:
    ledger = Ledger()
    try:
        place = Place(ledger, program)
        leave(place, "CNI_COMMAND").write_text("old")
        (place.private / "leaving").write_bytes(b"CNI_COMMAND=AD\n" + text)
        done = place.call()
        assert done.code in (1, 7) and b"Sanitizer" not in done.stderr, done
    finally:
        ledger.close()


def test_with_nothing_at_all_it_fails_and_says_so(ledger: Ledger, program: Path) -> None:
    done = Place(ledger, program, launcher=False).call()
    assert done.code == 1 and done.stdout == b"" and b"neither a worker nor a launcher" in done.stderr


MOUNT = ("mount", "/pods/1/volumes/d", '{"kubernetes.io/secret/key": "c2VzYW1l"}')
FAILURE = Answer(code=0, stdout=b'{"status":"Failure","message":"try again"}\n')
SUCCESS = Answer(code=0, stdout=b'{"status":"Success"}\n')


def test_a_verb_is_carried_without_a_look_at_stdin(place: Place) -> None:
    place.says(WORDS, encode_answer(SUCCESS))
    read, write = os.pipe()
    try:
        argv = [place.directory / "bridge", *MOUNT]
        env = {"ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(argv, env=env, stdin=read, capture_output=True, timeout=20, check=False)
    finally:
        os.close(read)
        os.close(write)
    assert (done.returncode, done.stdout, done.stderr) == (0, SUCCESS.stdout, b"")
    call = place.requests[0].call
    assert (call.name, call.argv, call.stdin) == ("bridge", MOUNT, b"")
    assert place.requests[0].patience < 60  # with the launcher's own time it stays under the kubelet's two minutes


def test_the_arguments_of_a_verb_are_hidden_while_the_worker_is_asked(place: Place) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        receive(connection, contract="flexvolume", deadline=time.monotonic() + 10).close()
        pid = struct.unpack("=iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        seen.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        connection.sendall(WORDS + encode_answer(SUCCESS))

    place.worker(serve)
    assert place.call(*MOUNT, command=None).code == 0
    assert b"c2VzYW1l" not in seen[0] and b"mount" in seen[0]


def test_the_launcher_is_given_a_verbs_arguments_on_stdin_where_nobody_else_sees_them(place: Place) -> None:
    told = place.call(*MOUNT, command=None)
    assert told.stdout == b"launcher bridge -\n" + "".join(f"{argument}\0" for argument in MOUNT).encode()


@pytest.mark.parametrize(
    ("path", "holds"),
    [("/proc", True), ("/proc/self", False), ("/pro", False), ("/proc/", False), ("/" + "x" * 4000, False)],
)
def test_an_answer_that_names_a_mount_point_holds_where_it_is_one(place: Place, path: str, holds: bool) -> None:
    words = encode_last_words(LastWords(answer=FAILURE, yourself=False))
    place.says(words, encode_answer(SUCCESS.replace(mounted=path)))
    assert place.call(*MOUNT, command=None).stdout == (SUCCESS if holds else FAILURE).stdout


@needs("root")
def test_a_mount_point_of_any_name_is_found(ledger: Ledger, program: Path) -> None:
    for name in ("plain", "with space", "back\\slash", "tab\tand\nline"):
        target = ledger.directory() / name
        target.mkdir()
        run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", target]).ok()
        place = Place(ledger, program)
        place.says(encode_answer(SUCCESS.replace(mounted=str(target))))
        assert place.call(*MOUNT, command=None).stdout == SUCCESS.stdout, name


def test_lines_of_that_file_are_chosen_by_name_and_verb_too(ledger: Ledger, program: Path) -> None:
    lines = '0 0 other/init {"a": 1}\n0 0 bridge/init {"a": 2}\n0 0 mount {"a": 3}\n0 0 * {"a": 4}\n'
    place = Place(ledger, program, launcher=False, absent=lines)
    found = {verb: place.call(verb, command=None).json()["a"] for verb in ("init", "mount", "unmount")}
    assert found == {"init": 2, "mount": 3, "unmount": 4}
    assert place.call(command="mount").json() == {"a": 4}  # a variable's value is no verb


def test_with_nothing_at_all_a_verb_is_answered_in_json(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program, launcher=False)
    init, mount = (place.call(*verb, command=None) for verb in (("init",), MOUNT))
    assert (init.code, init.json(), init.stderr) == (0, {"status": "Not supported"}, b"")
    assert (mount.code, mount.json()["status"], mount.stderr) == (0, "Failure", b"")


def test_its_directory_may_be_deep_its_name_a_link_and_its_descriptors_closed(ledger: Ledger, program: Path) -> None:
    place = Place(ledger, program)
    deep = place.directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    shutil.move(place.private, deep)
    shutil.move(place.directory / "bridge", deep)
    (place.directory / "other").symlink_to(deep / "bridge")
    place.private = deep / ".nodeplug"
    env = {"CNI_COMMAND": "ADD", "ASAN_OPTIONS": "detect_leaks=0"}
    assert run([place.directory / "other"], env=env, stdin=STDIN).stdout == b"launcher other\n" + STDIN
    assert run(["sh", "-c", f"exec {deep}/bridge <&-"], env=env).stdout == b"launcher bridge\n"


def test_a_reader_that_has_gone_does_no_harm(place: Place) -> None:
    place.says(WORDS, encode_answer(Answer(code=0, stdout=bytes(1 << 20))))
    env = {"CNI_COMMAND": "ADD", "ASAN_OPTIONS": "detect_leaks=0"}
    run(["sh", "-c", f"{place.directory}/bridge </dev/null | true"], env=env).ok()
