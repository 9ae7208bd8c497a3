"""The bundle of an installed copy: plugins import from it, and from the package beside it where it cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nodeplug.ops.cli import door
from nodeplug.ops.install import Directory, Door
from tests.child import Finished, run

CNI = door("cni")
PYTHON = "/usr/bin/python3"
MAGIC_AT = 8  # behind the tag
HEAD_AT = 16

pytestmark = pytest.mark.needs("file:/usr/bin/python3")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin directory; whoever changes it takes a copy."""
    place = tmp_path_factory.mktemp("bin")
    Directory(place).install(CNI, only=["loopback"])
    return place


@pytest.fixture
def place(installed: Path, directory: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(installed, directory / "bin", symlinks=True))


def copy_of(place: Path) -> Path:
    return place / ".nodeplug" / os.readlink(place / ".nodeplug/lib")


def with_program(place: Path, program: str) -> Finished:
    """The launcher with something else to do than to be a plugin."""
    text = (place / "loopback").read_text().partition("from nodeplug.cni.main import main\n")[0]
    changed = place / "program"
    changed.write_text(text + program)
    changed.chmod(0o755)
    return run([changed], env={}, cwd="/")


def uses_the_bundle(place: Path) -> bool:
    said = with_program(place, "import nodeplug.cni.main as m; print(type(m.__loader__).__name__)").ok().text
    return said.strip() == "Bundle"


def answers(place: Path) -> bool:
    said = run([place / "loopback"], env={"CNI_COMMAND": "VERSION"}).ok().json()
    return bool(said["supportedVersions"][-1] == "1.1.0")


def test_a_plugin_reads_nothing_of_the_package_beside_the_bundle(place: Path) -> None:
    for path in (copy_of(place) / "nodeplug").rglob("*"):
        if path.is_file():
            path.write_text("raise SystemExit('the package was read')")
    assert uses_the_bundle(place)
    assert answers(place)
    (copy_of(place) / "bundle").unlink()
    assert run([place / "loopback"], env={"CNI_COMMAND": "VERSION"}).stderr.startswith(b"the package was read")


@pytest.mark.parametrize("kept", [0, 7, MAGIC_AT, HEAD_AT - 1, HEAD_AT, HEAD_AT + 1, 5000, -100_000, -1])
def test_where_the_bundle_is_cut_the_package_is_used(place: Path, kept: int) -> None:
    bundle = copy_of(place) / "bundle"
    bundle.write_bytes(bundle.read_bytes()[:kept])
    assert not uses_the_bundle(place)
    assert answers(place)


def test_where_there_is_no_bundle_the_package_is_used(place: Path) -> None:
    (copy_of(place) / "bundle").unlink()
    assert not uses_the_bundle(place)
    assert answers(place)


def test_under_another_python_than_it_was_made_for_the_package_is_used(place: Path) -> None:
    """What an upgrade of the system's Python leaves."""
    bundle = copy_of(place) / "bundle"
    content = bytearray(bundle.read_bytes())
    content[MAGIC_AT] ^= 1
    bundle.write_bytes(content)
    assert not uses_the_bundle(place)
    assert answers(place)


def test_the_bundle_of_another_copy_is_not_used(place: Path) -> None:
    """Its modules would be those of another version than what is said to be installed."""
    before = copy_of(place)
    Directory(place).install(Door(CNI.launcher, (*CNI.parts, "daemon"), CNI.module, CNI.names), only=["loopback"])
    assert copy_of(place) != before
    assert uses_the_bundle(place)
    shutil.copyfile(before / "bundle", copy_of(place) / "bundle")
    assert not uses_the_bundle(place)
    assert answers(place)


def test_a_traceback_names_the_file_and_shows_the_line(installed: Path) -> None:
    place = installed
    failed = with_program(place, "from nodeplug.core.inet import Ip\nIp.parse('nonsense')\n")
    assert failed.code == 1
    said = failed.stderr.decode()
    source = (copy_of(place) / "nodeplug/core/inet.py").read_text().splitlines()
    number = next(n for n, line in enumerate(source, 1) if "is not an IP address" in line)
    assert (
        f'File "{copy_of(place)}/nodeplug/core/inet.py", line {number}, in parse\n    {source[number - 1].strip()}\n'
        in said
    )


def test_a_module_that_fails_is_not_kept_half_made(place: Path) -> None:
    program = """
import sys
from nodeplug.core import files
sys.modules["fcntl"], kept = None, sys.modules.pop("nodeplug.core.files")
try:
    from nodeplug.cni.ipam import store
except ImportError:
    pass
print("nodeplug.cni.ipam.store" in sys.modules, "nodeplug.core.files" in sys.modules)
"""
    assert with_program(place, program).ok().text.split() == ["False", "False"]


def test_every_module_of_the_bundle_has_the_names_that_it_has_in_the_package(place: Path) -> None:
    """What is left out of the bundle is nothing that runs."""
    package = copy_of(place) / "nodeplug"
    modules = sorted(
        ".".join(("nodeplug", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for path in package.rglob("*.py")
    )
    program = f"""
import json, sys
found = {{}}
for name in {modules!r}:
    __import__(name)
    module = sys.modules[name]
    names = {{n for n in vars(module) if not n.startswith("__") and n != "annotations"}}
    kinds = {{n: sorted(vars(v)) for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == name}}
    found[name] = [sorted(names), {{n: [k for k in v if k not in ("__doc__",)] for n, v in kinds.items()}}]
print(json.dumps(found))
"""
    bundled = with_program(place, program).ok().json()
    (copy_of(place) / "bundle").unlink()
    plain = with_program(place, program).ok().json()
    assert list(bundled) == modules
    for name in modules:
        assert bundled[name] == plain[name], name
    assert len(json.dumps(plain)) > 10_000
