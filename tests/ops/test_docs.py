"""The commands of docs/install.md and docs/runtime.md do what the pages say."""

from __future__ import annotations

import os
from pathlib import Path

from tests.child import Finished, run
from tests.cni.pages import live
from tests.examples import examples
from tests.ledger import Ledger
from tests.needs import needs

BIN = Path(__file__).parents[2] / "bin"


def script(text: str, plugins: Path, directory: Path) -> Finished:
    """Run a page's commands in `directory`, with its plugin directory at `plugins`; the first failure ends them."""
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    commands = text.replace("/opt/cni/bin", str(plugins))
    return run(["sh", "-ex"], stdin=commands.encode(), cwd=directory, env=env)


def test_install_page(directory: Path) -> None:
    found = examples("install.md")
    script(found["install.sh"], directory / "bin", directory).ok()
    assert list((directory / "bin").iterdir()) == []
    (directory / "bin/host-local").write_text("theirs")
    assert script(found["install.sh"], directory / "bin", directory).code == 1
    script(found["replace.sh"], directory / "bin", directory).ok()
    assert (directory / "bin/host-local").read_text() == "theirs"


@needs("sandbox", "program:nft")
def test_runtime_page(ledger: Ledger) -> None:
    done = live("runtime.md", ledger).ok()
    for word in ("portMappings", "ready", "10.88.0.2", "as it should be", "blue"):
        assert word in done.text
