"""What operators write and see: commands, shares, health, reset, reload, the commands of `nodeplug device`."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nodeplug.core.errors import Refused
from nodeplug.deviceplugin import cdi
from nodeplug.deviceplugin.cli import cli
from nodeplug.deviceplugin.settings import load
from nodeplug.harness.kubelet.plugin import Plugin
from tests.child import until
from tests.deviceplugin.conftest import RESOURCE, Node
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("root")


def script(node: Node, name: str, text: str) -> str:
    """An executable of the test's own."""
    path = node.top / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_a_commands_devices_are_published_and_followed(node: Node) -> None:
    path = node.mknod("a")
    answer = node.top / "answer.json"
    entry = {"id": "one", "nodes": [str(path)], "numa": [1], "properties": {"colour": "red"}}
    answer.write_text(json.dumps([entry]))
    command = script(node, "list", f"cat {answer}\n")
    rule = {"exec": {"command": [command], "interval": "200ms"}}
    node.configure(node.resource(match=[rule], env={"COLOUR": "{colour}"}))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert kubelet.topology(RESOURCE) == {"one": (1,)}
        assert kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE].envs == {"COLOUR": "red"}
        kubelet.remove_pod("default/p")
        answer.write_text(json.dumps([entry, {"id": "two", "healthy": False, "reason": "cold"}]))
        kubelet.wait(RESOURCE, capacity=2, allocatable=1)
        answer.write_text("not JSON")
        until(lambda: any("not JSON" in line for line in node.log), "a word in the log")
        kubelet.wait(RESOURCE, capacity=2, allocatable=0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("sleep 60\n", "did not end in time"), ("yes\n", "wrote more than"), ("exit 3\n", "ended with status 3")],
)
def test_a_command_is_bounded(node: Node, text: str, complaint: str) -> None:
    command = script(node, "bad", text)
    rule = {"exec": {"command": [command], "interval": "200ms", "timeout": "300ms", "limit": "64Ki"}}
    node.mknod("good")
    node.configure(node.resource(match=[rule, {"path": f"{node.dev}/*"}]))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        until(lambda: any(complaint in line for line in node.log), "the complaint in the log")


def test_a_probe_turns_health_after_so_many_answers(node: Node) -> None:
    node.mknod("a")
    bad = node.top / "bad"
    probe = {
        "command": [script(node, "probe", f"test ! -e {bad} || {{ echo tired >&2; exit 1; }}\n")],
        "interval": "100ms",
    }
    node.configure(node.resource(probe={**probe, "fall": 2, "rise": 2}))
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        bad.touch()
        kubelet.wait(RESOURCE, capacity=1, allocatable=0)
        (device,) = plugin.discovery.publisher(RESOURCE).current.devices
        assert "tired" in device.reason
        bad.unlink()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_a_reset_command_runs_before_each_start_and_may_refuse(node: Node) -> None:
    node.mknod("a")
    trace, refuse = node.top / "trace", node.top / "refuse"
    command = script(node, "reset", f'echo "$1 $DEVICE_ID" >> {trace}; test ! -e {refuse}\n')
    node.configure(node.resource(reset={"command": [command, "{host}"]}))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.admit("default/p", "c", {RESOURCE: 1})
        (id,) = kubelet.held("default/p", "c", RESOURCE)
        kubelet.start_container("default/p", "c")
        kubelet.start_container("default/p", "c")
        assert trace.read_text().splitlines() == [f"{node.dev / 'a'} {id}"] * 2
        refuse.touch()
        with pytest.raises(Refused, match="ended with status 1"):
            kubelet.start_container("default/p", "c")


