"""Who works on an attachment works alone: ADD, DEL and CHECK of one, and a network's GC beside none of them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni import AddRequest, DelRequest, GcRequest, Plugin, Result, StatusRequest
from nodeplug.core import files, paths
from nodeplug.core.naming import identity
from tests.child import until
from tests.cni.calls import ask, environment
from tests.ledger import Ledger

pytestmark = pytest.mark.needs("sandbox")
NET = {"cniVersion": "1.1.0", "name": "net"}
GC = {**NET, "cni.dev/valid-attachments": []}


class Gate(Plugin):
    """Its ADD and GC stay inside until they are let go."""

    name = "gate"
    inside = threading.Semaphore(0)
    leave = threading.Semaphore(0)

    def add(self, request: AddRequest) -> Result:
        self.inside.release()
        assert self.leave.acquire(timeout=20)
        return Result()

    def gc(self, request: GcRequest) -> None:
        self.inside.release()
        assert self.leave.acquire(timeout=20)


class Free(Plugin):
    """Its DEL, ADD, GC and STATUS are done at once."""

    name = "free"

    def add(self, request: AddRequest) -> Result:
        return Result()


def call(plugin: type[Plugin], command: str, pod: str, container: str = "a", **env: str) -> int:
    config = GC if command == "GC" else NET
    return ask(plugin, environment(command, CNI_CONTAINERID=container, CNI_NETNS=pod, **env), config)[0]


class Background:
    """A call in a thread."""

    def __init__(self, *arguments: Any) -> None:
        self.codes: list[int] = []
        self._thread = threading.Thread(target=lambda: self.codes.append(call(*arguments)))
        self._thread.start()

    def ended(self) -> bool:
        self._thread.join(0.05)
        return not self._thread.is_alive()


@pytest.mark.parametrize("second", ["ADD", "DEL", "GC"])
def test_a_second_call_on_the_attachment_waits_for_the_first(ledger: Ledger, second: str) -> None:
    pod = ledger.netns().path
    first = Background(Gate, "ADD", pod)
    assert Gate.inside.acquire(timeout=10)
    later = Background(Free, second, pod)
    assert call(Free, "ADD", pod, "b") == 0, "another container has no wait"
    assert call(Free, "STATUS", pod) == 0
    assert not later.ended()
    Gate.leave.release()
    until(first.ended, "the first call's end")
    until(later.ended, "the second call's turn")
    assert (first.codes, later.codes) == ([0], [0])


def test_a_networks_gc_keeps_its_attachments_waiting_and_no_other_networks(ledger: Ledger) -> None:
    pod = ledger.netns().path
    gc = Background(Gate, "GC", pod)
    assert Gate.inside.acquire(timeout=10)
    later = Background(Free, "DEL", pod)
    config = {**NET, "name": "other"}
    assert ask(Free, environment("DEL", CNI_CONTAINERID="a", CNI_NETNS=pod), config)[0] == 0
    assert not later.ended()
    Gate.leave.release()
    until(gc.ended, "the end of gc")
    until(later.ended, "the attachment's turn")


def test_what_a_plugin_executes_is_told_of_the_lock_and_does_not_wait_for_it(ledger: Ledger) -> None:
    pod = ledger.netns().path

    class Upper(Plugin):
        """Calls another, as one that executes an address manager does."""

        name = "upper"

        def delete(self, request: DelRequest) -> None:
            with pytest.raises(files.TryAgain), files.range_lock(lock("net"), ours, timeout=0.01):
                pass
            assert ask(Free, {**request.env, "CNI_COMMAND": "DEL"}, NET)[0] == 0
            assert ask(Free, {**request.env, "CNI_COMMAND": "DEL"}, {**NET, "name": "other"})[0] == 0

    ours = identity("net", "a", "eth0")
    assert call(Upper, "DEL", pod) == 0


def test_a_status_and_a_plugin_without_a_netns_lock_nothing(ledger: Ledger) -> None:
    class Outside(Plugin):
        name = "outside"
        needs_netns = False

        def delete(self, request: DelRequest) -> None:
            with files.range_lock(lock(request.network), None, timeout=1):
                pass

        def status(self, request: StatusRequest) -> None:
            with files.range_lock(lock(request.network), None, timeout=1):
                pass

    assert call(Outside, "DEL", "") == 0
    assert call(Outside, "STATUS", "") == 0


@pytest.mark.parametrize("length", [255, 256, 4000])
def test_a_networks_name_of_any_length_has_a_lock(ledger: Ledger, length: int) -> None:
    config = {"cniVersion": "1.0.0", "name": "n" * length}
    assert ask(Free, environment("DEL", CNI_NETNS=ledger.netns().path), config)[0] == 0


def test_a_lock_directory_that_cannot_be_made_is_told_with_its_path(ledger: Ledger) -> None:
    directory = Path(paths.LOCKS, "cni")
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.write_text("in the way")
    code, answer, _ = ask(Free, environment("DEL", CNI_NETNS=ledger.netns().path), NET)
    assert (code, answer["code"]) == (1, 5)
    assert str(directory) in answer["msg"]
    directory.unlink()


def lock(network: str) -> str:
    return f"{paths.LOCKS}/cni/{network}"
