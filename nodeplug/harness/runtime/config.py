"""Network configurations as a runtime loads them: conflists, single configurations, directories of both.

Follows libcni 1.3: which file of a directory stands for a network, which of several versions is spoken, what is
injected into the configuration that each plugin reads. Called by `runtime` and by `nodeplug cni`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import ConfigInvalid, Error, NotFound
from nodeplug.harness.runtime import documents

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NEWEST = "1.1.0"
"""The newest version of the CNI specification that this runtime speaks."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)


@dataclass(frozen=True)
class PluginConfig:
    """One plugin of a chain: its executable's name, the capabilities it asks for, its object as it was written."""

    type: str
    document: Mapping[str, Any]
    capabilities: frozenset[str] = frozenset()

    def inject(self, values: Mapping[str, object]) -> bytes:
        """The bytes for the plugin's stdin: its own object with `values` set on top. The values come last, so that
        they win over a key spelt in another case."""
        kept = {key: value for key, value in self.document.items() if key not in values}
        return documents.dump({**kept, **values})


@dataclass(frozen=True)
class Network:
    """A network configuration list. `raw` is the document as it was read: the result cache keeps it."""

    name: str
    cni_version: str
    plugins: tuple[PluginConfig, ...]
    raw: bytes = field(repr=False)
    disable_check: bool = False
    disable_gc: bool = False

    def at_least(self, version: str) -> bool:
        """Whether the version spoken is `version` or newer."""
        return version_key(self.cni_version) >= version_key(version)


def version_key(version: str) -> tuple[int, int, int]:
    """A version as numbers that compare. An empty one is 0.1.0, missing parts are 0. Raises `ConfigInvalid`."""
    parts = (version or "0.1.0").split(".")
    if len(parts) > 3 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ConfigInvalid(f"{version!r} is not a version", hint="write it like 1.0.0")
    major, minor, micro = [*map(int, parts), 0, 0][:3]
    return major, minor, micro


def parse_network(data: bytes, what: str = "the configuration") -> Network:
    """A conflist from its bytes; `what` names it in errors.

    `plugins` may be absent here, because files beside the conflist can bring them (see `load_file`). Raises
    `ConfigInvalid`.
    """
    document = documents.parse(data, what)
    try:
        return _parse_network(document, data)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{what}: {error.message}", problems=error.problems, hint=error.hint) from error


def _parse_network(document: dict[str, Any], data: bytes) -> Network:
    if "name" not in document:
        raise ConfigInvalid("the network has no name", problems=[("$.name", "missing")])
    name = document["name"]
    if not isinstance(name, str):
        raise documents.wrong("$.name", "a string", name)
    if not _NAME.fullmatch(name):
        rule = "letters, digits, '_', '.' and '-', beginning with a letter or digit"
        raise ConfigInvalid(f"{name!r} cannot be a network's name", problems=[("$.name", rule)])
    plugins: tuple[PluginConfig, ...] = ()
    if "plugins" in document:
        listed = document["plugins"]
        if not isinstance(listed, list):
            raise documents.wrong("$.plugins", "a list", listed)
        if not listed:
            raise ConfigInvalid("the network has no plugins", problems=[("$.plugins", "empty")])
        plugins = tuple(_plugin(entry, f"$.plugins[{n}]") for n, entry in enumerate(listed))
    elif only_inlined(document):
        raise ConfigInvalid(
            "the network has no plugins", problems=[("$.plugins", "missing, and loadOnlyInlinedPlugins is true")]
        )
    return Network(
        name=name,
        cni_version=_spoken(document),
        plugins=plugins,
        raw=data,
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
    )


def parse_plugin(data: bytes, what: str) -> PluginConfig:
    """One plugin's object from the bytes of a file. Raises `ConfigInvalid`."""
    try:
        return _plugin(documents.parse(data, what), "$")
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{what}: {error.message}", problems=error.problems, hint=error.hint) from error


