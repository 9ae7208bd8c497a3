"""What the modules of one execution cost over the bare interpreter, as they are installed. Target of an ADD: 12 ms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.arch.imports import BARE, allowed, importing, lists
from tests.bench.timer import Round, Watch, measure
from tests.child import run
from tests.ledger import Ledger
from tests.sandbox import CHECKOUT

TARGET = 0.012
DOORS = {"cni": "bridge", "flexvolume": "tmpfs"}
"""The contracts whose calls are executed, and one of the names to install for each."""


def interpreter(command: list[str]) -> Round:
    def one_round(watch: Watch) -> None:
        watch.run("start and import", command, env={})

    return one_round


def installed(ledger: Ledger, door: str) -> Path:
    """What is installed for the contract: the directory of its launcher."""
    directory = ledger.directory()
    command = [CHECKOUT / "bin" / "nodeplug", "install", door, "--dest", directory / "plugins", "--shim", "python"]
    more = ["--store", directory / "store"] if door == "flexvolume" else []
    run([*command, "--only", DOORS[door], *more]).ok()
    if door == "cni":
        return directory / "plugins"
    return directory / "plugins" / "nodeplug.dev~tmpfs"


def beginning(directory: Path, door: str, modules: list[str]) -> list[str]:
    """A command that begins as the installed launcher does, imports these modules, and ends as it does."""
    text = (CHECKOUT / "bin" / "nodeplug-cni").read_text().split("\narguments = sys.argv")[0]
    imports = "\n".join(f"import {module}" for module in ["os", *modules])  # os by itself, or what it is made of fails
    script = directory / f"imports-{door}"
    script.write_text(f"{text}\n{imports}\nposix._exit(0)\n")
    return [*BARE, str(script)]


@pytest.mark.parametrize("name", lists())
def bench_imports_of(ledger: Ledger, name: str) -> None:
    modules = allowed(name)
    door = name.partition("-")[0]
    libraries = [module for module in modules if not module.startswith("nodeplug")]
    whole = beginning(installed(ledger, door), door, modules)
    run(whole, env={}).ok()
    report = measure(
        {
            "python3 -IS": interpreter([*BARE, "-c", "pass"]),
            "its part of the standard library": interpreter(importing(libraries)),
            name: interpreter(whole),
        },
        rounds=50,
    )
    print()
    print(report.markdown(title=f"Imports of {name}", command="make bench"))
    cost = report.difference("start and import", name)
    print(f"target: at most {TARGET * 1000:.0f} ms over the bare interpreter: {'met' if cost <= TARGET else 'MISSED'}")
