"""Taking plugins out of a directory while pods that they made need them: refused, or let go on for those pods alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from nodeplug.core.errors import ConfigInvalid, Refused
from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from nodeplug.ops.place import Door, Leaving
from nodeplug.ops.shim import Kind
from tests.child import Finished, run
from tests.ledger import Ledger
from tests.needs import needs

CNI = door("cni")
THREE = Door(CNI.launcher, CNI.parts, CNI.module, ("bridge", "loopback", "portmap"))
OLD = '#!/bin/sh\necho "old $0 $CNI_COMMAND $(cat)"\n'
KINDS: list[object] = ["python", pytest.param("c", marks=needs("program:cc"))]


class Needs:
    """Which plugins are needed by whom, as a test says it."""

    def __init__(self, **plugins: list[str]) -> None:
        self.now = plugins
        self.noted: dict[Path, tuple[str, ...]] = {}

    @property
    def leaving(self) -> Leaving:
        calls, answer = CNI.leaving.calls, CNI.leaving.answer
        return Leaving(calls=calls, answer=answer, attachments=lambda: self.now, note=self._note)

    def _note(self, directory: Path, names: object) -> None:
        self.noted[directory] = tuple(names)  # type: ignore[call-overload]  # a sequence


def what(changes: list[object]) -> dict[str, str]:
    return {change.name: change.what for change in changes}  # type: ignore[attr-defined]  # Change


def call(plugin: Path, command: str = "VERSION", stdin: bytes = b"{}") -> Finished:
    return run([plugin], env={"CNI_COMMAND": command, "CNI_PATH": "/"}, stdin=stdin)


def is_ours(plugin: Path) -> bool:
    """By its answer: a GC without a name is refused by ours, and not by what the tests put there."""
    return b'"code": 7' in call(plugin, "GC").stdout


@pytest.fixture
def replaced(directory: Path) -> Directory:
    """bridge and portmap were somebody else's before."""
    for name in ("bridge", "portmap"):
        (directory / name).write_text(OLD)
        (directory / name).chmod(0o755)
    place = Directory(directory)
    place.install(THREE, replace=True)
    return place


def test_plugins_that_nothing_needs_go_and_the_others_are_named_with_who_needs_them(replaced: Directory) -> None:
    needs = Needs(bridge=["pod default/web, pods/3f2a/eth0"], portmap=["pod default/web, pods/3f2a/eth0"])
    with pytest.raises(Refused) as refused:
        replaced.uninstall(needs.leaving)
    assert "pod default/web, pods/3f2a/eth0 (bridge, portmap)" in refused.value.message
    assert "loopback removed" in refused.value.hint
    assert (is_ours(replaced.path / "bridge"), is_ours(replaced.path / "portmap")) == (True, True)
    assert not (replaced.path / "loopback").exists()
    needs.now = {}
    assert what(replaced.uninstall(needs.leaving)) == {"bridge": "restored", "portmap": "restored"}
    assert {path.name for path in replaced.path.iterdir()} == {"bridge", "portmap"}
    assert (replaced.path / "bridge").read_text() == OLD


def test_many_pods_are_counted_and_not_all_named(replaced: Directory) -> None:
    needs = Needs(bridge=[f"pods/{n:04}/eth0" for n in range(500)])
    with pytest.raises(Refused, match=r"pods/0019/eth0 \(bridge\); and 480 more"):
        replaced.uninstall(needs.leaving)


def test_some_plugins_can_be_taken_out_alone(replaced: Directory) -> None:
    needs = Needs(bridge=["pods/3f2a/eth0"])
    assert what(replaced.uninstall(needs.leaving, only=["portmap"])) == {"portmap": "restored"}
    assert is_ours(replaced.path / "bridge") and is_ours(replaced.path / "loopback")
    with pytest.raises(ConfigInvalid, match="there is no plugin nothing"):
        replaced.uninstall(needs.leaving, only=["nothing"])


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_leaves_new_calls_are_for_the_old_plugin_and_old_ones_for_ours(directory: Path, kind: Kind) -> None:
    (directory / "bridge").write_text(OLD)
    (directory / "bridge").chmod(0o755)
    place, needs = Directory(directory), Needs(bridge=["pods/3f2a/eth0"])
    place.install(THREE, replace=True, kind=kind)
    assert what(place.uninstall(needs.leaving, drain=True)) == {
        "bridge": "leaving",
        "loopback": "removed",
        "portmap": "removed",
    }
    assert needs.noted == {directory: ("bridge",)}
    bridge = directory / "bridge"
    for command in ("ADD", "STATUS", "VERSION"):
        done = call(bridge, command, b"what the runtime says").ok()
        assert done.text.startswith("old ") and done.text.endswith(f"/bridge {command} what the runtime says")
    for command in ("DEL", "GC", "CHECK"):
        assert b'"code"' in call(bridge, command).stdout
        assert b"old" not in call(bridge, command).stdout
    assert what(place.uninstall(needs.leaving, drain=True)) == {"bridge": "leaving"}
    needs.now = {}
    assert what(place.uninstall(needs.leaving, drain=True)) == {"bridge": "restored"}
    assert {path.name for path in directory.iterdir()} == {"bridge"}
    assert bridge.read_text() == OLD
    assert needs.noted == {directory: ()}


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_comes_in_its_place_new_calls_are_to_be_tried_again(directory: Path, kind: Kind) -> None:
    place, needs = Directory(directory), Needs(portmap=["pods/3f2a/eth0"])
    place.install(THREE, kind=kind)
    place.uninstall(needs.leaving, drain=True)
    done = call(directory / "portmap", "ADD")
    assert (done.code, done.json()["code"]) == (1, 11)
    assert "taken out" in done.json()["msg"]
    assert is_ours(directory / "portmap")


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_plugin_that_is_a_link_is_found_where_the_link_led(directory: Path, kind: Kind) -> None:
    """One program under many names, as k3s has it, each a link to it."""
    (directory / "cni").write_text(OLD)
    (directory / "cni").chmod(0o755)
    for name, target in (("bridge", "cni"), ("portmap", str(directory / "cni"))):
        (directory / name).symlink_to(target)
    place, needs = Directory(directory), Needs(bridge=["a"], portmap=["a"])
    place.install(THREE, replace=True, kind=kind)
    place.uninstall(needs.leaving, drain=True)
    for name in ("bridge", "portmap"):
        assert call(directory / name, "ADD").ok().text.startswith("old")
    needs.now = {}
    place.uninstall(needs.leaving)
    assert os.readlink(directory / "bridge") == "cni"
    assert call(directory / "bridge", "ADD").ok().text.startswith("old")


