"""A kubelet for tests: a plugin directory, a root of its own for pods, and what it logged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from nodeplug.harness.kubelet.flexvolume.call import Caller, Executed
from nodeplug.harness.kubelet.flexvolume.plugin import Habits, Plugin, Pod, Volume
from nodeplug.harness.kubelet.flexvolume.prober import Prober
from nodeplug.kernel import mount
from tests.flexvolume import drivers
from tests.ledger import Ledger

POD = Pod("web", namespace="shop", uid="0d9b0c5e-4f5e-4b8a-9f3c-0a1b2c3d4e5f", service_account="till")


class Node:
    """`plugins` is where drivers are looked for, `root` where pods' volumes are."""

    def __init__(self, ledger: Ledger, *, caller: Caller | None = None, habits: Habits | None = None) -> None:
        self.ledger = ledger
        self.directory = ledger.directory()
        self.root = self.directory / "kubelet"
        self.plugins = self.directory / "exec"
        self.plugins.mkdir()
        self.caller = caller or Caller()
        self.habits = habits or Habits()
        self._prober: Prober | None = None

    def driver(self, text: str, name: str = "mine") -> Plugin:
        """Install that text as a driver, and have it probed."""
        drivers.place(self.plugins, name, text)
        return self.prober.find(f"{drivers.VENDOR}/{name}")

    @property
    def prober(self) -> Prober:
        if self._prober is None:
            self.restart()
        assert self._prober is not None
        return self._prober

    def restart(self) -> Prober:
        """A kubelet that remembers nothing."""
        if self._prober is not None:
            self._prober.close()
        self._prober = Prober(self.plugins, caller=self.caller, root=self.root, habits=self.habits)
        self.ledger.adopt("prober", self._prober.close)
        return self._prober

    @property
    def log(self) -> list[str]:
        return self.caller.journal.lines

    @property
    def last(self) -> Executed:
        return self.caller.journal.executed[-1]

    def mounts(self) -> list[str]:
        """The mount points below the root, in the kernel's order."""
        return [found.point for found in mount.mounts() if found.point.startswith(f"{self.root}/")]

    def left(self) -> Iterator[Path]:
        """What there is below pods' volume directories."""
        yield from self.root.glob("pods/*/volumes/*/*")


def volume(driver: str = f"{drivers.VENDOR}/mine", name: str = "data", **more: object) -> Volume:
    options: Mapping[str, str] = {"size": "1Mi"}
    return dataclasses.replace(Volume(name, driver, options), **more)  # type: ignore[arg-type]  # fields of it
