"""A kubelet's device manager and our plugin beside it, each with directories of its own below one short path.

def test_...(node):
    node.mknod("a"); node.configure(node.resource("nodeplug.dev/x"))
    with node.kubelet(), node.plugin():
        ...
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.log import Log
from nodeplug.deviceplugin.daemon import Daemon
from nodeplug.deviceplugin.settings import load
from nodeplug.harness.kubelet.devicemanager import DeviceManager
from tests.child import Process
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT

RESOURCE = "nodeplug.dev/thing"


class Node:
    """One node: device nodes in `dev`, a kubelet's directory, a settings file."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.top = ledger.directory()
        self.dev = self.top / "dev"
        self.kubelet_dir = self.top / "kubelet"
        self.config = self.top / "deviceplugin.toml"
        self.cdi = self.top / "cdi"
        self.links = self.top / "links"
        self.log: list[str] = []
        self.dev.mkdir()
        self.kubelet_dir.mkdir()
        self._numbers = itertools.count()
        self.manager: DeviceManager | None = None

    def mknod(self, name: str, minor: int | None = None, *, major: int = 250) -> Path:
        """A device node that no driver stands behind, its number free unless told."""
        path = self.dev / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = minor if minor is not None else 1000 + next(self._numbers)
        os.mknod(path, 0o20660, os.makedev(major, number))
        return path

    def resource(self, name: str = RESOURCE, **more: Any) -> dict[str, Any]:
        """A resource's table: all of `dev`, unless `match` says otherwise."""
        return {"name": name, "match": [{"path": f"{self.dev}/*"}], "hold": 0, **more}

    def settings(self, *resources: dict[str, Any], **more: Any) -> dict[str, Any]:
        directories = {
            "links": str(self.links),
            "cdi": str(self.cdi),
            "udev": str(self.top / "udev"),
            "sys": str(self.top / "sys"),
            "dev": str(self.dev),
            **more.pop("directories", {}),
        }
        return {"resource": list(resources), "directories": directories, **more}

    def configure(self, *resources: dict[str, Any], **more: Any) -> Path:
        """Write the settings file, whole."""
        text = toml(self.settings(*(resources or (self.resource(),)), **more))
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.config)
        return self.config

    @contextmanager
    def kubelet(self, **options: Any) -> Iterator[DeviceManager]:
        with DeviceManager(self.kubelet_dir, **options) as manager:
            self.manager = manager
            yield manager

    @contextmanager
    def plugin(self) -> Iterator[Daemon]:
        """The daemon in this process, on the settings file."""
        running = self.start()
        try:
            yield running
        finally:
            running.close(5.0)

    def start(self) -> Daemon:
        log = Log(lambda line, _level: self.log.append(line.decode()), level="debug")
        return Daemon(load(str(self.config)), kubelet_dir=str(self.kubelet_dir), log=log, source=str(self.config))

    def process(self) -> Process:
        """The daemon as the executable that is installed."""
        argv = [str(CHECKOUT / "bin/nodeplug-deviceplugin"), "--config", str(self.config)]
        return self.ledger.start([*argv, "--kubelet-dir", str(self.kubelet_dir)])

    def clear(self) -> None:
        shutil.rmtree(self.dev)
        self.dev.mkdir()


def toml(settings: dict[str, Any]) -> str:
    """The table [deviceplugin]. JSON's arrays and strings are TOML's; tables within are written inline."""
    lines = ["[deviceplugin]"]
    tables = []
    for key, value in settings.items():
        if key == "resource":
            for resource in value:
                tables.append("[[deviceplugin.resource]]")
                tables += [f"{name} = {inline(part)}" for name, part in resource.items()]
        elif isinstance(value, dict):
            tables.append(f"[deviceplugin.{key}]")
            tables += [f"{name} = {inline(part)}" for name, part in value.items()]
        else:
            lines.append(f"{key} = {inline(value)}")
    return "\n".join([*lines, *tables, ""])


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {inline(part)}" for key, part in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(inline(part) for part in value) + "]"
    return json.dumps(value)


def kill(process: Process) -> None:
    """SIGKILL, and wait for the end."""
    process.signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def node(ledger: Ledger) -> Node:
    return Node(ledger)
