"""The package as it is shipped can install plugins too: it carries the launchers that a checkout has in bin/."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from tests.child import run

CHECKOUT = Path(__file__).parents[2]


def test_plugins_are_installed_from_a_wheel(directory: Path) -> None:
    build = [Path(sys.executable).parent / "hatchling", "build", "--target", "wheel", "--directory", directory]
    run(build, cwd=CHECKOUT, timeout=100).ok()
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    program = f"""
import sys
sys.path.insert(0, {str(directory / "site")!r})
from nodeplug.ops.main import run
flex = ["--dest", {str(directory / "exec")!r}, "--store", {str(directory / "store")!r}]
sys.exit(run(["install", "cni", "--dest", {str(directory / "bin")!r}]) or run(["install", "flexvolume", *flex]))
"""
    run([sys.executable, "-I", "-c", program], cwd="/").ok()
    said = run([directory / "bin/loopback"], env={"CNI_COMMAND": "VERSION"}).ok().json()
    assert said["supportedVersions"][-1] == "1.1.0"
    answer = run([directory / "exec/nodeplug.dev~tmpfs/tmpfs", "init"], env={}).ok().json()
    assert answer["status"] == "Success" and answer["capabilities"]["attach"] is False
