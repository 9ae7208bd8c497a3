"""What an impatient operator does: twice, half-way, in the wrong order, with settings that cannot be."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from nodeplug.deviceplugin import watch
from nodeplug.deviceplugin.allocation import prefer
from nodeplug.deviceplugin.contract import Preference
from nodeplug.deviceplugin.settings import load
from nodeplug.kernel import inotify
from tests.child import until
from tests.deviceplugin.conftest import RESOURCE, Node, kill
from tests.deviceplugin.test_behaviour import AUTHORS
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("root")


def trouble(node: Node) -> str:
    """What the running daemons say of the resource in their state files."""
    found = []
    for path in node.top.glob("deviceplugin-*.json"):
        found += [item["trouble"] for item in json.loads(path.read_text())["resources"]]
    return " ".join(found)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_daemon_waits_and_takes_over_when_the_first_has_ended(node: Node, end: signal.Signals) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        first = node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        second = node.process()
        until(lambda: "another process of this node serves it" in trouble(node), "the second to say why it waits")
        assert kubelet.calls["Register"] == 1
        first.signal(end)
        first.wait()
        until(lambda: kubelet.calls["Register"] == 2, "the second to register")
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        second.signal(signal.SIGTERM)
        assert second.wait() == 0


def test_a_daemon_without_a_kubelet_says_what_it_waits_for(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.plugin() as plugin:
        until(lambda: "does a kubelet run here" in plugin._served[RESOURCE].registrar.trouble, "the reason")
        (node.kubelet_dir / "device-plugins").mkdir()
        until(lambda: "does the kubelet run?" in plugin._served[RESOURCE].registrar.trouble, "the next reason")
        with node.kubelet() as kubelet:
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "127.0.0.1:{taken}"])
def test_pages_that_cannot_be_served_there_stay_where_they_are_and_so_does_all_else(node: Node, listen: str) -> None:
    node.mknod("a")
    taken = socket.socket()
    node.ledger.adopt("taken", taken.close)
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    node.configure(health={"listen": "127.0.0.1:19462"})
    with node.kubelet() as kubelet:
        process = node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        where = listen.replace("{taken}", str(taken.getsockname()[1]))
        node.configure(node.resource(), node.resource("nodeplug.dev/more"), health={"listen": where})
        until(lambda: "the settings stay as they were" in process.output(), "a word in the log")
        with urllib.request.urlopen("http://127.0.0.1:19462/livez", timeout=5) as answer:
            assert answer.status == 200
        node.configure(node.resource(), node.resource("nodeplug.dev/more"), health={"listen": "127.0.0.1:19462"})
        kubelet.wait("nodeplug.dev/more", capacity=1)
        assert process.running()


def test_settings_that_are_written_in_place_and_slowly_withdraw_nothing(node: Node) -> None:
    node.mknod("a")
    node.configure()
    text = node.config.read_text()
    with node.kubelet() as kubelet:
        process = node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        for number in range(4):
            with node.config.open("w") as file:
                for line in text.splitlines(keepends=True):
                    file.write(line)
                    file.flush()
                    time.sleep(0.03)
                file.write(f"# {number}\n")
        time.sleep(1.0)
        assert "withdrawn" not in process.output()
        assert kubelet.calls["Register"] == 1
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_an_authors_plugin_keeps_its_own_resource_when_its_settings_are_read_again(node: Node, ledger: Ledger) -> None:
    node.mknod("led0")
    file = node.top / "leds.py"
    file.write_text(AUTHORS.replace("{dev}", str(node.dev)))
    node.configure(node.resource("nodeplug.dev/more"))
    with node.kubelet() as kubelet:
        argv = [sys.executable, str(file), "--config", str(node.config), "--kubelet-dir", str(node.kubelet_dir)]
        process = ledger.start(argv, env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
        kubelet.wait("example.com/led", capacity=1, allocatable=1)
        node.configure(node.resource("nodeplug.dev/other"))
        kubelet.wait("nodeplug.dev/other", capacity=1)
        process.signal(signal.SIGHUP)
        time.sleep(0.5)
        assert kubelet.resources()["example.com/led"] == (1, 1)


def test_names_that_come_and_go_with_the_settings_leave_no_series_behind(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        for number in range(5):
            node.configure(node.resource(f"nodeplug.dev/n{number}"))
            assert plugin.reload(load(str(node.config)))
            kubelet.wait(f"nodeplug.dev/n{number}", capacity=1)
            kubelet.admit(f"default/p{number}", "app", {f"nodeplug.dev/n{number}": 1})
        names = {
            sample.labels["resource"]
            for family in plugin.registry.collect()
            for sample in family.samples
            if "resource" in sample.labels
        }
        assert names == {"nodeplug.dev/n4"}


def test_a_preference_among_thousands_is_an_answer_within_an_admission(node: Node) -> None:
    node.configure()
    resource = load(str(node.config)).resource[0]
    ids = tuple(f"d{number:05}" for number in range(20_000))
    chosen = prefer(resource, Preference(ids, ids[:2000], 4000), {})
    assert len(chosen) == 4000
    assert chosen[:2000] == list(ids[:2000])
    assert len(set(chosen)) == 4000


def test_directories_are_followed_by_events_again_once_an_instance_is_free(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watch, "_RETRY", 0.1)
    monkeypatch.setattr(inotify.libc, "inotify_init1", lambda _: none_left())
    followed = watch.Watch([str(directory)], tick=0.05)
    followed.start()
    try:
        monkeypatch.undo()
        until(lambda: followed._inotify is not None and followed._armed, "the directory is watched")
    finally:
        followed.close()


def test_a_kubelet_that_is_restarted_while_the_plugin_is_killed_and_started_twice_has_its_devices(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        for _ in range(4):
            first, second = node.process(), node.process()
            time.sleep(0.3)
            kubelet.restart()
            kill(first)
            kubelet.wait(RESOURCE, capacity=1, allocatable=1, timeout=30)
            kill(second)
        node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1, timeout=30)
        until(lambda: len(kubelet.sockets) == 1, "the sockets of the killed are gone", timeout=90)
