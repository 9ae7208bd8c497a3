"""Rules of the house that no linter knows, read off the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import CHECKOUT

PACKAGE = CHECKOUT / "nodeplug"
EXEC_ROOMS = ("core", "kernel", "cni", "flexvolume", "volumes")
EXEC_FILES = ("worker/launcher.py",)
# What exec dialect may import at module level; all else on the branch that needs it. What comes with `json`, and
# contextlib, cost milliseconds: the lists in modules/ keep them off the way of a call that does not need them.
EXEC_IMPORTS = frozenset(
    (
        *(
            "__future__",
            "_frozen_importlib",
            "_json",
            "_sha2",
            "_sha256",
            "_socket",
            "_thread",
            "binascii",
            "errno",
            "fcntl",
            "marshal",
            "os",
            "posix",
            "stat",
            "struct",
        ),
        *("sys", "time", "json", "re", "enum", "collections", "functools", "contextlib"),
    )
)
SPOKEN_ELSEWHERE = re.compile(  # words of a workplace, and promises instead of work
    "/work" + r"/|\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b|NotImplemented" + "Error"
)
UNBOUNDED = frozenset({"asyncio", "trio", "pydantic", "attr", "attrs", "structlog", "tenacity"})


def sources() -> list[Path]:
    """The package's own files, generated ones left out."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "pb" not in path.relative_to(PACKAGE).parts]


def is_exec_dialect(path: Path) -> bool:
    inside = path.relative_to(PACKAGE)
    if inside.name == "cli.py":
        return False
    return inside.parts[0] in EXEC_ROOMS or inside.as_posix() in EXEC_FILES


def named(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def imports(body: list[ast.stmt]) -> Iterator[str]:
    """Modules imported when these statements run, those under `if TYPE_CHECKING` left out."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.If):
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                yield from imports(node.body)
            yield from imports(node.orelse)
        elif isinstance(node, (ast.Try, ast.With, ast.ClassDef)):
            yield from imports(node.body)


@pytest.mark.parametrize("path", [path for path in sources() if is_exec_dialect(path)], ids=named)
def test_exec_dialect_imports_little_at_module_level(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = {module for module in imports(tree.body) if module.split(".")[0] not in {"nodeplug", *EXEC_IMPORTS}}
    assert not found, "import it where it is needed, or not at all"
    first = next((node for node in tree.body if isinstance(node, ast.ImportFrom)), None)
    if any(isinstance(node, ast.FunctionDef) and node.returns for node in ast.walk(tree)):
        assert first is not None and first.module == "__future__", "annotations must not be evaluated"


def test_only_libc_imports_ctypes() -> None:
    users = {
        named(path)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "ctypes" in ast.unparse(node)
    }
    assert users <= {"nodeplug/kernel/libc.py"}


def test_the_harness_knows_our_plugins_only_as_executables_and_sockets() -> None:
    doors = ("nodeplug.cni", "nodeplug.flexvolume", "nodeplug.deviceplugin", "nodeplug.kms", "nodeplug.worker")
    for path in sources():
        if path.relative_to(PACKAGE).parts[0] == "harness":
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [module for module in modules if module.startswith(doors)], named(path)


@pytest.mark.parametrize("path", sources(), ids=named)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "what it is, who calls it, what it must not import"


def test_no_framework_that_would_colour_the_code() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not UNBOUNDED & {alias.name.split(".")[0] for alias in node.names}, named(path)
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNBOUNDED, named(path)


def test_no_file_speaks_of_the_place_it_was_written_in_or_of_work_to_come() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=False).stdout
    paths = [CHECKOUT / name for name in listed.decode().split("\0") if name] or sources()
    found = []
    for path in paths:
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            if SPOKEN_ELSEWHERE.search(line):
                found.append(f"{named(path)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_every_module_can_be_imported_alone() -> None:
    """No cycle hides behind the order in which others happen to import: each in an interpreter of its own."""
    modules = [
        named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources()
        if is_exec_dialect(path)
    ]
    script = (
        "import os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        __import__(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(pid, 0)[1]:\n"
        "        sys.exit(f'{name} cannot be imported alone')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
