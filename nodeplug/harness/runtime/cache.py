"""The result cache: one file per attachment, in libcni's format and place, so that either may take over the other's.

`<directory>/results/<network>-<container>-<ifname>`, mode 0600, kind `cniCacheV1`. Files without a kind are results
of older writers. Written whole by rename; what a kill leaves half-written has a name that no reader takes for a file
of this cache.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodeplug.core.errors import ConfigInvalid, Error, NotFound, VersionUnsupported
from nodeplug.harness.runtime import documents
from nodeplug.harness.runtime.result import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DIRECTORY = Path("/var/lib/cni")
_KIND = "cniCacheV1"


@dataclass(frozen=True)
class Attachment:
    """One interface of one container, as a runtime asks for it.

    `args` become CNI_ARGS; `capability_args` is what the runtime offers, of which each plugin gets the capabilities
    it asked for. `netns` may be empty for a DEL whose namespace is gone.
    """

    container_id: str
    netns: str = ""
    ifname: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What GC knows it by: (container, interface)."""
        return self.container_id, self.ifname


@dataclass(frozen=True)
class Cached:
    """One file of the cache. `written` is when, in seconds since the epoch."""

    network: str
    attachment: Attachment
    config: bytes
    result: Mapping[str, Any]
    written: float = 0.0

    def addresses(self) -> tuple[str, ...]:
        """The addresses of its result; none where that cannot be read."""
        try:
            return tuple(ip.ip for ip in decode(dict(self.result)).ips)
        except (ConfigInvalid, VersionUnsupported):
            return ()


class Cache:
    """The files of one cache directory."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory

    def path(self, network: str, attachment: Attachment) -> Path:
        """Where an attachment's file is."""
        return self.directory / "results" / f"{network}-{attachment.container_id}-{attachment.ifname}"

    def write(self, entry: Cached) -> None:
        """Keep the outcome of an ADD. Raises `Error` where it cannot be written."""
        attachment = entry.attachment
        document: dict[str, Any] = {
            "kind": _KIND,
            "containerId": attachment.container_id,
            "config": base64.b64encode(entry.config).decode(),
            "ifName": attachment.ifname,
            "networkName": entry.network,
        }
        if attachment.netns:
            document["netns"] = attachment.netns
        if attachment.args:
            document["cniArgs"] = [list(pair) for pair in attachment.args]
        if attachment.capability_args:
            document["capabilityArgs"] = attachment.capability_args
        document["result"] = entry.result
        target = self.path(entry.network, attachment)
        # Not in results/: libcni takes every file there for an attachment. The name is fixed, so that the next write
        # of this attachment overwrites what a kill left.
        draft = self.directory / f".{target.name}.new"
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(documents.dump(document))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except OSError as error:
            raise Error(f"cannot keep the result in {target}: {error.strerror}") from error

    def read(self, network: str, attachment: Attachment) -> Cached:
        """An attachment's entry. Raises `NotFound` without one, `ConfigInvalid` for one that cannot be understood."""
        path = self.path(network, attachment)
        try:
            document = documents.parse(documents.read(path), str(path))
        except OSError as error:
            raise NotFound(f"no cached result {path}: {error.strerror}") from error
        if document.get("kind") != _KIND:
            return Cached(network, attachment, b"", document)
        return _entry(document, str(path))

    def remove(self, network: str, attachment: Attachment) -> None:
        """Forget an attachment; it need not be there."""
        target = self.path(network, attachment)
        for path in (target, self.directory / f".{target.name}.new"):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise Error(f"cannot remove {path}: {error.strerror}") from error

    def entries(self) -> Iterator[Cached]:
        """All attachments of the directory by file name. What is not a readable file of this cache is passed over."""
        results = self.directory / "results"
        try:
            paths = sorted(results.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise Error(f"cannot list {results}: {error.strerror}") from error
        for path in paths:
            try:
                document = documents.parse(documents.read(path), str(path))
                if document.get("kind") == _KIND:
                    yield replace(_entry(document, str(path)), written=path.stat().st_mtime)
            except (OSError, ConfigInvalid):
                continue


def _entry(document: dict[str, Any], what: str) -> Cached:
    fields = documents.Fields(document, "$")
    container, ifname, network = fields.text("containerId"), fields.text("ifName"), fields.text("networkName")
    if not (container and ifname and network):
        raise ConfigInvalid(f"{what} does not say whose result it is")
    try:
        config = base64.b64decode(fields.text("config"), validate=True)
    except binascii.Error as error:
        raise ConfigInvalid(f"{what}: config is not base64: {error}") from error
    attachment = Attachment(
        container_id=container,
        netns=fields.text("netns"),
        ifname=ifname,
        args=_pairs(document.get("cniArgs"), what),
        capability_args=_object(document.get("capabilityArgs"), what),
    )
    return Cached(network, attachment, config, _object(document.get("result"), what))


def _pairs(value: object, what: str) -> tuple[tuple[str, str], ...]:
    pairs = value or []
    if not isinstance(pairs, list):
        raise ConfigInvalid(f"{what}: cniArgs is not a list")
    found = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ConfigInvalid(f"{what}: a member of cniArgs is not a pair of strings")
        found.append((str(pair[0]), str(pair[1])))
    return tuple(found)


def _object(value: object, what: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigInvalid(f"{what}: capabilityArgs or result is not an object")
    return value or {}
