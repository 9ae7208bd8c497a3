"""docs/scenarios.md: every test it names is there, with the case it names; every plugin has a table of its own tests.

Read off the source: to ask pytest for what it would collect takes longer than all of this.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nodeplug.cni.dispatch import IPAM, PLUGINS
from tests.examples import ROOT

_PAGE = (ROOT / "docs" / "scenarios.md").read_text()
_LONGEST = 100  # pytest puts a number in the place of a longer text
_TEST = re.compile(r"^([a-z_/]+\.py)::(test_[a-z0-9_]+)(?:\[(.+)\])?$")


def tables() -> dict[str, list[tuple[str, list[str]]]]:
    """By heading: (scenario, tests) of each row."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for section in re.split(r"^## ", _PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")][1:]
        found[heading] = [(scenario.strip(), re.findall(r"`([^`]+)`", tests)) for scenario, tests in rows]
    return found


TABLES = tables()


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def assigned(path: Path, name: str) -> Iterator[ast.expr]:
    """What a name of the module stands for; through the imports of other modules of the tests."""
    for node in module(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            yield from [node.value] if node.value is not None else []
        elif isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            source = ROOT.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            yield from assigned(source, name) if source.is_file() else []


def words(path: Path, node: ast.expr) -> Iterator[str]:
    """Every text in an expression, and in what its names stand for, that may be part of a case's name."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield from [part.value] if len(part.value) <= _LONGEST else []
        elif isinstance(part, ast.Name):
            for value in assigned(path, part.id):
                yield from words(path, value)


def fault(test: str) -> str:
    """What is wrong with the name of a test; "" when it names one."""
    match = _TEST.match(test)
    if match is None:
        return "is no name of a test"
    file, function, case = match.groups()
    path = ROOT / "tests" / file
    if not path.is_file():
        return f"there is no tests/{file}"
    found = [node for node in module(path).body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not found:
        return f"tests/{file} has no {function}"
    if case and not any(case in word for mark in found[0].decorator_list for word in words(path, mark)):
        return f"{function} has no case {case!r}"
    return ""


@pytest.mark.parametrize("heading", TABLES)
def test_every_scenario_names_tests_that_are_there(heading: str) -> None:
    assert TABLES[heading], "a table without rows"
    wrong = [f"{scenario}: names no test" for scenario, tests in TABLES[heading] if not tests]
    wrong += [f"{test}: {fault(test)}" for _, tests in TABLES[heading] for test in tests if fault(test)]
    assert wrong == []


@pytest.mark.parametrize("plugin", sorted((*PLUGINS, *IPAM)))
def test_every_plugin_has_tests_whose_names_say_it(plugin: str) -> None:
    name = plugin.replace("-", "_")
    tests = [test for _, tests in TABLES[plugin] for test in tests]
    assert tests and [test for test in tests if name not in test.partition("[")[0] and f"[{plugin}]" not in test] == []


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("cni/test_static.py", "is no name of a test"),
        ("cni/test_nothing.py::test_x", "there is no tests/cni/test_nothing.py"),
        ("cni/test_static.py::test_nothing", "tests/cni/test_static.py has no test_nothing"),
        ("cni/test_static.py::test_the_order_of_sources[args displace]", "has no case 'args displace'"),
        ("cni/test_static.py::test_the_order_of_sources[args replace]", ""),
        ("cni/test_podlinks.py::test_gc_without_a_list_removes_nothing[tap]", ""),
    ],
)
def test_what_is_not_there_is_noticed(test: str, said: str) -> None:
    assert said in fault(test) and bool(said) == bool(fault(test))
