"""docs/deviceplugin.md and what is shipped beside it: every example is read or run, every setting stands there."""

from __future__ import annotations

import os
import re
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from nodeplug.core.document import decode, reference
from nodeplug.daemon.metrics import open_registry
from nodeplug.deviceplugin.metrics import Meters
from nodeplug.deviceplugin.settings import Settings, load, problems
from tests.deviceplugin.conftest import Node
from tests.examples import ROOT, examples
from tests.needs import needs
from tests.sandbox import CHECKOUT

EXAMPLES = examples("deviceplugin.md")
SETTINGS = sorted(name for name in EXAMPLES if name.endswith(".toml"))
PAGE = (ROOT / "docs" / "deviceplugin.md").read_text()


def read(text: str) -> Settings:
    found = decode(Settings, tomllib.loads(text)["deviceplugin"], path="deviceplugin")
    assert list(problems(found)) == []
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_an_example_is_good_settings(name: str) -> None:
    assert read(EXAMPLES[name]).resource


def test_every_setting_stands_on_the_page() -> None:
    assert reference(Settings, "deviceplugin").strip() in PAGE, "run: nodeplug device settings"


def test_every_metric_stands_on_the_page() -> None:
    registry = open_registry("deviceplugin")
    Meters(registry)
    names = [metric.name for metric in registry.collect() if metric.name.startswith("nodeplug_deviceplugin_")]
    assert len(names) > 10
    for name in names:
        assert f"`{name.removeprefix('nodeplug_deviceplugin_')}" in PAGE, name


@needs("root")
def test_the_serial_example_gives_a_serial_port(node: Node) -> None:
    (node.dev / "by-id").mkdir()
    node.mknod("ttyUSB0")
    (node.dev / "by-id/usb-thing").symlink_to("../ttyUSB0")
    text = EXAMPLES["serial.toml"].replace("/dev/serial/by-id", str(node.dev / "by-id"))
    paths = "\n".join(f'{name} = "{node.top / name}"' for name in ("sys", "links", "cdi", "udev"))
    node.config.write_text(f"{text}\n[deviceplugin.directories]\n{paths}\n")
    found = re.search(r"limits:\n +(\S+): (\d+)\n", EXAMPLES["pod.yaml"])
    assert found is not None
    wanted = {found[1]: int(found[2])}
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait("nodeplug.dev/serial", capacity=1, allocatable=1)
        given = kubelet.admit("default/reader", "reader", wanted)["nodeplug.dev/serial"]
    assert given.envs == {"SERIAL_DEVICE": "/dev/serial0"}
    assert [(spec.container_path, spec.permissions) for spec in given.devices] == [("/dev/serial0", "rw")]


@needs("root")
def test_the_authors_example_runs(node: Node) -> None:
    node.mknod("led0")
    file = node.top / "leds.py"
    file.write_text(EXAMPLES["leds.py"].replace("/dev/led*", f"{node.dev}/led*"))
    with node.kubelet() as kubelet:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        argv = [sys.executable, str(file), "--kubelet-dir", str(node.kubelet_dir)]
        process = node.ledger.start(argv, env=environment)
        kubelet.wait("example.com/led", capacity=2, allocatable=2)
        given = kubelet.admit("default/p", "c", {"example.com/led": 1})["example.com/led"]
        assert given.envs == {"LED": str(node.dev / "led0")}
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_the_shipped_settings_are_good() -> None:
    assert read((ROOT / "deploy/deviceplugin/deviceplugin.toml").read_text()).resource
    load(str(ROOT / "deploy/deviceplugin/deviceplugin.toml"))


def test_the_daemonset_mounts_what_it_uses_where_it_is_on_the_node() -> None:
    text = (ROOT / "deploy/deviceplugin/daemonset.yaml").read_text()
    assert re.search(r"maxSurge: 0\b", text)
    mounts = dict(re.findall(r"- name: (\S+)\n +mountPath: (\S+)", text))
    hosts = dict(re.findall(r"- name: (\S+)\n +hostPath:\n +path: (\S+)", text))
    assert set(mounts) == {*hosts, "settings"}
    assert all(mounts[name] == path for name, path in hosts.items())
    needed = {"/dev", "/sys", "/run/udev", "/run/nodeplug", "/var/run/cdi"}
    needed |= {f"/var/lib/kubelet/{name}" for name in ("device-plugins", "plugins_registry", "pod-resources")}
    assert needed == set(hosts.values())


def test_the_unit_starts_the_executable_that_is_here() -> None:
    unit = (ROOT / "systemd/nodeplug-deviceplugin.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert Path(CHECKOUT / "bin" / Path(command.partition("=")[2].split()[0]).name).exists()
    for option in ("PrivateDevices", "PrivateMounts", "ProtectSystem=strict", "PrivateNetwork"):
        assert option not in unit, "it would hide the node's devices, events or CDI directory"
