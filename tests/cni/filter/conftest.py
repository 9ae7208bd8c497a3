"""Fixtures of the filter tests: the table in the sandbox's own namespace, an index of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.contract import Attachment
from nodeplug.cni.filter import layout
from nodeplug.cni.filter.index import Index, Owner
from nodeplug.cni.filter.plan import Mapping
from nodeplug.cni.filter.table import Table, filtering
from nodeplug.core.inet import Ip, Net
from nodeplug.kernel.netns import Netns
from tests.child import run
from tests.ledger import Ledger

NETWORK = "net"


@dataclass
class Node:
    """The sandbox as a node: its table, its index, what was warned of, and pods to own things."""

    ledger: Ledger
    index: Index
    warnings: list[str] = field(default_factory=list)

    def open(self) -> Any:
        return filtering(warn=self.warnings.append, index=self.index)

    def call(self, function: Callable[[Table], Any]) -> Any:
        with self.open() as table:
            return function(table)

    def pod(self, container: str = "pod", network: str = NETWORK, ifname: str = "eth0") -> Owner:
        """An owner whose namespace lives until `kill`."""
        space = self.ledger.netns()
        with Netns.open(space.path) as opened:
            attachment = Attachment(network=network, container=container, ifname=ifname)
            return Owner.of(attachment, opened)

    def kill(self, owner: Owner) -> None:
        """End the owner's namespace, as a reboot or a lost sandbox does."""
        run(["umount", owner.netns_path]).ok()
        Path(owner.netns_path).unlink()

    def nft(self, *arguments: str, stdin: bytes = b"") -> str:
        return run(["nft", *arguments], stdin=stdin).ok().text

    def elements(self, name: str) -> list[str]:
        """The elements of a set as nft lists them, comments left out."""
        listed = run(["nft", "-j", "list", "set", "inet", layout.TABLE, name])
        if listed.code:
            listed = run(["nft", "-j", "list", "map", "inet", layout.TABLE, name]).ok()
        (found,) = (item for item in listed.json()["nftables"] if "set" in item or "map" in item)
        return sorted(str(_plain(item)) for item in next(iter(found.values())).get("elem", []))

    def files(self) -> list[str]:
        """All that is on disk, locks apart."""
        root = Path(self.index.directory)
        found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())
        return sorted(name for name in found if not name.endswith(".lock"))


@pytest.fixture
def node(ledger: Ledger, directory: Path) -> Iterator[Node]:
    ledger.table("inet", layout.TABLE)
    yield Node(ledger, Index(str(directory / "cni")))


def _plain(item: Any) -> Any:
    if isinstance(item, dict):
        if "elem" in item:
            return _plain(item["elem"]["val"])
        return ".".join(map(str, item["concat"])) if "concat" in item else item
    return [_plain(part) for part in item] if isinstance(item, list) else item


def nets(*texts: str) -> list[Net]:
    return [Net.parse(text) for text in texts]


def tcp(host_port: int, container_port: int = 80, host_ip: str = "") -> Mapping:
    return mapping("tcp", host_port, container_port, host_ip)


def mapping(protocol: str, host_port: int, container_port: int, host_ip: str = "") -> Mapping:
    ip = Ip.parse(host_ip) if host_ip else None
    return Mapping(protocol=protocol, host_port=host_port, container_port=container_port, host_ip=ip)
