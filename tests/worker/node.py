"""A node with a worker: plugins in a directory, nodeplugd as a process, calls made as a runtime makes them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodeplug.core.call import Call
from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory
from nodeplug.ops.shim import Kind
from tests.child import Finished, Process, run, until
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.space import Space

DAEMON = CHECKOUT / "bin" / "nodeplugd"
LOOPBACK: dict[str, Any] = {"cniVersion": "1.1.0", "name": "lo-net", "type": "loopback"}
BRIDGE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "bridge",
    "bridge": "np-test0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/16"},
}


class Node:
    """Its plugins are in `plugins`, in place of those of `before`; `more` is added to [worker] of its settings.

    `program` is what runs as nodeplugd: a script and its first arguments. With `beside` it has no nodeplugd of its own:
    its plugins call that of the other.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        kind: Kind = "c",
        more: str = "",
        before: Path | None = None,
        program: Sequence[str | Path] = (DAEMON,),
        beside: Node | None = None,
    ) -> None:
        self.ledger = ledger
        self.program = program
        self.directory = ledger.directory()
        self.plugins = self.directory / "bin"
        self.sockets = beside.sockets if beside is not None else self.directory / "run"
        self.config = self.directory / "etc"
        self.config.mkdir()
        self.configure(more)
        installed = dataclasses.replace(door("cni"), socket=str(self.socket))
        if before is not None:
            shutil.copytree(before, self.plugins)
        Directory(self.plugins).install(installed, kind=kind, replace=before is not None)
        self.process: Process | None = None

    def configure(self, more: str = "") -> None:
        text = f'[worker]\ndirectory = "{self.sockets}"\n{more}\n[worker.collect]\nenabled = false\n'
        (self.config / "nodeplug.toml").write_text(text)

    @property
    def socket(self) -> Path:
        return self.sockets / "cni.sock"

    def start(self, *, wait: bool = True, **environ: str) -> Process:
        argv = [sys.executable, "-I", *self.program, "--config", self.config]
        self.process = self.ledger.start(argv, env={**os.environ, **environ})
        if wait:
            self.await_worker()
        return self.process

    def await_worker(self) -> None:
        process = self.process
        assert process is not None
        until(lambda: self.listens() or not process.running(), "the worker listens", timeout=30)
        assert process.running(), process.output()

    def listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.signal(number)
        return self.process.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def call(
        self,
        command: str,
        config: Mapping[str, Any],
        pod: Space | str = "",
        container: str = "",
        *,
        netns: str = "",
        **more: Any,
    ) -> Finished:
        """One execution of the plugin that `config` names; `netns` is where the caller itself is."""
        path = pod if isinstance(pod, str) else pod.path
        name = container or (pod.name if isinstance(pod, Space) else "none")
        env = environment(command, path, name, str(self.plugins))
        return run([self.plugins / config["type"]], env=env, stdin=json.dumps(config).encode(), netns=netns, **more)


def environment(command: str, netns: str, container: str, path: str = "/usr/lib/cni") -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": path,
    }


def call_of(command: str, config: Mapping[str, Any], netns: str, container: str) -> Call:
    return Call(
        contract="cni",
        name=config["type"],
        env=environment(command, netns, container),
        stdin=json.dumps(config).encode(),
        files={},
    )


def code(finished: Finished) -> int:
    """The CNI error code on stdout; 0 for success."""
    assert finished.code in (0, 1), finished
    return int(finished.json()["code"]) if finished.code else 0
