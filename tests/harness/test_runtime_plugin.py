"""Running plugins: found by name, bounded in time and output, their errors passed on as they gave them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, Error, NotFound, TimedOut
from nodeplug.harness.runtime import plugin
from nodeplug.harness.runtime.plugin import PluginFailed
from tests.harness.fakes import Fakes

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path / "bin", "one")


def call(fakes: Fakes, name: str = "one", stdin: bytes = b"{}", timeout: float = 20.0) -> plugin.Answered:
    return plugin.call(name, "ADD", stdin, path=[fakes.directory], env=ENV, timeout=timeout)


def test_plugin_is_the_first_regular_file_of_that_name(tmp_path: Path) -> None:
    for directory in ("a", "b", "c"):
        (tmp_path / directory).mkdir()
    (tmp_path / "a/tool").mkdir()
    (tmp_path / "b/tool").symlink_to("nowhere")
    (tmp_path / "c/tool").touch()
    assert plugin.find("tool", [tmp_path / name for name in "abc"]) == tmp_path / "c/tool"
    with pytest.raises(NotFound, match="no plugin called 'tool'"):
        plugin.find("tool", [tmp_path / "a", tmp_path / "missing"])
    for name in ("", "../tool", "a/b"):
        with pytest.raises(ConfigInvalid, match="cannot be a plugin's name"):
            plugin.find(name, [tmp_path])


def test_plugin_gets_its_stdin_whole_and_the_path_it_was_found_on(fakes: Fakes) -> None:
    large = b'{"x": "' + b"y" * 700_000 + b'"}'
    fakes.tell("one", "ADD", stdout="said", stderr="whispered")
    answer = call(fakes, stdin=large)
    assert (answer.stdout, answer.stderr) == (b"said", "whispered")
    asked = fakes.asked()[0]
    assert len(asked.stdin["x"]) == 700_000
    assert asked.env["CNI_PATH"] == str(fakes.directory)


def test_error_object_is_passed_on_with_code_message_details_and_stderr(fakes: Fakes) -> None:
    fakes.tell("one", "ADD", exit=1, stdout='{"code": 11, "msg": "busy", "details": "try later"}', stderr="noise")
    with pytest.raises(PluginFailed) as caught:
        call(fakes)
    error = caught.value
    assert (error.plugin, error.command, error.code) == ("one", "ADD", 11)
    assert (error.msg, error.details, error.stderr) == ("busy", "try later", "noise")
    assert str(error) == "plugin one failed on ADD (code 11): busy; try later"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"exit": 3, "stderr": "no such thing"}, "exit status 3 and wrote no such thing"),
        ({"exit": 3}, "exit status 3 and said nothing"),
        ({"exit": 1, "stdout": "oops"}, "its stdout is no error object .*: oops"),
        ({"exit": 1, "stdout": '{"code": "7"}'}, r"\$\.code: expected a whole number"),
        ({"exit": 1, "stdout": "{}"}, "no message"),
    ],
)
def test_failure_without_an_error_object_says_what_was_seen(fakes: Fakes, told: dict[str, object], said: str) -> None:
    fakes.tell("one", "ADD", **told)
    with pytest.raises(PluginFailed, match=said) as caught:
        call(fakes)
    assert caught.value.code == 0


def test_plugin_ended_by_a_signal_is_told_as_such(fakes: Fakes) -> None:
    fakes.script("dies", "#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(PluginFailed, match="signal 9 and said nothing"):
        call(fakes, "dies")


def test_plugin_that_does_not_end_is_killed_with_its_children(fakes: Fakes) -> None:
    fakes.script("hangs", f"#!/bin/sh\nsleep 1000 & echo $! >{fakes.directory}/pid\nwait\n")
    with pytest.raises(TimedOut, match=r"not ended ADD after 0\.5 s and was killed"):
        call(fakes, "hangs", timeout=0.5)
    child = int((fakes.directory / "pid").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_plugin_that_floods_its_output_is_killed(fakes: Fakes, stream: str) -> None:
    fakes.script("loud", "#!/bin/sh\nexec cat /dev/zero" + (" >&2\n" if stream == "stderr" else "\n"))
    with pytest.raises(PluginFailed, match=f"more than {plugin.LIMIT} bytes"):
        call(fakes, "loud")


def test_child_that_keeps_the_pipes_open_does_not_hold_up_the_runtime(fakes: Fakes) -> None:
    fakes.script("leaves", f"#!/bin/sh\nsleep 1000 &\necho $! >{fakes.directory}/pid\necho done\n")
    answer = call(fakes, "leaves")
    os.kill(int((fakes.directory / "pid").read_text()), 9)
    assert answer.stdout == b"done\n"


def test_plugin_that_does_not_read_its_stdin_may_succeed(fakes: Fakes) -> None:
    fakes.script("deaf", "#!/bin/sh\nexec <&-\necho '{}'\n")
    assert call(fakes, "deaf", stdin=b"x" * 500_000).stdout == b"{}\n"


def test_plugin_that_is_being_written_is_tried_again(fakes: Fakes) -> None:
    binary = fakes.directory / "busy"
    binary.write_bytes(Path("/bin/true").read_bytes())
    binary.chmod(0o755)
    writer = os.open(binary, os.O_WRONLY)
    closer = threading.Timer(0.3, os.close, [writer])
    closer.start()
    assert call(fakes, "busy").stdout == b""
    closer.join()


def test_file_that_cannot_be_run_says_what_may_be_wrong(fakes: Fakes) -> None:
    (fakes.directory / "plain").write_text("text")
    with pytest.raises(Error, match=r"cannot run .*/plain: Permission denied.*execute bit"):
        call(fakes, "plain")
    fakes.script("orphan", "#!/no/such/interpreter\n")
    with pytest.raises(Error, match=r"cannot run .*/orphan: No such file.*interpreter"):
        call(fakes, "orphan")


@pytest.mark.parametrize(
    ("told", "versions"),
    [
        ({"stdout": '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'}, ("0.4.0", "1.0.0")),
        ({"stdout": '{"cniVersion": "0.2.0"}'}, ("0.1.0", "0.2.0")),
        ({"exit": 1, "stdout": '{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}'}, ("0.1.0",)),
    ],
)
def test_versions_of_a_plugin_are_what_it_says(fakes: Fakes, told: dict[str, object], versions: tuple[str]) -> None:
    fakes.tell("one", "VERSION", **told)
    assert plugin.versions("one", path=[fakes.directory], env=ENV) == versions


def test_plugin_without_versions_is_refused(fakes: Fakes) -> None:
    fakes.tell("one", "VERSION", stdout="{}")
    with pytest.raises(ConfigInvalid, match="does not say which versions"):
        plugin.versions("one", path=[fakes.directory], env=ENV)


def test_calls_of_many_threads_do_not_wait_for_each_other(fakes: Fakes) -> None:
    fakes.script("slow", "#!/bin/sh\nwhile ! [ -e ${0%/*}/go ]; do sleep 0.02; done\necho ok\n")
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(call(fakes, "slow").stdout)) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    (fakes.directory / "go").touch()
    for thread in threads:
        thread.join()
    assert answers == [b"ok\n"] * 8
