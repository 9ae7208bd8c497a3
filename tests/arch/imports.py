"""What a command imports: watched from outside, in a fresh interpreter, by Python's own -X importtime."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.child import run
from tests.sandbox import CHECKOUT

PYTHON = "/usr/bin/python3"  # the interpreter of the launchers' first line
BARE = (PYTHON, "-IS")
LISTS = CHECKOUT / "tests" / "arch" / "modules"


def loaded(script: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> list[str]:
    """The modules that `script`, run as launchers are run, imports beyond the bare interpreter, in order.

    Raises AssertionError when it fails: a command that went wrong early would look lean.
    """
    bare = _imports(run([*BARE, "-X", "importtime", "-c", "pass"], env={}).ok().stderr)
    done = run([*BARE, "-X", "importtime", str(script), *arguments], env=env or {}, stdin=stdin)
    assert done.code == 0, f"{script.name}: exit status {done.code}: {done.text}"
    return [name for name in _imports(done.stderr) if name not in bare]


def loaded_silently(script: Path, *arguments: str) -> list[str]:
    """`loaded` for a FlexVolume driver, whose stderr nobody hears but a terminal; its answer must be success."""
    ours, theirs = pty.openpty()
    try:
        command = [*BARE, "-X", "importtime", str(script), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={}) as child:
            os.close(theirs)
            report = b"".join(iter(lambda: _terminal_read(ours), b""))
            assert child.stdout is not None
            answer = child.stdout.read()
    finally:
        os.close(ours)
    assert b'"Success"' in answer, answer
    bare = _imports(run([*BARE, "-X", "importtime", "-c", "pass"], env={}).ok().stderr)
    return [name for name in _imports(report) if name not in bare]


def _terminal_read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has the other end
        return b""


def called_as(name: str, launcher: str, directory: Path) -> Path:
    """A launcher of bin/ under a plugin's name, as `nodeplug install` puts it into a plugin directory."""
    path = directory / name
    os.symlink(CHECKOUT / "bin" / launcher, path)
    return path


def lists() -> list[str]:
    """The names of the checked-in lists."""
    return sorted(path.stem for path in LISTS.glob("*.txt"))


def allowed(name: str) -> list[str]:
    """The checked-in list `tests/arch/modules/NAME.txt`: one module a line, `#` begins a comment."""
    lines = (LISTS / f"{name}.txt").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def importing(modules: Sequence[str]) -> list[str]:
    """A command that imports these modules of this checkout and nothing else."""
    whole = ["os", *modules]  # parts of os cannot be imported before it
    return [*BARE, "-c", f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import {', '.join(whole)}"]


def _imports(report: bytes) -> list[str]:
    lines = report.decode(errors="replace").splitlines()
    rows = (line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:"))
    return [row[2].strip() for row in rows if len(row) == 3 and row[2].strip() != "imported package"]
