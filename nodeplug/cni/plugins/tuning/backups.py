"""What the interface was like before: one small file for each attachment, written before anything is changed.

    <dataDir>/np7k3....json    {"network", "container", "ifname", "link": [...], "mac", "mtu", ...}

Values are kept from the first change on: a chain with two tunings, or a repeated ADD, restores what was there before
all of them. `link` tells a later link of that name apart, whose values the file does not know. The reference plugin
names its file <cid>_<ifname>.json and knows no network; DEL takes such a file as well.
"""

from __future__ import annotations

import os

from nodeplug.cni.contract import Attachment
from nodeplug.cni.plugins.keys import read_mac
from nodeplug.cni.plugins.tuning.config import OF_LINK
from nodeplug.core import files, jsontext
from nodeplug.core.errors import Malformed, doing
from nodeplug.core.record import Record
from nodeplug.kernel.rtnl.links import IFF_ALLMULTI, IFF_PROMISC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import Any

    from nodeplug.kernel.netns import Netns
    from nodeplug.kernel.rtnl.links import Link

_LARGEST = 64 * 1024
_ON_DISK = {"txqlen": "txQLen"}  # as the reference writes it


class Backup(Record):
    """Values by the names that `links.set` takes; `link` is (device, inode, index) of namespace and interface."""

    values: Mapping[str, Any]
    link: tuple[int, ...] = ()


def present(link: Link, names: Iterable[str]) -> dict[str, Any]:
    """The link's values of these names."""
    found = {
        "mac": link.mac,
        "mtu": link.mtu,
        "promisc": bool(link.flags & IFF_PROMISC),
        "allmulti": bool(link.flags & IFF_ALLMULTI),
        "txqlen": link.txqlen,
    }
    return {name: found[name] for name in names}


def place(netns: Netns, link: Link) -> tuple[int, ...]:
    return (*netns.identity(), link.index)


class Backups:
    """The directory. Raises errors of `nodeplug.core.errors`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def keep(self, attachment: Attachment, backup: Backup) -> None:
        """Add to what is known of the attachment's link; of what is known already the older value stays."""
        before = self._read(self._path(attachment))
        values = backup.values
        if before is not None and before.link == backup.link:
            values = {**values, **before.values}
        document: dict[str, Any] = {
            "network": attachment.network,
            "container": attachment.container,
            "ifname": attachment.ifname,
            "link": list(backup.link),
        }
        for name in values:
            value = values[name]
            document[_ON_DISK.get(name, name)] = value.hex(":") if isinstance(value, bytes) else value
        path, data = self._path(attachment), jsontext.dumps(document).encode()
        with doing(f"cannot keep the present values of {attachment.ifname} in {path}"):
            try:
                files.write_atomic(path, data, 0o600, durable=False)
            except FileNotFoundError:
                files.ensure_directory(self._directory, 0o700)
                files.write_atomic(path, data, 0o600, durable=False)

    def find(self, attachment: Attachment) -> Backup | None:
        """What is known of the attachment; a file that cannot be read counts as none."""
        return self._read(self._path(attachment)) or self._read(self._reference(attachment))

    def drop(self, attachment: Attachment) -> None:
        with doing(f"cannot remove the kept values of {attachment}"):
            files.remove(self._path(attachment))
            files.remove(self._reference(attachment))

    def owners(self) -> list[Attachment]:
        """The attachments with a file of ours."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        found = [_owner(f"{self._directory}/{name}") for name in names if name.startswith("np")]
        return [owner for owner in found if owner is not None]

    def collect(self, network: str, valid: Collection[Attachment]) -> None:
        """Remove the files of the network's attachments that are not in `valid`, and what writers left that were
        killed. The reference plugin's files name no network: those of containers go that no runtime knows of.
        """
        from nodeplug.cni.reference import known

        containers = known.containers()
        kept = tuple(f"{name}_" for name in {*(containers or ()), *(each.container for each in valid)})
        with doing(f"cannot clean {self._directory}"):
            try:
                names = os.listdir(self._directory)
            except FileNotFoundError:
                return
            for name in names:
                path = f"{self._directory}/{name}"
                owner = _owner(path) if name.startswith("np") else None
                stale = owner is not None and owner.network == network and owner not in valid
                if containers is not None and "_" in name and name.endswith(".json") and not name.startswith("."):
                    stale = not name.startswith(kept)
                if stale or (name.startswith(".np") and files.is_abandoned(name)):
                    files.remove(path)

    def _path(self, attachment: Attachment) -> str:
        return f"{self._directory}/{attachment.identity}.json"

    def _reference(self, attachment: Attachment) -> str:
        return f"{self._directory}/{attachment.container}_{attachment.ifname}.json"

    def _read(self, path: str) -> Backup | None:
        document = _document(path)
        values: dict[str, Any] = {}
        for name in OF_LINK:
            value = document.get(_ON_DISK.get(name, name))
            if name == "mac":
                value = read_mac(value) if isinstance(value, str) else None
            if isinstance(value, (bytes, bool, int)):
                values[name] = value
        link = document.get("link")
        known = tuple(part for part in link if isinstance(part, int)) if isinstance(link, list) else ()
        return Backup(values=values, link=known) if values else None


def _owner(path: str) -> Attachment | None:
    document = _document(path)
    parts = [document.get(name) for name in ("network", "container", "ifname")]
    if not all(isinstance(part, str) for part in parts):
        return None
    network, container, ifname = map(str, parts)
    return Attachment(network=network, container=container, ifname=ifname)


def _document(path: str) -> dict[str, Any]:
    try:
        found = jsontext.loads(files.read_bounded(path, _LARGEST))
    except (FileNotFoundError, Malformed):
        return {}
    return found if isinstance(found, dict) else {}
