"""Debian's cloud kernel, unpacked into a cache directory: nothing is installed, nothing under /boot changes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "linux-image-cloud-amd64"
_UNSANDBOXED = ("-o", "APT::Sandbox::User=root")  # apt's own user may not write into the cache directory


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release, its image, and the folder with its modules and their modules.dep."""

    release: str
    image: Path
    modules: Path


def kernel() -> Kernel:
    """The kernel in the cache; downloaded when there is none. Raises CalledProcessError with apt's words above it."""
    cached = sorted(_cache().glob("linux-image-*/lib/modules/*/modules.dep"))
    if not cached:
        _download()
        cached = sorted(_cache().glob("linux-image-*/lib/modules/*/modules.dep"))
    modules = cached[-1].parent
    return Kernel(modules.name, modules.parents[2] / "boot" / f"vmlinuz-{modules.name}", modules)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "nodeplug-tests", "vm")


def _download() -> None:
    name = _newest()
    print(f"vm: downloading {name} (27 MB) into {_cache()}", flush=True)
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        subprocess.run(["apt-get", *_UNSANDBOXED, "download", "-qq", name], cwd=scratch, check=True)
        archive = next(Path(scratch).glob("*.deb"))
        unpacked = Path(scratch, "unpacked")
        subprocess.run(["dpkg-deb", "--extract", archive, unpacked], check=True)
        release = next(unpacked.glob("lib/modules/*")).name
        subprocess.run(["depmod", "--basedir", unpacked, release], check=True)
        target = _cache() / name
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _newest() -> str:
    """The package with the image itself, which the named one only depends on."""
    for _ in range(2):
        shown = subprocess.run(["apt-cache", "show", PACKAGE], capture_output=True, text=True, check=False).stdout
        found = re.search(r"^Depends: (linux-image-[^ ,]+)", shown, re.MULTILINE)
        if found:
            return found[1]
        subprocess.run(["apt-get", "update", "-qq"], check=True)
    raise FileNotFoundError(f"apt knows no {PACKAGE}")
