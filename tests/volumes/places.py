"""What tests of volumes share: a node's policy with its images in a place of the test's own, requests, what is left.

place = Place(ledger)
place.service.publish(place.request("tmpfs", size="1Mi"))
assert place.remains() == []
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from nodeplug.core import document
from nodeplug.core.secret import Secret
from nodeplug.kernel import loop, mount
from nodeplug.volumes import stage, state
from nodeplug.volumes.contract import Pod, Request
from nodeplug.volumes.policy import Allow, ImageLimits, Policy
from nodeplug.volumes.service import Service, implementation
from tests.ledger import Ledger

POD = Pod(namespace="shop", name="till-0", uid="4c3c2ab1-0c7b-4f7f-8d4c-0a6a3f6c2c11", service_account="till")
MIB = 1 << 20
_SETTLE = 5.0  # seconds that a killed publisher's children, and the kernel, have to let go


class Place:
    """A directory with pods, images and host directories in it, under a policy that allows what the tests need."""

    def __init__(self, ledger: Ledger, **limits: int) -> None:
        self.top = ledger.directory()
        ledger.adopt("states", lambda: [state.remove(id) for id in state.ids()])
        self.images = self.top / "images"
        self.host = self.top / "host"
        self.host.mkdir()
        given = {"floor": 16 * MIB, **limits}
        everything = {"namespaces": ("*",), "roots": (str(self.host),), "scopes": ("pod", "node")}
        self.policy = Policy(
            allow=tuple(Allow(driver=driver, **everything) for driver in ("bind", "overlay", "loop")),
            loop=ImageLimits(directory=str(self.images), **given),
        )
        self.warnings: list[str] = []
        self.service = Service(self.policy, warn=self.warnings.append)

    def target(self, driver: str, volume: str = "data", pod: Pod = POD) -> str:
        """Where the kubelet would have it, made as it makes it."""
        path = self.top / "pods" / pod.uid / "volumes" / f"nodeplug.dev~{driver}" / volume
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return str(path)

    def request(
        self,
        driver: str,
        *,
        volume: str = "data",
        pod: Pod = POD,
        read_only: bool = False,
        fs_group: int | None = None,
        fs_type: str = "",
        secrets: dict[str, str] | None = None,
        **options: Any,
    ) -> Request:
        return Request(
            driver=driver,
            volume=volume,
            target=self.target(driver, volume, pod),
            options=document.decode(implementation(driver).options, options),
            read_only=read_only,
            fs_group=fs_group,
            fs_type=fs_type,
            pod=pod,
            secrets={name: Secret(value) for name, value in secrets.items()} if secrets is not None else None,
        )

    def directory(self, name: str, **files: str) -> Path:
        """A directory of the host, below what the policy allows, with these files in it."""
        path = self.host / name
        path.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (path / file).write_text(content)
        return path

    def remains(self, *, besides: str = "-") -> list[str]:
        """Everything that volumes have left of themselves. What ends by itself is given a moment.

        `besides` is how what is meant to stay begins ("image ").
        """
        deadline = time.monotonic() + _SETTLE
        while True:
            found = [each for each in self._remains() if not each.startswith(besides)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def _remains(self) -> list[str]:
        found = [f"state {id}" for id in state.ids()] + state.abandoned()
        found += [f"staged {id} {name}" for id, name in stage.left()]
        found += [f"mount {each.point}" for each in mount.mounts() if each.point.startswith(f"{self.top}/pods/")]
        found += [f"loop of {each.backing}" for each in loop.devices() if each.backing.startswith(f"{self.top}/images")]
        found += [f"image {path}" for path in self.images.rglob("*") if path.is_file()]
        for folder, _, names in os.walk(self.top / "pods"):
            found += [f"file {folder}/{name}" for name in names]
        return found


def replaced(ledger: Ledger, program: str, content: str, mode: int = 0o755) -> None:
    """Put another program in the place of one of the system's, in this sandbox, until the test's end.

    `ORIGINAL` in its content is a path of the one it replaces.
    """
    path = shutil.which(program)
    assert path is not None
    directory = ledger.directory()
    shutil.copy(path, directory / "original")
    other = directory / program
    other.write_text(content.replace("ORIGINAL", str(directory / "original")))
    other.chmod(mode)
    mount.bind(str(other), os.path.realpath(path))
    ledger.adopt(program, lambda: mount.unmount(os.path.realpath(path), detach=True))


def seen(target: str) -> mount.Mount:
    """What is mounted there; fails when nothing is."""
    found = mount.find(target)
    assert found is not None, f"nothing is mounted at {target}"
    return found
