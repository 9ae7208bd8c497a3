"""The demo's pods under a private containerd, asked of it as a kubelet asks: over CRI."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nodeplug.core.errors import Error
from nodeplug.harness.runtime import image
from nodeplug.harness.runtime.containerd import IMAGE, Containerd, missing
from nodeplug.harness.runtime.cri import Port
from nodeplug.ops.demo import who
from nodeplug.ops.demo.pods import Pod

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ContainerdPods", "missing"]

_NAME = "server"
_PATIENCE = 10.0


class ContainerdPods:
    """Pods of one instance below `directory`."""

    def __init__(self, directory: Path, *, plugins: Path, conf_dir: Path) -> None:
        self._runtime = Containerd(directory, bin_dir=plugins, conf_dir=conf_dir)
        self._containers: dict[str, str] = {}

    def start(self) -> str:
        self._runtime.start()
        # One pod without a network: containers may be impossible here for reasons that are not the network's.
        trial = self._runtime.cri.run_pod(self._runtime.spec("trial", host_network=True))
        self._runtime.cri.stop_pod(trial)
        self._runtime.cri.remove_pod(trial)
        name, version = self._runtime.cri.version()
        return f"{name} {version}, private, with an image made of busybox"

    def run(self, name: str, host_port: int) -> Pod:
        ports = (Port(host_port, 80),) if host_port else ()
        spec = self._runtime.spec(name, ports=ports)
        began = time.monotonic()
        pod_id = self._runtime.cri.run_pod(spec)
        seconds = time.monotonic() - began
        container = self._runtime.cri.run_container(pod_id, spec, image=IMAGE, name=_NAME, command=image.SERVER)
        self._containers[pod_id] = container
        pod = Pod(pod_id, name, self._runtime.cri.pod(pod_id).addresses[0], host_port, seconds)
        self._await_server(pod)
        return pod

    def _await_server(self, pod: Pod) -> None:
        """Its container has started; its server may still be on the way."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.fetch(pod, "127.0.0.1", 80)
                return
            except Error:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def fetch(self, pod: Pod, address: str, port: int) -> str:
        command = ("/bin/wget", "-q", "-O", "-", f"http://{address}:{port}{who.PATH}")
        done = self._runtime.cri.execute(self._containers[pod.id], *command, timeout=5)
        if done.status != 0:
            raise Error(f"{pod.name}: no answer from {address}:{port}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace").strip()

    def delete(self, pod: Pod) -> None:
        self._runtime.cri.stop_pod(pod.id)
        self._runtime.cri.remove_pod(pod.id)

    def lose(self, pod: Pod) -> None:
        self._runtime.lose_pod(pod.id)

    def living(self) -> list[str]:
        return ["--cri", str(self._runtime.socket), "--grace", "0"]

    def close(self) -> None:
        self._runtime.close()