def test_environment_mounts_annotations_and_paths_are_filled_in(node: Node) -> None:
    for name in ("ttyUSB0", "ttyUSB1"):
        node.mknod(name)
    table = node.resource(
        permissions="rw",
        container_path="/dev/serial{index}",
        env={"SERIAL": "{container_path}", "HOST": "{name}"},
        annotations={"example.com/devices": "{id}"},
        mounts=[{"host": "/etc/serial.conf", "container": "/etc/serial.conf"}],
    )
    node.configure(table)
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        given = kubelet.admit("default/p", "c", {RESOURCE: 2})[RESOURCE]
        assert [(spec.container_path, spec.permissions) for spec in given.devices] == [
            ("/dev/serial0", "rw"),
            ("/dev/serial1", "rw"),
        ]
        assert given.envs == {"SERIAL": "/dev/serial0,/dev/serial1", "HOST": "ttyUSB0,ttyUSB1"}
        assert [(m.host_path, m.container_path, m.read_only) for m in given.mounts] == [
            ("/etc/serial.conf", "/etc/serial.conf", True)
        ]
        assert given.annotations["example.com/devices"].count(",") == 1


def test_shares_of_a_device_are_one_device_inside(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(share={"replicas": 4}))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=4, allocatable=4)
        assert all(re.search(r"::[0-3]$", id) for id in kubelet.devices(RESOURCE))
        given = kubelet.admit("default/p", "c", {RESOURCE: 3})[RESOURCE]
        assert len(given.devices) == 1


def test_an_answer_is_the_same_bytes_each_time(node: Node) -> None:
    for name in "abcdef":
        node.mknod(name)
    node.configure(node.resource(env={"A": "{id}", "B": "{path}"}))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=6)
        ids = sorted(kubelet.devices(RESOURCE))
        direct = Plugin(RESOURCE, str(kubelet.plugins / kubelet.sockets[0]), kubelet.calls)
        answers = {direct.allocate(order).SerializeToString(deterministic=True) for order in (ids, ids[::-1]) * 3}
        direct.close()
        assert len(answers) == 1


