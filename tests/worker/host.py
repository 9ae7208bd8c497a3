"""A host without Python, and a container on it: roots and namespaces of their own, the host's processes for both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.child import Finished, Process, run
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT
from tests.space import Space

PLUGINS = "/opt/cni/bin"
ENTRY = CHECKOUT / "deploy" / "image" / "nodeplug-node"
_WAYS = {"mount": "ns/mnt", "net": "ns/net", "root": "root"}
_PROGRAMS = ("sh", "cat", "echo", "kill", "sleep", "ls", "printf")


class BareHost:
    """A root with busybox and nothing else, a network of its own; a process that keeps both."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        root = ledger.directory()
        links = "".join(f"ln -s busybox bin/{name}; " for name in _PROGRAMS)
        program = (
            f"set -e; mount -t tmpfs -o mode=755 tmpfs {root}; cd {root}\n"
            "mkdir -p proc sys run/netns bin old opt/cni/bin etc var/log var/lib tmp\n"
            f"mount --rbind /proc proc; mount -t sysfs sysfs sys; mount --rbind /run/netns run/netns\n"
            f"cp /bin/busybox bin/busybox; {links}\n"
            "ip link set lo up; pivot_root . old; /bin/busybox umount -l /old; echo ready\n"
            "exec /bin/busybox sleep 600\n"
        )
        # Pods that come later are there as well.
        run(["mount", "--make-shared", "/run/netns"]).ok()
        ledger.adopt("propagation", lambda: run(["mount", "--make-private", "/run/netns"]).ok())
        command = ["unshare", "--mount", "--net", "--propagation", "slave", "sh", "-c", program]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        ledger.adopt("host without Python", self._end)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"
        self.process = f"/proc/{self._keeper.pid}"
        self.root = Path(self.process, "root")
        self.space = Space("host", f"{self.process}/ns/net")

    def _end(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()

    def path(self, name: str) -> Path:
        """One of its files, from outside."""
        return self.root / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        self.path(name).write_text(text)
        self.path(name).chmod(0o755)

    def call(self, command: str, config: Mapping[str, Any], pod: Space, **options: Any) -> Finished:
        """A plugin, executed there as its runtime does."""
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
            "PATH": "/bin",
        }
        enter = [f"--{kind}={self.process}/{path}" for kind, path in _WAYS.items()]
        argv = ["nsenter", *enter, f"{PLUGINS}/{config['type']}"]
        return run(argv, env=env, stdin=json.dumps(config).encode(), timeout=60, **options)


class Container:
    """What the manifest's pod runs, with a root and a network of its own on the same machine."""

    def __init__(self, ledger: Ledger, host: BareHost, settings: str) -> None:
        self.ledger = ledger
        self.host = host
        self.settings = ledger.directory()
        (self.settings / "nodeplug.toml").write_text(settings)
        self.process: Process | None = None

    def environ(self, **more: str) -> dict[str, str]:
        path = f"{CHECKOUT / 'bin'}:{os.environ['PATH']}"
        own = {"NODEPLUG_HOST": self.host.process, "NODEPLUG_SETTINGS": str(self.settings)}
        return {**os.environ, "PATH": path, **own, **more}

    def start(self, **more: str) -> Process:
        self.process = self.ledger.start([*_inside(), str(ENTRY)], env=self.environ(**more))
        return self.process

    def nodeplug(self, *arguments: str) -> Finished:
        return run([*_inside(), "nodeplug", *arguments], env=self.environ(), timeout=90)


def _inside() -> list[str]:
    """A container's own mounts and network: its /run, /opt and /var are not the host's."""
    hidden = "; ".join(f"mount -t tmpfs tmpfs {path}" for path in ("/opt", "/var/lib/cni", "/var/log"))
    return ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", f'{hidden}; exec "$0" "$@"']
