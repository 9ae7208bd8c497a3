"""What the demo asks of a runtime; `containerd` and `ours` give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Pod:
    """A pod that runs and serves `/cgi-bin/who` on port 80. `seconds` is how long it took with its network."""

    id: str
    name: str
    address: str
    host_port: int
    seconds: float


class Pods(Protocol):
    """A node's runtime."""

    def start(self) -> str:
        """Start the runtime; returns what it is, for people."""

    def run(self, name: str, host_port: int) -> Pod:
        """Run a pod; `host_port` 0 maps none. May be called from several threads."""

    def fetch(self, pod: Pod, address: str, port: int) -> str:
        """What a server answers when it is asked from inside the pod. Raises `Error`."""

    def delete(self, pod: Pod) -> None:
        """Delete a pod as a kubelet would."""

    def lose(self, pod: Pod) -> None:
        """Kill a pod behind the runtime's back, so that nobody makes its DEL."""

    def living(self) -> list[str]:
        """The options that tell `nodeplug cni gc` what lives."""

    def close(self) -> None:
        """Remove every pod and the runtime."""
