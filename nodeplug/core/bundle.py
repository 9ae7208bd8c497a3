"""Modules out of one file: what an installed plugin imports, without a look for each in directories.

`nodeplug install` writes `bundle` beside the package (`nodeplug.ops.bundling`): first what `use` is given, then the
code of every module. A launcher reads the begin, runs this module out of it, and everything else is found in the file
as it is imported. Where the file is missing, cut, of another copy or another Python, launchers take the package itself.

Imports only what is inside the interpreter, and of nodeplug nothing: it runs before all else.
"""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from marshal import loads
from posix import fstat, pread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    Index = Mapping[str, tuple[int, int, bool, tuple[str, ...]]]


def use(file: int, root: str, base: int, name: str, size: int, index: Index) -> None:
    """Import from now on from the bundle that `file` is open on; it lies in the directory `root`, its code at `base`.

    `name` of the copy, `size` of all code and `index` are of its head. Raises ValueError when it is not whole, or of
    another copy.
    """
    if fstat(file).st_size != base + size or root.rpartition("/")[2] != name:
        raise ValueError("the bundle is not whole, or belongs to another copy")
    sys.meta_path.insert(0, Bundle(file, root, base, index))


class Bundle:
    """A finder and loader, see `importlib.abc`.

    `index` has for each module where its code is, how long that is, whether it is a package, and which modules of the
    bundle it imports. Those are made first, without the import system's doing: it takes longer to look for a module
    than to run it.
    """

    def __init__(self, file: int, root: str, base: int, index: Index) -> None:
        self._file = file
        self._root = root
        self._base = base
        self._index = index

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        """What the import system asks for."""
        if name not in self._index:
            return None
        spec = ModuleSpec(name, self, origin=self._place(name), is_package=self._index[name][2])  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(spec.origin.rpartition("/")[0])  # type: ignore[union-attr]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """The import system makes it."""

    def exec_module(self, module: ModuleType) -> None:
        """Run it, after what it imports."""
        self._run(module.__name__, module.__dict__)

    def _make(self, name: str) -> None:
        module = type(sys)(name)
        space = module.__dict__
        space["__loader__"] = self
        space["__file__"] = place = self._place(name)
        parent, _, child = name.rpartition(".")
        space["__package__"] = parent
        if self._index[name][2]:
            space["__package__"] = name
            space["__path__"] = [place.rpartition("/")[0]]
        sys.modules[name] = module
        try:
            self._run(name, space)
        except BaseException:
            del sys.modules[name]
            raise
        if parent:
            setattr(sys.modules[parent], child, module)

    def _run(self, name: str, space: dict[str, object]) -> None:
        start, size, _is_package, needed = self._index[name]
        for other in needed:
            if other not in sys.modules:
                self._make(other)
        exec(loads(pread(self._file, size, self._base + start)), space)

    def _place(self, name: str) -> str:
        within = name.replace(".", "/")
        return f"{self._root}/{within}/__init__.py" if self._index[name][2] else f"{self._root}/{within}.py"
