"""A trust domain for tests: its operator's directory, nodes that were given authorities, and their credentials."""

from __future__ import annotations

import time
from pathlib import Path

from nodeplug.volumes.identity import node
from nodeplug.volumes.identity.issuing import Ask, issue
from nodeplug.volumes.identity.layouts import Credential
from nodeplug.volumes.identity.operator import Operator
from nodeplug.volumes.identity.store import Store

DOMAIN = "example.org"
HOUR = 3600
DAY = 24 * HOUR


class Domain:
    """The operator of a trust domain, with a clock that stands still until it is moved."""

    def __init__(self, directory: Path, name: str = DOMAIN, *, constrained: bool = True) -> None:
        self.directory = directory
        self.name = name
        self.now = int(time.time())
        self.operator = Operator(str(directory / "root"))
        self.operator.init(name, now=self.now, days=3650, key_type="ECDSAP256", constrained=constrained)

    def node(self, name: str, *, days: int = 90) -> Store:
        """A node with an authority under the root that is active."""
        store = Store(str(self.directory / name))
        self.accept(store, name, days=days)
        return store

    def accept(self, store: Store, name: str = "node", *, days: int = 90) -> None:
        asked = node.request(store, name=name, key_type="ECDSAP256")
        signed = self.operator.sign(asked, now=self.now, days=days)
        node.accept(store, signed.pem.encode(), now=self.now, overlap=DAY)

    def roots(self) -> bytes:
        return "".join(self.operator.load().bundle).encode()

    def credential(self, store: Store, name: str = "/ns/shop/sa/web", **changes: object) -> Credential:
        ask = Ask(name=f"spiffe://{self.name}{name}", ttl=HOUR, key_type="ECDSAP256").replace(**changes)
        return issue(store, ask, now=self.now, log=str(self.directory / "issued.jsonl"))


def written(credential: Credential, directory: Path) -> tuple[Path, Path, Path]:
    """Key, chain and roots as files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "key.pem", directory / "chain.pem", directory / "roots.pem"
    for path, content in zip(
        paths, (credential.private_key.reveal(), credential.chain.encode(), credential.roots.encode()), strict=True
    ):
        path.write_bytes(content)
    return paths
