"""host-local's directory: made without a word, and locked where the reference locks it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeplug.cni.ipam.store import Leases
from nodeplug.core.errors import TryAgain
from tests.child import run
from tests.cni.leases import NET, addresses, conf, executable, holders, ours, variables
from tests.needs import needs


@needs("sandbox")
def test_the_first_use_on_a_node_says_nothing_on_stderr(directory: Path) -> None:
    config = conf(directory / "not" / "there" / "yet", subnet="10.1.0.0/24")
    program, stdin = executable(directory), json.dumps(config).encode()
    for command in ("ADD", "DEL", "DEL"):
        done = run([program], env=variables(command, "a", "eth0", ""), stdin=stdin)
        assert (done.code, done.stderr) == (0, b"")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """By another process, with flock(1)."""
    words = ["flock", path, "sh", "-c", "echo held; read line"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield
        child.communicate(b"\n")


@pytest.mark.parametrize("place", ["the file", "the directory"])
def test_a_network_is_locked_by_flock_on_the_file_lock_and_not_on_its_directory(place: str, directory: Path) -> None:
    """Given a directory, the reference takes the file `lock` in it; who locks the directory itself is a stranger."""
    config = conf(directory, subnet="10.1.0.0/24")
    addresses(ours("ADD", config))
    with held(directory / NET / "lock" if place == "the file" else directory / NET):
        if place == "the file":
            with pytest.raises(TryAgain, match="held the lock"), Leases(str(directory), NET, timeout=0.05):
                pass
        else:
            assert addresses(ours("ADD", config, "b")) == ["10.1.0.3/24"]
    assert ours("DEL", config) == (0, None)
    assert holders(directory) == ({} if place == "the file" else {"10.1.0.3": "b eth0"})
