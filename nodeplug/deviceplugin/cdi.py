"""CDI spec files: one for each resource, all its devices in it, rewritten when one changes.

A file names the kernel's own nodes (runtimes look at them without following links), so it is rewritten when a device
comes back under another number; the names kubelets remember stay. See the Container Device Interface, SPEC.md.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any

from nodeplug.core import files
from nodeplug.core.naming import digest
from nodeplug.deviceplugin.allocation import given_nodes
from nodeplug.deviceplugin.settings import Resource
from nodeplug.devices.contract import Device

PREFIX = "nodeplug-"
_OURS = re.compile(r"nodeplug-[A-Za-z0-9._-]+-[a-z2-7]{10}\.json\Z")
_LARGEST = 64 << 20


def file_name(resource: str) -> str:
    """The name of a resource's file: readable, and different for different resources."""
    return f"{PREFIX}{resource.replace('/', '-')}-{digest(resource, 10)}.json"


def document(resource: Resource, devices: Iterable[Device]) -> dict[str, Any]:
    """The spec. Its version is the least that knows all that is used: loaders refuse one that is too low."""
    entries = []
    for device in devices:
        entries.append({"name": device.id, "containerEdits": _edits(resource, device)})
    kind = resource.name.partition("/")[2]
    # 0.5.0: hostPath, and names that begin with a digit. 0.6.0: dots in a class.
    return {"cdiVersion": "0.6.0" if "." in kind else "0.5.0", "kind": resource.name, "devices": entries}


def _edits(resource: Resource, device: Device) -> dict[str, Any]:
    nodes = []
    for given, node in zip(given_nodes(resource, device, 0), device.nodes, strict=True):
        entry: dict[str, Any] = {"path": given.container, "hostPath": node.real or node.host}
        if node.number is not None:
            entry["type"] = node.number[0]
            entry["major"], entry["minor"] = node.number[1:]
        entry["permissions"] = given.permissions
        if resource.uid is not None:
            entry["uid"] = resource.uid
        if resource.gid is not None:
            entry["gid"] = resource.gid
        nodes.append(entry)
    # Edits that change nothing are refused by some loaders; a device without nodes says at least who it is.
    return {"deviceNodes": nodes} if nodes else {"env": [f"{resource.pcidevice}={device.id}"]}


class SpecFile:
    """One resource's file. Not shared between threads."""

    def __init__(self, directory: str, resource: Resource) -> None:
        self._directory = directory
        self._resource = resource
        self.path = os.path.join(directory, file_name(resource.name))
        self._written = b""

    def write(self, devices: Iterable[Device]) -> bool:
        """Make the file right; True when it was changed. A spec without devices is invalid, so then there is no file.

        Raises OSError: the old file stays as it was.
        """
        spec = document(self._resource, devices)
        if not spec["devices"]:
            self.remove()
            return False
        data = json.dumps(spec, indent=1).encode()
        if data == self._written and os.path.exists(self.path):
            return False
        files.ensure_directory(self._directory)
        files.write_atomic(self.path, data, 0o644, durable=False)
        self._written = data
        return True

    def remove(self) -> None:
        """Remove the file. Raises OSError only for what is not its absence."""
        self._written = b""
        files.remove(self.path)


def leftovers(directory: str, resources: Iterable[str]) -> list[tuple[str, str]]:
    """(path, resource) of our files of other resources than these, and half-written ones (resource ""), to be removed.

    A file's own `kind` says whose it is.
    """
    wanted = {file_name(resource) for resource in resources}
    found = []
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    for name in names:
        path = os.path.join(directory, name)
        if name.startswith(f".{PREFIX}") and name.endswith("~"):
            found.append((path, ""))
        elif _OURS.match(name) and name not in wanted:
            found.append((path, _kind(path)))
    return found


def _kind(path: str) -> str:
    try:
        spec = json.loads(files.read_bounded(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return ""
    kind = spec.get("kind", "") if isinstance(spec, dict) else ""
    return kind if isinstance(kind, str) else ""