def _plugin(document: object, path: str) -> PluginConfig:
    fields = documents.Fields(document, path)
    type = fields.text("type")
    if not type:
        raise ConfigInvalid("a plugin has no type", problems=[(f"{path}.type", "missing")])
    asked = frozenset(name for name, wanted in fields.flags("capabilities").items() if wanted)
    return PluginConfig(type, document, asked)  # type: ignore[arg-type]  # Fields accepts objects only


def only_inlined(document: Mapping[str, Any]) -> bool:
    """Whether plugin files beside the conflist are left alone."""
    return _flag(document, "loadOnlyInlinedPlugins")


def _flag(document: Mapping[str, Any], key: str) -> bool:
    """A boolean, or one of the words true and false, which older writers quote."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise documents.wrong(f"$.{key}", "true or false", value)
    return value


def _spoken(document: Mapping[str, Any]) -> str:
    """The newest of cniVersion and cniVersions that is not beyond this runtime; plain cniVersion without the latter."""
    version = document.get("cniVersion", "")
    if not isinstance(version, str):
        raise documents.wrong("$.cniVersion", "a string", version)
    if "cniVersions" not in document:
        version_key(version)
        return version
    offered = document["cniVersions"]
    if not isinstance(offered, list):
        raise documents.wrong("$.cniVersions", "a list", offered)
    for n, entry in enumerate(offered):
        if not isinstance(entry, str):
            raise documents.wrong(f"$.cniVersions[{n}]", "a string", entry)
    known = [entry for entry in [*offered, version] if entry and version_key(entry) <= version_key(NEWEST)]
    return max(known, key=version_key, default=version)


def load_file(path: Path) -> Network:
    """The network of one file: a conflist, or a single configuration, which becomes a list of one.

    Told apart by content, as operators name them freely. Unless the conflist forbids it, the plugin objects of
    `<directory>/<network>/*.conf` are appended in the order of their names. Raises `ConfigInvalid`, `NotFound`.
    """
    data = _read(path)
    document = documents.parse(data, str(path))
    if "plugins" not in document and "type" in document:
        return _single(document, data, str(path))
    network = parse_network(data, str(path))
    if only_inlined(document):
        return network
    beside = path.parent / network.name
    added = tuple(parse_plugin(_read(file), str(file)) for file in _files(beside, ".conf"))
    if not network.plugins + added:
        raise ConfigInvalid(
            f"{path}: the network has no plugins", problems=[("$.plugins", f"missing, and {beside} has no *.conf")]
        )
    return replace(network, plugins=network.plugins + added)


def _single(document: dict[str, Any], data: bytes, what: str) -> Network:
    single = parse_plugin(data, what)
    wrapped = {key: document.get(key, "") for key in ("name", "cniVersion")} | {"plugins": [single.document]}
    return parse_network(documents.dump(wrapped), what)


def load_directory(directory: Path, name: str) -> Network:
    """The network called `name` of a configuration directory.

    The first conflist by file name wins; without one, the first `.conf` or `.json` file. A broken file before it is
    an error, as in libcni: which network it was meant to be cannot be known. Raises `NotFound` when none has the name.
    """
    for file in [*_files(directory, ".conflist"), *_files(directory, ".conf", ".json")]:
        network = load_file(file)
        if network.name == name:
            return network
    raise NotFound(f"no network called {name!r} in {directory}")


def first_network(directory: Path) -> Network:
    """The network that a runtime uses by default: the first file by name. Raises `NotFound` for an empty directory."""
    files = _files(directory, ".conflist", ".conf", ".json")
    if not files:
        raise NotFound(f"no network configuration in {directory}", hint="put a *.conflist there")
    return load_file(files[0])


def _files(directory: Path, *endings: str) -> list[Path]:
    try:
        return sorted(file for file in directory.iterdir() if file.suffix in endings and file.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error(f"cannot list {directory}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return documents.read(path)
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}") from error