def test_installing_again_ends_the_leaving(replaced: Directory) -> None:
    needs = Needs(bridge=["a"], portmap=["a"])
    replaced.uninstall(needs.leaving, drain=True)
    replaced.install(THREE, only=["bridge"])
    assert is_ours(replaced.path / "bridge") and not call(replaced.path / "bridge").text.startswith("old")
    assert call(replaced.path / "portmap").text.startswith("old")
    needs.now = {}
    assert what(replaced.uninstall(needs.leaving)) == {"bridge": "restored", "portmap": "restored"}


def test_what_a_call_under_way_has_made_meanwhile_brings_the_plugin_back(replaced: Directory) -> None:
    """The second look finds an attachment that the first could not see."""
    looks = iter([{}, {"bridge": ["pods/late/eth0"]}, {"bridge": ["pods/late/eth0"]}])
    leaving = Leaving(attachments=lambda: next(looks))
    with pytest.raises(Refused, match="pods/late/eth0"):
        replaced.uninstall(leaving)
    assert is_ours(replaced.path / "bridge")
    assert (replaced.path / "portmap").read_text() == OLD
    assert what(replaced.uninstall()) == {"bridge": "restored"}
    assert (replaced.path / "bridge").read_text() == OLD


def test_a_file_that_somebody_puts_over_a_leaving_plugin_is_his(replaced: Directory) -> None:
    needs = Needs(bridge=["a"])
    replaced.uninstall(needs.leaving, drain=True)
    (replaced.path / "bridge").unlink()
    (replaced.path / "bridge").write_text("an upgrade of theirs")
    needs.now = {}
    replaced.uninstall(needs.leaving, drain=True)
    assert (replaced.path / "bridge").read_text() == "an upgrade of theirs"


@needs("root")
@pytest.mark.parametrize(
    ("drain", "name", "calls"),
    [
        *((True, name, calls) for name in ("rename", "unlink", "link", "mkdir") for calls in (1, 2, 4)),
        *((False, name, calls) for name in ("rename", "unlink") for calls in (1, 2)),
    ],
)
def test_killed_at_any_step_it_leaves_a_plugin_that_answers_and_is_finished_by_the_next(
    directory: Path, name: str, calls: int, drain: bool
) -> None:
    for plugin in ("bridge", "portmap"):
        (directory / plugin).write_text(OLD)
        (directory / plugin).chmod(0o755)
    place = Directory(directory)
    place.install(THREE, replace=True)
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from nodeplug.core.errors import Refused
from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from nodeplug.ops.place import Leaving
left = {calls}
def dying(call):
    def wrapped(*arguments, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **more)
    return wrapped
cni = door("cni").leaving
leaving = Leaving(calls=cni.calls, answer=cni.answer, attachments=lambda: {{"bridge": ["a"]}})
place = Directory(Path({str(directory)!r}))
os.{name} = dying(os.{name})
try:
    place.uninstall(leaving, drain={drain})
except Refused:
    pass
"""
    killed = run([sys.executable, "-c", program])
    assert killed.code in (0, -signal.SIGKILL), killed.stderr
    for plugin in ("bridge", "portmap"):
        for command in ("ADD", "DEL"):
            done = call(directory / plugin, command)
            assert b"old" in done.stdout or b'"code"' in done.stdout, done
    # Whatever it came to: the pod that needs it is served by ours, and then all of it can be taken out.
    assert b'"code"' in call(directory / "bridge", "DEL").stdout
    if (directory / ".nodeplug").exists():
        place.uninstall()
    assert {path.name for path in directory.iterdir()} == {"bridge", "portmap"}
    assert (directory / "bridge").read_text() == (directory / "portmap").read_text() == OLD


@needs("sandbox")
def test_a_full_disk_is_said_and_leaves_the_plugins_as_they_are(ledger: Ledger) -> None:
    top = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", top]).ok()
    place, needs = Directory(top), Needs(bridge=["a"])
    place.install(THREE)
    filler = top / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    with pytest.raises(Exception, match="No space left on device"):
        place.uninstall(needs.leaving, drain=True)
    assert is_ours(top / "bridge")
    filler.unlink()
    assert what(place.uninstall(needs.leaving, drain=True))["bridge"] == "leaving"


def test_the_command_names_the_pods_and_has_a_status_of_its_own(directory: Path) -> None:
    command = [Path(__file__).parents[2] / "bin/nodeplug"]
    run([*command, "install", "cni", "--dest", directory, "--only", "static"]).ok()
    done = run([*command, "uninstall", "cni", "--dest", directory, "--drain", "--wait", "5", "--json"]).ok()
    assert json.loads(done.stdout)["plugins"] == {"static": "removed"}
    assert list(directory.iterdir()) == []
