"""A copy of the package for executed plugins: only what they import, bundled, and tried before it is used.

Called by `install`. The copy is named after its content, so the same nodeplug under the same Python is one copy however
often it is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import nodeplug
from nodeplug.core.errors import Refused, Unavailable
from nodeplug.ops import bundling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PYTHON = Path("/usr/bin/python3")
"""The interpreter of launchers: the system's, which needs no virtual environment and starts fastest."""

LAUNCHER = "launcher"
"""The launcher's name in a copy."""

SHIM = "shim"
"""The compiled shim's name in a copy, where there is one."""

_OLDEST = (3, 11)
_TIMEOUT = 60.0
_SHEBANG_LIMIT = 127  # bytes that old kernels read of the first line


def launcher_source(name: str) -> Path:
    """Where the launcher of a door ("nodeplug-cni") lies: in the package as it is shipped, or in the checkout."""
    package = Path(nodeplug.__file__).parent
    for candidate in (package / "ops" / "launchers" / name, package.parent / "bin" / name):
        if candidate.is_file():
            return candidate
    raise Unavailable(f"this nodeplug has no launcher {name}", hint="it was not installed whole")


def launcher_text(name: str, python: Path) -> bytes:
    """The launcher, to be started by `python`."""
    first, _, rest = launcher_source(name).read_bytes().partition(b"\n")
    shebang = first.replace(bytes(PYTHON), bytes(python), 1)
    if len(shebang) > _SHEBANG_LIMIT or any(c.isspace() for c in str(python)):
        raise Refused(f"{python} cannot stand in the first line of a script", hint="use a shorter path without spaces")
    return shebang + b"\n" + rest


def interpreter_tag(python: Path) -> str:
    """What byte code `python` runs ("cpython-311"). Raises `Unavailable` where it is none of ours."""
    program = "import sys; print(sys.implementation.cache_tag, *sys.version_info[:2])"
    said = _run(python, "-c", program, doing=f"{python} cannot run the plugins")
    try:
        tag, major, minor = said.split()
        version = int(major), int(minor)
    except ValueError:
        raise Unavailable(f"{python} is no Python: it answered {said[:80]!r}", hint="name another: --python") from None
    if version < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise Unavailable(f"{python} is Python {major}.{minor}; plugins need {needed}", hint="name another: --python")
    return tag


def sources(parts: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name in the copy, file) of the package's modules below `parts`; commands for people are left out."""
    package = Path(nodeplug.__file__).parent
    if parts:
        yield "nodeplug/__init__.py", package / "__init__.py"
    for part in parts:
        found = package / part
        for file in [found] if found.is_file() else sorted(found.rglob("*.py")):
            if file.name != "cli.py":
                yield str(Path("nodeplug") / file.relative_to(package)), file


def identity(parts: Sequence[str], launcher: bytes, tag: str, shim: bytes = b"") -> str:
    """The name of a copy: the version and a digest of all that is in it, and of what makes its bundle."""
    digest = hashlib.sha256(tag.encode() + b"\0" + launcher + hashlib.sha256(shim).digest())
    if parts:
        digest.update(Path(bundling.__file__).read_bytes())
    for name, file in sources(parts):
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return f"{nodeplug.__version__}-{digest.hexdigest()[:12]}"


def write(
    target: Path, name: str, parts: Sequence[str], launcher: bytes, *, python: Path, module: str, shim: bytes = b""
) -> None:
    """Make the copy called `name` at `target`, which must not exist, and import `module` from it to show that it works.

    Raises OSError with the path, and `Unavailable` when the copy does not work. What was made by then stays.
    """
    target.mkdir()
    target.chmod(0o755)
    for inside, file in sources(parts):
        copy = target / inside
        _make_directories(copy.parent, target)
        shutil.copyfile(file, copy)
        copy.chmod(0o644)
    for inside, content in ((LAUNCHER, launcher), (SHIM, shim)):
        if content:
            _write_program(target / inside, content)
    # Without columns, which nobody reads in a log, there is less to load.
    made = ("-B", "-X", "no_debug_ranges", bundling.__file__, str(target), name, module)
    _run(python, *made, doing="the copied package does not work")
    _sync(target)


def write_shim(target: Path, shim: bytes) -> None:
    """Make a copy that is the shim and nothing else. Raises OSError with the path."""
    target.mkdir()
    target.chmod(0o755)
    _write_program(target / SHIM, shim)
    _sync(target)


def _write_program(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def _make_directories(directory: Path, top: Path) -> None:
    if directory != top and not directory.exists():
        _make_directories(directory.parent, top)
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask


def _run(python: Path, *arguments: str, doing: str) -> str:
    try:
        done = subprocess.run(
            [python, "-IS", *arguments], capture_output=True, text=True, timeout=_TIMEOUT, cwd="/", env={}, check=False
        )
    except OSError as error:
        raise Unavailable(f"{doing}: {error.strerror}", hint="name the interpreter: --python") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{doing}: no answer within {_TIMEOUT:g} s") from error
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{doing}: {last[-1]}")
    return done.stdout


def _sync(top: Path) -> None:
    for directory, _names, files in os.walk(top):
        for name in (*files, "."):
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