def test_the_executable_reloads_when_its_file_changes_and_on_sighup(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        process = node.process()
        kubelet.wait(RESOURCE, capacity=1)
        node.configure(node.resource(), node.resource("nodeplug.dev/more"))
        kubelet.wait("nodeplug.dev/more", capacity=1)
        assert kubelet.lists(RESOURCE) == 1
        node.config.write_text("this is not TOML")
        until(lambda: "is not TOML" in process.output(), "a word in the log")
        node.configure(node.resource())
        process.signal(signal.SIGHUP)
        kubelet.wait("nodeplug.dev/more", capacity=0)
        assert kubelet.calls["Register"] == 2
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_settings_in_a_configmap_are_followed(node: Node) -> None:
    """A ConfigMap's file is a link into a directory that is replaced by one rename."""
    node.mknod("a")
    node.configure()
    volume = node.top / "volume"
    for generation in ("1", "2"):
        (volume / f"..{generation}").mkdir(parents=True)
    (volume / "..1/f.toml").write_text(node.config.read_text())
    (volume / "..data").symlink_to("..1")
    (volume / "f.toml").symlink_to("..data/f.toml")
    node.configure(node.resource(), node.resource("nodeplug.dev/more"))
    (volume / "..2/f.toml").write_text(node.config.read_text())
    node.config = volume / "f.toml"
    with node.kubelet() as kubelet:
        node.process()
        kubelet.wait(RESOURCE, capacity=1)
        (volume / "..new").symlink_to("..2")
        os.rename(volume / "..new", volume / "..data")
        kubelet.wait("nodeplug.dev/more", capacity=1)


def test_bad_settings_end_the_start_with_every_problem(node: Node) -> None:
    node.config.write_text('[deviceplugin]\nregistraton = "auto"\n[[deviceplugin.resource]]\nname = "x"\n')
    process = node.process()
    assert process.wait() == 78
    for word in ("registration?", "deviceplugin.resource[0].name", "deviceplugin.resource[0].match"):
        assert word in process.output()


def test_pages_tell_health_and_metrics(node: Node) -> None:
    node.mknod("a")
    node.configure(health={"listen": "127.0.0.1:19461", "unregistered": "300ms"})

    def page(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:19461{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    with node.plugin():
        until(lambda: page("/readyz")[0] == 503, "readiness to fail without a kubelet")
        assert "not registered" in page("/readyz")[1]
        assert page("/livez")[0] == 200
        with node.kubelet() as kubelet:
            kubelet.wait(RESOURCE, capacity=1)
            until(lambda: page("/readyz")[0] == 200, "readiness")
            node.mknod("b")
            kubelet.wait(RESOURCE, capacity=2)
            text = page("/metrics")[1]
            for line in (
                f'nodeplug_deviceplugin_registered{{resource="{RESOURCE}"}} 1.0',
                f'nodeplug_deviceplugin_registrations_total{{flow="kubelet.sock",resource="{RESOURCE}"}} 1.0',
                f'nodeplug_deviceplugin_hotplug_seconds_count{{resource="{RESOURCE}"}} 1.0',
            ):
                assert line in text
        until(lambda: page("/readyz")[0] == 503, "readiness to fail when the kubelet is gone")


def test_publishes_are_at_most_four_a_second(node: Node) -> None:
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=0)
        began = time.monotonic()
        for number in range(60):
            node.mknod(f"d{number}")
            time.sleep(0.03)
        kubelet.wait(RESOURCE, capacity=60)
        assert kubelet.lists(RESOURCE) <= 2 + 4 * (time.monotonic() - began + 1)


def test_cdi_files_follow_every_rule_of_the_specification(node: Node) -> None:
    for name in ("a", "0digit", "with space", "x" * 80):
        node.mknod(name)
    names = ("nodeplug.dev/thing", "vendor-1.example.com/class.with.dots")
    node.configure(*(node.resource(name, cdi="always", uid=1000, gid=44) for name in names))
    with node.kubelet() as kubelet, node.plugin():
        for name in names:
            kubelet.wait(name, capacity=4)
        until(lambda: len(list(node.cdi.glob("*.json"))) == 2, "both files")
        assert all(path.suffix == ".json" for path in node.cdi.iterdir())
        for path in node.cdi.iterdir():
            check_cdi(json.loads(path.read_text()))
            assert stat.S_IMODE(path.stat().st_mode) == 0o644


def check_cdi(spec: dict[str, Any]) -> None:
    """What loaders of CDI refuse."""
    assert spec.keys() == {"cdiVersion", "kind", "devices"}
    vendor, _, kind = spec["kind"].partition("/")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]", vendor)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]", kind)
    version = tuple(map(int, spec["cdiVersion"].split(".")))
    assert version >= (0, 5, 0), "hostPath, and names that begin with a digit"
    assert version >= (0, 6, 0) or "." not in kind
    names = [device["name"] for device in spec["devices"]]
    assert names and len(names) == len(set(names))
    for device in spec["devices"]:
        assert device.keys() == {"name", "containerEdits"}
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", device["name"])
        assert device["containerEdits"].keys() == {"deviceNodes"}
        for entry in device["containerEdits"]["deviceNodes"]:
            assert entry.keys() <= {"path", "hostPath", "type", "major", "minor", "permissions", "uid", "gid"}
            assert entry["path"].startswith("/") and entry["hostPath"].startswith("/")
            assert entry["type"] in ("b", "c") and set(entry["permissions"]) <= set("rwm")


def test_a_cdi_file_stays_while_a_pod_needs_it(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(cdi="always"), node.resource("nodeplug.dev/other"))
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.admit("default/p", "c", {RESOURCE: 1})
        node.configure(node.resource("nodeplug.dev/other"))
        assert plugin.reload()
        file = node.cdi / cdi.file_name(RESOURCE)
        until(lambda: plugin._sweep() or plugin.pods.in_use(RESOURCE), "podresources to be known")
        plugin._sweep()
        assert file.exists()
        kubelet.remove_pod("default/p")
        until(lambda: plugin._sweep() or not file.exists(), "the file to be removed")


