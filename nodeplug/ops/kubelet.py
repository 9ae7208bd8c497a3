"""Where this node's kubelet looks for FlexVolume drivers: by its command line, its configuration, or its default."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT = Path("/usr/libexec/kubernetes/kubelet-plugins/volume/exec")
_FLAG = "volume-plugin-dir"
_KEY = "volumePluginDir"
_LINE = re.compile(rf"^{_KEY}:[ \t]*(?:\"([^\"\n]*)\"|'([^'\n]*)'|([^#\s][^#\n]*?))[ \t]*(?:#.*)?$", re.MULTILINE)
_LIMIT = 1 << 20
_EMBEDDED = ("k3s", "rke2")
"""Programs that are a kubelet among other things, and take its flags as `--kubelet-arg NAME=VALUE`."""


@dataclass(frozen=True)
class Found:
    """A directory, and by what it was found, as a phrase."""

    path: Path
    by: str


def plugin_directory(proc: Path = Path("/proc")) -> Found:
    """The directory of the kubelet that runs here; its default where none does, or none says."""
    for pid, argv in _kubelets(proc):
        flags = _flags(argv)
        given = flags.get(_FLAG)
        if given:
            return Found(Path(given), f"--{_FLAG} of the kubelet that runs as process {pid}")
        for path in _configurations(proc / str(pid) / "root", flags):
            named = _configured(path)
            if named:
                return Found(Path(named), f"{_KEY} in {_seen(path)}, the configuration of the kubelet that runs")
        return Found(DEFAULT, f"the default, which the kubelet that runs as process {pid} does not change")
    return Found(DEFAULT, "the kubelet's default, for none runs here")


def _kubelets(proc: Path) -> list[tuple[int, list[str]]]:
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
        except OSError:
            continue  # it has ended
        program = os.path.basename(argv[0]).split(" ")[0] if argv else ""
        if program == "kubelet" or (program == "hyperkube" and "kubelet" in argv[1:2]) or program in _EMBEDDED:
            found.append((int(entry.name), argv))
    return sorted(found)


def _flags(argv: list[str]) -> dict[str, str]:
    """Flags in either form, those handed through an embedding program among them; the last of several wins."""
    flags: dict[str, str] = {}
    for n, argument in enumerate(argv):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            value = argv[n + 1] if n + 1 < len(argv) else ""
        if name == "kubelet-arg":
            name, _, value = value.lstrip("-").partition("=")
        flags[name] = value
    return flags


def _configurations(root: Path, flags: dict[str, str]) -> list[Path]:
    """The kubelet's files as seen from here, the one that wins first."""
    found = []
    if flags.get("config-dir"):
        found = sorted(root.joinpath(flags["config-dir"].lstrip("/")).glob("*.conf"), reverse=True)
    if flags.get("config"):
        found.append(root.joinpath(flags["config"].lstrip("/")))
    return found


def _configured(path: Path) -> str:
    """What a KubeletConfiguration says, in YAML or JSON. Of YAML no more is read than one line at the top level."""
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text).get(_KEY, "")
        except ValueError:
            return ""
        return found if isinstance(found, str) else ""
    line = _LINE.search(text)
    return next((part for part in line.groups() if part), "").strip() if line else ""


def _seen(path: Path) -> str:
    """The path as the kubelet knows it."""
    return "/" + str(path).partition("/root/")[2]
