"""All of nodeplug's drivers as a node has them, under a kubelet, without a worker."""

from __future__ import annotations

from pathlib import Path

from nodeplug.core import paths
from nodeplug.harness.kubelet.flexvolume.call import Caller
from nodeplug.harness.kubelet.flexvolume.plugin import Habits, Plugin, Pod, Volume
from nodeplug.harness.kubelet.flexvolume.prober import Prober
from nodeplug.kernel import mount
from nodeplug.ops.cli import door
from nodeplug.ops.flexplaces import Drivers
from nodeplug.ops.shim import Kind
from tests.flexvolume.node import POD
from tests.ledger import Ledger

SETTINGS = Path(paths.ETC) / "nodeplug.toml"


class Node:
    """`exec` is the plugin directory, `root` the kubelet's."""

    def __init__(self, ledger: Ledger, *, kind: Kind = "c") -> None:
        self.ledger = ledger
        self.directory = ledger.directory()
        self.exec, self.root = self.directory / "exec", self.directory / "kubelet"
        self.drivers = Drivers(self.exec, store=self.directory / "store")
        self.drivers.install(door("flexvolume"), kind=kind)
        self.kubelet = self.start()

    def start(self, caller: Caller | None = None, habits: Habits | None = None) -> Prober:
        """A kubelet that remembers nothing."""
        self.kubelet = Prober(self.exec, caller=caller or Caller(), root=self.root, habits=habits)
        self.ledger.adopt("prober", self.kubelet.close)
        return self.kubelet

    def plugin(self, name: str) -> Plugin:
        return self.kubelet.find(f"nodeplug.dev/{name}")

    def mount(self, volume: Volume, pod: Pod = POD) -> Path:
        return self.kubelet.find(volume.driver).set_up(pod, volume)

    def unmount(self, volume: Volume, pod: Pod = POD) -> None:
        self.kubelet.find(volume.driver).tear_down(pod, volume.name)

    def allow(self, ledger: Ledger, driver: str, **roots: str) -> None:
        """Until the end of the ledger's test, all pods may have that driver's volumes."""
        lines = [f'{name} = ["{value}"]\n' for name, value in roots.items()]
        SETTINGS.write_text(f'[[volumes.allow]]\ndriver = "{driver}"\nnamespaces = ["*"]\n{"".join(lines)}')
        ledger.adopt("settings", lambda: SETTINGS.unlink(missing_ok=True))

    def mounts(self) -> list[str]:
        return [found.point for found in mount.mounts() if found.point.startswith(f"{self.root}/")]

    @property
    def log(self) -> list[str]:
        return self.kubelet.caller.journal.lines


def volume(driver: str, name: str = "data", *, read_only: bool = False, **options: str) -> Volume:
    return Volume(name, f"nodeplug.dev/{driver}", options, read_only=read_only)