def run_cli(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_discover_says_what_would_be_published_and_by_which_rule(node: Node) -> None:
    target = node.mknod("ttyUSB0")
    (node.dev / "link").symlink_to(target)
    node.configure(node.resource(match=[{"path": f"{node.dev}/link"}, {"path": f"{node.dev}/tty*"}]))
    found = json.loads(run_cli("discover", "--config", str(node.config), "--json"))
    assert [(entry["health"], entry["rule"]) for entry in found] == [
        ("healthy", f"path {node.dev}/link"),
        ("not published", f"path {node.dev}/tty*"),
    ]
    assert "healthy" in run_cli("discover", "--config", str(node.config))
    assert not node.links.exists()


def test_explain_says_why_rule_by_rule(node: Node) -> None:
    node.mknod("ttyUSB0")
    (node.dev / "file").touch()
    node.configure(node.resource(match=[{"path": f"{node.dev}/tty*"}, {"usb": {"vendor": "0403"}}]))
    told = run_cli("explain", str(node.dev / "ttyUSB0"), "--config", str(node.config))
    assert "matches" in told and "published as" in told and "no USB device" in told
    assert "does not match" in run_cli("explain", str(node.dev / "file"), "--config", str(node.config))


def test_list_says_who_has_what_since_when(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.admit("team/p", "c", {RESOURCE: 1})
        arguments = ("list", "--config", str(node.config), "--kubelet-dir", str(node.kubelet_dir))
        states = node.top.glob
        until(lambda: any("true" in path.read_text() for path in states("deviceplugin-*.json")), "the state")
        (entry,) = json.loads(run_cli(*arguments, "--json"))["devices"]
        assert (entry["health"], entry["registered"], entry["pods"]) == ("healthy", True, ["team/p (c)"])
        assert abs(entry["since"] - time.time()) < 60
        assert "team/p (c)" in run_cli(*arguments)


def test_the_settings_page_names_every_key(node: Node) -> None:
    shown = run_cli("settings")
    for word in ("`registration`", "`deviceplugin.resource`", "`replicas`", "`vendor`", "`members`"):
        assert word in shown


AUTHORS = """
import glob
from nodeplug.deviceplugin import Device, Node, Source, run


class Leds(Source):
    resource = "example.com/led"
    interval = 0.2

    def devices(self):
        for path in glob.glob("{dev}/led*"):
            yield Device(id=path.rpartition("/")[2], nodes=(Node(path),))


if __name__ == "__main__":
    run(Leds)
"""


def test_an_authors_plugin_is_a_class_and_a_call(node: Node, ledger: Ledger) -> None:
    node.mknod("led0")
    file = node.top / "leds.py"
    file.write_text(AUTHORS.replace("{dev}", str(node.dev)))
    with node.kubelet() as kubelet:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = ledger.start([sys.executable, str(file), "--kubelet-dir", str(node.kubelet_dir)], env=environment)
        kubelet.wait("example.com/led", capacity=1, allocatable=1)
        node.mknod("led1")
        kubelet.wait("example.com/led", capacity=2, allocatable=2)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


class Broken:
    """An author's class that fails once it has said something."""

    interval = 0.1

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls = 0

    def devices(self) -> list[Any]:
        self.calls += 1
        if self.calls > 2:
            raise ValueError("out of luck")
        from nodeplug.devices.contract import Device
        from nodeplug.devices.contract import Node as DeviceNode

        return [Device("x", (DeviceNode(self.path),))]


def test_a_class_that_fails_keeps_its_devices_a_while_and_others_go_on(node: Node) -> None:
    path = node.mknod("a")
    other = node.mknod("b")
    rule = {"type": {"class": "tests.deviceplugin.test_behaviour:Broken", "options": {"path": str(path)}}}
    node.configure(node.resource(match=[rule, {"path": str(other)}]))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        kubelet.wait(RESOURCE, capacity=2, allocatable=1)
        assert any("out of luck" in line for line in node.log)


def test_a_class_that_is_not_there_is_told_at_the_start(node: Node) -> None:
    node.configure(node.resource(match=[{"type": {"class": "no.such:Thing"}}]))
    with pytest.raises(Exception, match=r"cannot make no\.such:Thing"):
        load(str(node.config))


def test_importing_the_contract_loads_no_grpc() -> None:
    code = "import sys, nodeplug.deviceplugin.contract; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


def test_unchanged_files_are_not_written_again(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(cdi="always"))
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        (file,) = node.cdi.iterdir()
        before = file.stat().st_ino
        for _ in range(3):
            plugin.reload()
            kubelet.restart()
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert Path(file).stat().st_ino == before
