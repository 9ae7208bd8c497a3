"""The shim as a program: carried by the package, or compiled from its source where there is a compiler.

Called by `install`. Whatever comes out is tried before it is used.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import nodeplug
from nodeplug.core.errors import Unavailable

Kind = Literal["auto", "c", "python"]
"""What the files in a plugin directory are: the shim where it can be had, the shim or nothing, the launcher."""

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror")
_BARE = ("-ffreestanding", "-nostdlib", "-fno-stack-protector")
"""Without a C library, whose start takes four times as long as all that the shim does itself; see bare.h."""
_TIMEOUT = 60.0
_SAYS = b"nodeplug: there is neither a worker nor a launcher"


def source() -> Path:
    """Where the shim's source lies."""
    return Path(nodeplug.__file__).parent / "worker" / "shim.c"


def binary(kind: Kind) -> bytes:
    """The program; nothing when the launcher is to be used. Raises `Unavailable` for "c" where it cannot be had."""
    if kind == "python":
        return b""
    try:
        return _carried() or _compiled()
    except Unavailable:
        if kind == "c":
            raise
        return b""


def carry() -> Path:
    """Compile the shim into the package, for machines like this one that have no compiler: when an image is built.

    Raises `Unavailable` where it cannot be compiled, and OSError.
    """
    path = _carried_path()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_compiled())
    path.chmod(0o755)
    return path


def _carried_path() -> Path:
    return Path(nodeplug.__file__).parent / "ops" / "launchers" / f"shim-{platform.machine()}"


def _carried() -> bytes:
    """What a package brought along for machines like this one; nothing when it did not, or it does not run here."""
    try:
        found = _carried_path().read_bytes()
    except FileNotFoundError:
        return b""
    with tempfile.TemporaryDirectory(prefix="nodeplug-") as directory:
        copy = Path(directory, "shim")
        copy.write_bytes(found)
        copy.chmod(0o755)
        return found if _runs(copy) else b""


def _compiled() -> bytes:
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    if compiler is None:
        raise Unavailable("there is no C compiler for the shim", hint="install one, or use --shim python")
    with tempfile.TemporaryDirectory(prefix="nodeplug-") as directory:
        made = Path(directory, "shim")
        fault = _build(compiler, made, *_BARE) and _build(compiler, made)
        if fault:
            hint = "it needs the C library's headers, and for some processors its static part (libc6-dev)"
            raise Unavailable(f"{compiler} cannot compile the shim: {fault}", hint=hint)
        if not _runs(made):
            raise Unavailable("the shim was compiled, and does not run", hint="use --shim python")
        return made.read_bytes()


def _build(compiler: str, made: Path, *more: str) -> str:
    """Compile it; what the compiler says last when it cannot."""
    command = [compiler, *_FLAGS, *more, "-o", str(made), str(source())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _runs(program: Path) -> bool:
    """Whether it does what it should where nothing is beside it: say so."""
    try:
        done = subprocess.run([program], capture_output=True, timeout=_TIMEOUT, env={}, cwd=os.sep, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 1 and done.stderr.startswith(_SAYS)
