"""A module that leaks fails, with the name of what it left: shown by a run of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.child import Finished, run
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("sandbox")

LEAKY = """
import subprocess
def test_innocent_looking():
    subprocess.run(["ip", "link", "add", "name", "leaky0", "type", "bridge"], check=True)
"""
SKIPPING = """
import pytest
from tests.needs import needs
@needs("program:no-such-program")
def test_unannounced(): pass
"""


def pytest_on(text: str, folder: Path) -> Finished:
    path = folder / "test_made.py"
    path.write_text(text)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(CHECKOUT / "pyproject.toml")]
    return run([sys.executable, "-m", "pytest", *options, str(path)], cwd=CHECKOUT)


def test_a_leak_fails_the_module_by_name(directory: Path) -> None:
    done = pytest_on(LEAKY, directory)
    run(["ip", "link", "delete", "leaky0"]).ok()
    assert done.code == 1
    assert "link leaky0" in done.text
    assert "1 passed, 1 error" in done.text


def test_an_unannounced_skip_is_listed_and_fails_the_run(directory: Path) -> None:
    done = pytest_on(SKIPPING, directory)
    assert "needs program:no-such-program: no-such-program is not on PATH" in done.text
    assert "NOT IN tests/expected-skips.txt" in done.text
    release = Path("/etc/os-release").read_text()
    assert done.code == (1 if "ID=debian" in release and '"12"' in release else 0)
