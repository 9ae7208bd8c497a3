"""Writing the bundle: the code of all modules of a copy in one file, for `nodeplug.core.bundle`.

A program of its own, run by the interpreter that will run the plugins, which makes code for itself:
`python3 -IS -B -X no_debug_ranges bundling.py COPY NAME MODULE`. Imports the standard library only.

What nobody asks for at run time is left out: docstrings, annotations of functions, what is for type checkers. Files
and lines keep their names and numbers, so that tracebacks are right.
"""

from __future__ import annotations
import __future__ as features

import ast
import importlib
import importlib.util
import marshal
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BOOT = "nodeplug.core.bundle"
_TAG = b"nodeplug"
_HEAD = 16
"""Bytes before the head: the tag, the magic number of the interpreter, the length of the head."""


def write(copy: Path, name: str) -> None:
    """Write `bundle` into the copy, which will be called `name` where it is now.

    Raises OSError, and SyntaxError for what cannot be compiled.
    """
    files = {_module(file.relative_to(copy)): file for file in sorted((copy / "nodeplug").rglob("*.py"))}
    index = {}
    parts: list[bytes] = []
    start = 0
    for module, file in files.items():
        tree = ast.parse(file.read_bytes(), str(file))
        needed = [parent for parent in [module.rpartition(".")[0]] if parent]
        needed += [other for other in _imports(tree.body) if other in files and other != module]
        code = _compiled(tree, copy.parent / name / file.relative_to(copy))
        index[module] = (start, len(code), file.name == "__init__.py", tuple(dict.fromkeys(needed)))
        parts.append(code)
        start += len(code)
    boot = marshal.loads(parts[list(index).index(_BOOT)])
    head = marshal.dumps((boot, name, start, index))
    begin = _TAG + importlib.util.MAGIC_NUMBER + len(head).to_bytes(4, "little")
    (copy / "bundle").write_bytes(b"".join((begin, head, *parts)))
    (copy / "bundle").chmod(0o644)


def trial(copy: Path, name: str, module: str) -> None:
    """Import `module` from the bundle as a launcher does. Raises what that raises."""
    file = os.open(copy / "bundle", os.O_RDONLY | os.O_CLOEXEC)
    size = int.from_bytes(os.read(file, _HEAD)[_HEAD - 4 :], "little")
    boot, *rest = marshal.loads(os.read(file, size))
    space: dict[str, Any] = {"__name__": _BOOT}
    exec(boot, space)
    space["use"](file, str(copy.parent / name), _HEAD + size, *rest)
    importlib.import_module(module)


def _module(file: Path) -> str:
    return ".".join(file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts)


def _compiled(tree: ast.Module, file: Path) -> bytes:
    slim = ast.fix_missing_locations(_Slim().visit(tree))
    return marshal.dumps(compile(slim, str(file), "exec", flags=features.annotations.compiler_flag, dont_inherit=True))


def _imports(body: Iterable[ast.stmt]) -> Iterator[str]:
    """What is imported when these statements run, with what may be a module and may be a name in one."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If):
            yield from () if _is_for_checkers(node) else _imports(node.body)
            yield from _imports(node.orelse)
        elif isinstance(node, (ast.With, ast.ClassDef)):
            yield from _imports(node.body)


def _is_for_checkers(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class _Slim(ast.NodeTransformer):
    """Takes out what is not asked for at run time. What classes annotate stays: records are made of it."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        given = node.args
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            if argument is not None:
                argument.annotation = None
        node.returns = None
        return self._without_words(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_words(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self._without_words(node)
        node.body = [_plain(statement) for statement in node.body]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if _is_for_checkers(node) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "__future__" else node  # compiled so that all is as it says

    def _without_words(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> ast.AST:
        self.generic_visit(node)
        node.body = [statement for statement in node.body if not _is_text(statement)]
        if not node.body and not isinstance(node, ast.Module):
            node.body = [ast.copy_location(ast.Pass(), node)]
        return node


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _plain(statement: ast.stmt) -> ast.stmt:
    """A module's `name: type = value` as `name = value`."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.copy_location(ast.Assign([statement.target], statement.value), statement)
    return statement


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
    trial(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
