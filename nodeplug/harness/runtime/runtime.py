"""A container runtime's side of CNI: chains in order, results handed on, cached and handed back.

Does what libcni 1.3 does around plugins, where it is odd too (a DEL stops at the first error; nothing is deleted when
an ADD fails), so that a plugin that is content here is content under containerd and CRI-O. Two departures: the cache
is written by rename, and GC wants its list of valid attachments said out loud.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import ConfigInvalid, Error, NotFound, VersionUnsupported
from nodeplug.harness.runtime import documents, plugin
from nodeplug.harness.runtime.cache import DIRECTORY, Attachment, Cache, Cached
from nodeplug.harness.runtime.config import parse_network
from nodeplug.harness.runtime.result import Result, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nodeplug.harness.runtime.config import Network, PluginConfig

PATH = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Where plugins are looked for when nobody says otherwise: the customary directory, then Debian's."""

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)


class SomeFailed(Error):
    """Several steps were all tried and some failed; `errors` has each."""

    def __init__(self, message: str, errors: Sequence[Error]) -> None:
        super().__init__(message + ": " + "; ".join(str(error) for error in errors))
        self.errors = tuple(errors)


class Runtime:
    """Runs the plugins found in `path`. Holds no state but the cache on disk; may be used by several threads at once.

    A runtime must not run `gc` while it adds or deletes (CNI specification, section 4): that is the caller's to keep.
    """

    def __init__(
        self,
        path: Sequence[Path] = PATH,
        *,
        cache_directory: Path = DIRECTORY,
        timeout: float = plugin.TIMEOUT,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.path = tuple(path)
        self.cache = Cache(cache_directory)
        self.timeout = timeout
        self._environ = dict(os.environ if environ is None else environ)

    def add(self, network: Network, attachment: Attachment) -> Result:
        """Run the chain with ADD and cache its result, which is returned in the network's version.

        Stops at the first plugin that fails and undoes nothing: the caller owes a `delete`, as the specification asks.
        """
        check_names(network, attachment)
        document: dict[str, Any] | None = None
        result = Result(network.cni_version)
        for config in network.plugins:
            answer = self._call(config, "ADD", self._stdin(network, config, attachment, document), attachment)
            result = self._result(config, answer.stdout, network.cni_version)
            document = encode(result)
        self.cache.write(Cached(network.name, attachment, network.raw, document or {}))
        return result

    def check(self, network: Network, attachment: Attachment) -> None:
        """Run the chain with CHECK and the cached result. Does nothing for a network with `disableCheck`.

        Raises `VersionUnsupported` below 0.4.0, which has no CHECK, and `NotFound` without a cached result.
        """
        if not network.at_least("0.4.0"):
            raise VersionUnsupported(
                f"network {network.name!r} speaks version {network.cni_version or '0.1.0'}, which has no CHECK",
                hint="it came with 0.4.0",
            )
        if network.disable_check:
            return
        check_names(network, attachment)
        kept = self._kept_result(network, attachment)
        for config in network.plugins:
            self._call(config, "CHECK", self._stdin(network, config, attachment, kept), attachment)

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Run the chain backwards with DEL, each plugin with the final result, and forget the result at the end.

        Stops at the first plugin that fails. Networks below 0.4.0 send no result; neither does an unreadable cache.
        """
        check_names(network, attachment)
        kept: dict[str, Any] | None = None
        if network.at_least("0.4.0"):
            try:
                kept = self._kept_result(network, attachment)
            except NotFound:
                pass
            except (ConfigInvalid, VersionUnsupported):
                self.cache.remove(network.name, attachment)
        for config in reversed(network.plugins):
            self._call(config, "DEL", self._stdin(network, config, attachment, kept), attachment)
        self.cache.remove(network.name, attachment)

    def gc(
        self, network: Network, valid: Iterable[tuple[str, str]], *, spared_since: float | None = None
    ) -> list[Cached]:
        """Remove what does not belong to `valid`, the (container, interface) pairs that live; returns what was deleted.

        First a DEL for each cached attachment of this network that is not valid, with its own arguments; then, from
        version 1.1.0, GC on each plugin with the list under both of its spellings. Every step is tried; failures are
        raised together as `SomeFailed`. Attachments cached after `spared_since` (seconds since the epoch) count as
        valid. Does nothing for a network with `disableGC`.
        """
        if network.disable_gc:
            return []
        living = set(valid)
        cached = [entry for entry in self.cache.entries() if entry.network == network.name]
        if spared_since is not None:
            living |= {entry.attachment.key for entry in cached if entry.written >= spared_since}
        stale = [entry for entry in cached if entry.attachment.key not in living]
        errors: list[Error] = []
        removed = []
        for entry in stale:
            try:
                self.delete(network, entry.attachment)
                removed.append(entry)
            except Error as error:
                errors.append(error)
        if network.at_least("1.1.0"):
            listed = [{"containerID": container, "ifname": ifname} for container, ifname in sorted(living)]
            # Early 1.1.0 plugins know the list by a misspelt key (containernetworking/cni#1101).
            lists = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
            for config in network.plugins:
                try:
                    self._call(config, "GC", self._stdin(network, config, None, None, lists), None)
                except Error as error:
                    errors.append(error)
        if errors:
            raise SomeFailed(f"gc of network {network.name!r} was not complete", errors)
        return removed

    def forget(self, containers: Iterable[str]) -> list[Cached]:
        """DEL every cached attachment of containers that are known to be gone, in whatever network.

        Each by the configuration it was made with, which the cache holds: a runtime's own networks, such as
        containerd's for loopback, have no file. Raises `SomeFailed` when some failed.
        """
        gone = set(containers)
        removed = []
        errors: list[Error] = []
        for entry in [entry for entry in self.cache.entries() if entry.attachment.container_id in gone]:
            try:
                self.delete(
                    parse_network(entry.config, f"the cached configuration of {entry.network}"), entry.attachment
                )
                removed.append(entry)
            except Error as error:
                errors.append(error)
        if errors:
            raise SomeFailed("some attachments of ended containers are left", errors)
        return removed

    def status(self, network: Network) -> bool:
        """Ask each plugin in turn whether it can serve an ADD; the first error is raised as it came.

        Returns whether anything was asked: versions below 1.1.0 have no STATUS and count as ready.
        """
        if not network.at_least("1.1.0"):
            return False
        for config in network.plugins:
            self._call(config, "STATUS", self._stdin(network, config, None, None), None)
        return True

    def validate(self, network: Network) -> frozenset[str]:
        """Ask every plugin for its versions. Returns the capabilities the chain asks for.

        Raises `SomeFailed` naming each plugin that is missing or does not speak the network's version.
        """
        wanted = network.cni_version or "0.1.0"
        errors: list[Error] = []
        for config in network.plugins:
            try:
                spoken = plugin.versions(config.type, path=self.path, env=self._environ, timeout=self.timeout)
                if wanted not in spoken:
                    raise VersionUnsupported(f"plugin {config.type} speaks {', '.join(spoken)} and not {wanted}")
            except Error as error:
                errors.append(error)
        if errors:
            raise SomeFailed(f"network {network.name!r} cannot be used", errors)
        return frozenset().union(*(config.capabilities for config in network.plugins))

    def attachments(self, container_id: str = "") -> list[Cached]:
        """The attachments in the cache, of one container or of all."""
        return [entry for entry in self.cache.entries() if container_id in ("", entry.attachment.container_id)]

    def _kept_result(self, network: Network, attachment: Attachment) -> dict[str, Any]:
        """The cached result in the network's version, which may have changed since the ADD."""
        kept = self.cache.read(network.name, attachment)
        return encode(decode(dict(kept.result)), network.cni_version or "0.1.0")

    def _stdin(
        self,
        network: Network,
        config: PluginConfig,
        attachment: Attachment | None,
        previous: dict[str, Any] | None,
        extra: Mapping[str, object] | None = None,
    ) -> bytes:
        values: dict[str, object] = {"name": network.name, "cniVersion": network.cni_version, **(extra or {})}
        if previous is not None:
            values["prevResult"] = previous
        if attachment is not None:
            offered = attachment.capability_args
            runtime_config = {name: offered[name] for name in sorted(config.capabilities) if name in offered}
            if runtime_config:
                values["runtimeConfig"] = runtime_config
        return config.inject(values)

    def _call(self, config: PluginConfig, command: str, stdin: bytes, attachment: Attachment | None) -> plugin.Answered:
        """`attachment` is None for commands on a whole network; their variables are sent empty, as libcni does."""
        env = {
            **self._environ,
            "CNI_CONTAINERID": attachment.container_id if attachment else "",
            "CNI_NETNS": attachment.netns if attachment else "",
            "CNI_IFNAME": attachment.ifname if attachment else "",
            "CNI_ARGS": ";".join("=".join(pair) for pair in attachment.args) if attachment else "",
        }
        return plugin.call(config.type, command, stdin, path=self.path, env=env, timeout=self.timeout)

    def _result(self, config: PluginConfig, stdout: bytes, version: str) -> Result:
        what = f"the result of plugin {config.type}"
        try:
            return decode(documents.parse(stdout, what), version)
        except (ConfigInvalid, VersionUnsupported) as error:
            raise plugin.PluginFailed(config.type, "ADD", code=0, msg=f"it succeeded, but {error}") from error


def check_names(network: Network, attachment: Attachment) -> None:
    """Refuse identifiers that plugins would refuse. Raises `ConfigInvalid` naming every one that is wrong."""
    problems = []
    if not _CONTAINER_ID.fullmatch(attachment.container_id):
        rule = "must be letters, digits, '_', '.' and '-', beginning with a letter or digit"
        problems.append(("container id", f"{attachment.container_id!r} {rule}"))
    name = attachment.ifname
    bad = not name or len(name.encode()) > 15 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name)
    if bad:
        problems.append(("interface name", f"{name!r} must have 1 to 15 bytes without '/', ':' or spaces"))
    for key, value in attachment.args:
        if not key or any(c in text for text in (key, value) for c in "=;"):
            problems.append(("args", f"{key!r}={value!r} must have neither '=' nor ';' inside"))
    if problems:
        raise ConfigInvalid(f"cannot attach to network {network.name!r}", problems=problems)
