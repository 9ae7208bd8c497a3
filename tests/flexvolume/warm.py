"""A kubelet with all of nodeplug's drivers, and a worker that can be started and ended."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

from nodeplug.harness.kubelet.flexvolume.plugin import Volume
from nodeplug.harness.kubelet.flexvolume.prober import Prober
from nodeplug.ops.cli import door
from nodeplug.ops.flexplaces import Drivers
from nodeplug.ops.shim import Kind
from tests.child import Process, until
from tests.flexvolume.node import POD
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.worker.test_metrics import fetch, value

DAEMON = CHECKOUT / "bin" / "nodeplugd"
TMPFS = Volume("data", "nodeplug.dev/tmpfs", {"size": "1Mi"})


class Node:
    """A kubelet with all of nodeplug's drivers, and a worker that can be started and ended."""

    def __init__(self, ledger: Ledger, *, kind: Kind = "c") -> None:
        self.ledger = ledger
        self.directory = ledger.directory()
        self.sockets, self.config = self.directory / "run", self.directory / "etc"
        self.exec, self.store, self.root = (self.directory / name for name in ("exec", "store", "kubelet"))
        self.config.mkdir()
        self.pages = self.directory / "health.sock"
        self.configure()
        installed = dataclasses.replace(door("flexvolume"), socket=str(self.socket))
        Drivers(self.exec, store=self.store).install(installed, kind=kind)
        self.kubelet = Prober(self.exec, root=self.root)
        ledger.adopt("prober", self.kubelet.close)
        self.process: Process | None = None

    def configure(self, more: str = "") -> None:
        text = (
            f'[worker]\ndirectory = "{self.sockets}"\nwatch_filter = false\n{more}\n[worker.collect]\nenabled = false\n'
            f'[worker.health]\nlisten = "{self.pages}"\n'
        )
        (self.config / "nodeplug.toml").write_text(text)

    @property
    def socket(self) -> Path:
        return self.sockets / "flexvolume.sock"

    def start(self, *before: str) -> Process:
        """Start the worker, by a command such as unshare(1) if need be."""
        self.process = self.ledger.start([*before, sys.executable, "-I", DAEMON, "--config", self.config])
        process = self.process
        until(lambda: self.pages.exists() or not process.running(), "the worker listens", timeout=30)
        assert process.running(), process.output()
        return process

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.signal(number)
        code = self.process.wait()
        self.pages.unlink(missing_ok=True)
        return code

    def served(self, outcome: str) -> float:
        page = fetch(self.pages, "/metrics")[1]
        return value(page, "nodeplug_worker_requests_total", contract="flexvolume", outcome=outcome)

    def mount(self, volume: Volume = TMPFS) -> Path:
        return self.kubelet.find(volume.driver).set_up(POD, volume)

    def unmount(self, volume: Volume = TMPFS) -> None:
        self.kubelet.find(volume.driver).tear_down(POD, volume.name)

    def without_launcher(self) -> None:
        """From now on only the worker can answer."""
        (self.store / ".nodeplug" / "exec").unlink()
