"""The demo's pods under nodeplug's own runtime: a network namespace each, and a server inside. Needs no package."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from nodeplug.harness.runtime import config
from nodeplug.harness.runtime.cache import Attachment
from nodeplug.harness.runtime.runtime import Runtime
from nodeplug.kernel import netns
from nodeplug.ops.demo import who
from nodeplug.ops.demo.pods import Pod

if TYPE_CHECKING:
    from pathlib import Path


class OurPods:
    """Pods of one runtime."""

    def __init__(self, *, plugins: Path, conf_dir: Path) -> None:
        self._runtime = Runtime([plugins])
        self._conf_dir = conf_dir
        self._servers: dict[str, who.Who] = {}
        self._ports: dict[str, int] = {}

    def start(self) -> str:
        return "nodeplug's own runtime"

    def run(self, name: str, host_port: int) -> Pod:
        pod_id = secrets.token_hex(16)
        self._ports[pod_id] = host_port
        began = time.monotonic()
        netns.create(self._path(pod_id))
        result = self._runtime.add(self._network(), self._attachment(pod_id))
        seconds = time.monotonic() - began
        self._servers[pod_id] = who.Who(name, 80, self._path(pod_id))
        return Pod(pod_id, name, result.addresses("eth0")[0], host_port, seconds)

    def fetch(self, pod: Pod, address: str, port: int) -> str:
        return who.fetch(address, port, self._path(pod.id))

    def delete(self, pod: Pod) -> None:
        self._servers.pop(pod.id).close()
        self._runtime.delete(self._network(), self._attachment(pod.id))
        netns.remove(self._path(pod.id))

    def lose(self, pod: Pod) -> None:
        self._servers.pop(pod.id).close()
        netns.remove(self._path(pod.id))

    def living(self) -> list[str]:
        return [word for pod_id in self._servers for word in ("--valid", pod_id)] or ["--none-valid"]

    def close(self) -> None:
        while self._servers:
            self._servers.popitem()[1].close()
        self._runtime.gc(self._network(), [])
        for pod_id in self._ports:
            netns.remove(self._path(pod_id))

    def _path(self, pod_id: str) -> str:
        return f"/run/netns/demo-{pod_id}"

    def _network(self) -> config.Network:
        return config.first_network(self._conf_dir)

    def _attachment(self, pod_id: str) -> Attachment:
        port = self._ports[pod_id]
        mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}] if port else []
        offered = {"portMappings": mappings} if mappings else {}
        return Attachment(pod_id, netns=self._path(pod_id), capability_args=offered)
