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
_FLAGS = ("-std=c11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror")
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


def _carried() -> bytes:
    """What a package brought along for machines like this one; nothing when it did not, or it does not run here."""
    path = Path(nodeplug.__file__).parent / "ops" / "launchers" / f"shim-{platform.machine()}"
    try:
        found = path.read_bytes()
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
        try:
            done = subprocess.run(
                [compiler, *_FLAGS, "-o", str(made), str(source())],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{compiler} cannot compile the shim: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise Unavailable(
                f"{compiler} cannot compile the shim: {last}", hint="it needs the C library's static part (libc6-dev)"
            )
        if not _runs(made):
            raise Unavailable("the shim was compiled, and does not run", hint="use --shim python")
        return made.read_bytes()


def _runs(program: Path) -> bool:
    """Whether it does what it should where nothing is beside it: say so."""
    try:
        done = subprocess.run([program], capture_output=True, timeout=_TIMEOUT, env={}, cwd=os.sep, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 1 and done.stderr.startswith(_SAYS)
