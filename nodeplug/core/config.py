"""A node's settings: /etc/nodeplug/nodeplug.toml, then conf.d/*.toml in name order, then flags.

Later files win key by key; lists of tables (`[[...]]`) are joined, other lists replaced. A node without settings files
pays two failed opens. Used by every door's main and by the command line.
"""

from __future__ import annotations

import os

from nodeplug.core import document, files, paths
from nodeplug.core.errors import ConfigInvalid, Malformed, PermissionRefused, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from nodeplug.core.record import Record

    R = TypeVar("R", bound=Record)

_LARGEST = 1 << 20


def load(directory: str = paths.ETC) -> dict[str, object]:
    """All settings of the node merged, unread as yet. Raises `ConfigInvalid` naming the file."""
    found: dict[str, object] = {}
    for path in sources(directory):
        merge(found, read(path))
    return found


def sources(directory: str = paths.ETC) -> list[str]:
    """The settings files in the order they are merged."""
    main = os.path.join(directory, "nodeplug.toml")
    extra = os.path.join(directory, "conf.d")
    try:
        names = sorted(name for name in os.listdir(extra) if name.endswith(".toml") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return ([main] if os.path.exists(main) else []) + [os.path.join(extra, name) for name in names]


def read(path: str) -> dict[str, object]:
    """One TOML file. Raises `ConfigInvalid` (missing, not TOML, too large) or `PermissionRefused`."""
    import tomllib

    try:
        return tomllib.loads(files.read_bounded(path, _LARGEST).decode("utf-8"))
    except FileNotFoundError:
        raise ConfigInvalid(f"there is no settings file {path}", hint="create it, or name another one") from None
    except PermissionError:
        raise PermissionRefused(f"may not read the settings file {path}") from None
    except OSError as error:
        raise Unavailable(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"{path} is not TOML: {error}") from None


def merge(into: dict[str, object], more: dict[str, object]) -> None:
    """Lay `more` over `into`, in place."""
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif _is_tables(old) and _is_tables(value):
            into[key] = old + value  # type: ignore[operator]  # both are lists
        else:
            into[key] = value


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def section(cls: type[R], settings: dict[str, object], name: str, where: str) -> R:
    """The table `[name]` (dotted for nested ones) as a `cls`; all defaults when it is absent.

    `where` names the file or directory in errors. Raises `ConfigInvalid` with every problem.
    """
    found: object = settings
    for step in name.split("."):
        found = found.get(step, {}) if isinstance(found, dict) else found
    try:
        return document.decode(cls, found, path=name)
    except ConfigInvalid as invalid:
        raise ConfigInvalid(f"the settings in {where} are not valid", problems=invalid.problems) from None
