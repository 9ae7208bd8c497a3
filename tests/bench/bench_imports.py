"""What the modules of one execution cost over the bare interpreter. Target: 12 ms for an ADD."""

from __future__ import annotations

import pytest

from tests.arch.imports import BARE, allowed, importing, lists
from tests.bench.timer import Round, Watch, measure
from tests.child import run

TARGET = 0.012


def interpreter(command: list[str]) -> Round:
    def one_round(watch: Watch) -> None:
        watch.run("start and import", command, env={})

    return one_round


@pytest.mark.parametrize("name", lists())
def bench_imports_of(name: str) -> None:
    modules = allowed(name)
    run(importing(modules), env={}).ok()  # leaves the byte code that an installation carries
    libraries = [module for module in modules if not module.startswith("nodeplug")]
    report = measure(
        {
            "python3 -IS": interpreter([*BARE, "-c", "pass"]),
            "its part of the standard library": interpreter(importing(libraries)),
            name: interpreter(importing(modules)),
        },
        rounds=50,
    )
    print()
    print(report.markdown(title=f"Imports of {name}", command="make bench"))
    cost = report.difference("start and import", name)
    print(f"target: at most {TARGET * 1000:.0f} ms over the bare interpreter: {'met' if cost <= TARGET else 'MISSED'}")
