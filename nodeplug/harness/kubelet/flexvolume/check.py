"""A driver in any language tried out as kubelets would use and misuse it, and what is wrong with it said.

`run` needs root and makes real mounts: whoever calls it puts itself into a mount namespace first (`enclose`).
Each finding is of one rule; docs/flexvolume.md says why kubelets make it one.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nodeplug.core.errors import ConfigInvalid, Error, PermissionRefused, Unavailable
from nodeplug.harness.kubelet.flexvolume.call import BARE_ENV, KUBELET_ENV, Caller
from nodeplug.harness.kubelet.flexvolume.plugin import Habits, Plugin, Pod, Volume
from nodeplug.harness.kubelet.flexvolume.watching import Eyes
from nodeplug.kernel import libc, mount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Verdict = Literal["ok", "fault", "note", "skipped"]
VENDOR = "check.example"
POD = Pod("checked", namespace="check", uid="c0ffee00-0000-4000-8000-000000000000", service_account="checker")
SECRET = b"a secret that nobody should see"


@dataclass(frozen=True)
class Finding:
    """What came of one rule. `what` says what was seen, and for a fault what follows from it on a node."""

    rule: str
    verdict: Verdict
    what: str


@dataclass
class Bench:
    """The driver under trial, and what the rules share. `patience` bounds each call, in seconds."""

    executable: Path
    options: Mapping[str, str]
    secrets: Mapping[str, bytes]
    directory: Path
    patience: float
    findings: list[Finding] = field(default_factory=list)
    eyes: Eyes = field(default_factory=lambda: Eyes(()))
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.executable.name
        self.plugins, self.root = self.directory / "exec", self.directory / "kubelet"
        self.place = self.plugins / f"{VENDOR}~{self.name}"
        self.place.mkdir(parents=True)
        # By its own path, beside which it may look for what it needs.
        (self.place / self.name).symlink_to(self.executable)
        self.caller = Caller(env=dict(KUBELET_ENV), patience=self.patience)

    def load(self, env: Mapping[str, str] | None = None, *, habits: Habits | None = None) -> Plugin:
        """The driver as a kubelet loads it. Raises what its init does."""
        caller = self.caller if env is None else Caller(env=env, patience=self.patience)
        return Plugin(self.plugins, f"{VENDOR}~{self.name}", caller, root=self.root, habits=habits or Habits())

    def volume(self, name: str, **more: str) -> Volume:
        return Volume(name, f"{VENDOR}/{self.name}", {**self.options, **more}, secrets=self.secrets)

    def say(self, rule: str, verdict: Verdict, what: str) -> None:
        self.findings.append(Finding(rule, verdict, what))


def enclose() -> None:
    """Give the calling thread a mount namespace, in which what the driver mounts stays. Raises `PermissionRefused`."""
    if os.geteuid() != 0:
        raise PermissionRefused("mounting needs root", hint="run it as root, with sudo for example")
    try:
        libc.unshare(libc.CLONE_NEWNS)
        mount.make_private("/", recursive=True)
    except OSError as error:
        raise Unavailable(f"cannot make a mount namespace: {error.strerror}") from error


def run(
    executable: Path,
    *,
    options: Mapping[str, str] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    logs: tuple[Path, ...] = (),
    patience: float = 60.0,
) -> list[Finding]:
    """Try the driver out; its volumes have these `options`, and `secrets` beside one of our own.

    `logs` are files and directories that are searched for the secrets. Raises `ConfigInvalid` when there is nothing to
    try out.
    """
    from nodeplug.harness.kubelet.flexvolume import rules

    executable = Path(os.path.abspath(executable))
    if not executable.is_file() or not os.access(executable, os.X_OK):
        raise ConfigInvalid(f"{executable} is no executable file")
    whole = {"nodeplug-check": SECRET, **(secrets or {})}
    with tempfile.TemporaryDirectory(prefix="nodeplug-check-") as directory:
        bench = Bench(executable, options or {}, whole, Path(directory), patience)
        try:
            with Eyes(tuple(whole.values()), logs=logs, beside=(executable.parent, bench.place)) as eyes:
                bench.eyes = eyes
                for rule in rules.ALL:
                    if not _follow(bench, rule):
                        break
                rules.look_back(bench)
        finally:
            _unmount_below(bench.root)
    return bench.findings


def _follow(bench: Bench, rule: Callable[[Bench], bool | None]) -> bool:
    """Whether the following rules can be tried."""
    try:
        return rule(bench) is not False
    except Error as error:
        bench.say(rule.__name__.replace("_", " "), "fault", str(error))
        return True
    finally:
        if rule.__name__ not in ("a_volume_is_mounted", "it_can_be_used", "the_same_mount_again"):
            _unmount_below(bench.root)


def _unmount_below(root: Path) -> None:
    for found in reversed(mount.mounts()):
        if found.point.startswith(f"{root}/"):
            try:
                mount.unmount(found.point, detach=True)
            except OSError:
                pass


__all__ = ["BARE_ENV", "Bench", "Finding", "Verdict", "enclose", "run"]
