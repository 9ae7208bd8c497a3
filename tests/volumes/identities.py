"""A node that gives identities: an authority of its own, a service, and pods' volumes; its chore called by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from nodeplug.core import document
from nodeplug.volumes.contract import Pod, Request
from nodeplug.volumes.identity import node, notes
from nodeplug.volumes.identity.chore import IdentityChore
from nodeplug.volumes.identity.store import Store
from nodeplug.volumes.policy import Policy
from nodeplug.volumes.service import Service, implementation
from nodeplug.worker.keeper import Turn
from tests.ledger import Ledger
from tests.volumes.authorities import DAY, DOMAIN, Domain

WEB = Pod(namespace="shop", name="web-0", uid="0b7c2f7e-9a41-4c3e-8f5d-2f4b6a1c9d10", service_account="web")
DB = Pod(namespace="shop", name="db-0", uid="5d1e9c52-2f0a-4b8e-bb63-7f1f0e6c4a21", service_account="db")


class Node:
    """Its authority is `store`: alone, or under the root of `domain`."""

    def __init__(self, ledger: Ledger, domain: Domain | None = None, *, name: str = "node", **limits: object) -> None:
        self.top = ledger.directory()
        ledger.adopt("notes and states", self._forget)
        self.settings: dict[str, Any] = {
            "volumes": {
                "allow": [{"driver": "identity", "namespaces": ["*"]}],
                "identity": {
                    "directory": str(self.top / "ca"),
                    "log": str(self.top / "issued.jsonl"),
                    **limits,
                },
            }
        }
        self.policy = document.decode(Policy, self.settings["volumes"])
        self.store = Store(str(self.top / "ca"))
        self.now = int(time.time())
        if domain is None:
            node.init(self.store, DOMAIN, now=self.now, root_days=3650, node_days=30, constrained=True)
        else:
            asked = node.request(self.store, name=name, key_type="ECDSAP256")
            signed = domain.operator.sign(asked, now=domain.now, days=90)
            node.accept(self.store, signed.pem.encode(), now=domain.now, overlap=DAY)
        self.warnings: list[str] = []
        self.service = Service(self.policy, warn=self.warnings.append)
        self.said: list[str] = []

    def _forget(self) -> None:
        for target in [*self.top.glob("pods/*/volumes/*/*")]:
            self.service.unpublish(str(target))
        self.service.collect(apply=True)

    def target(self, pod: Pod = WEB, volume: str = "identity") -> Path:
        path = self.top / "pods" / pod.uid / "volumes" / "nodeplug.dev~identity" / volume
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        return path

    def request(
        self, pod: Pod = WEB, *, volume: str = "identity", fs_group: int | None = None, **options: str
    ) -> Request:
        return Request(
            driver="identity",
            volume=volume,
            target=str(self.target(pod, volume)),
            options=document.decode(implementation("identity").options, options),
            pod=pod,
            fs_group=fs_group,
        )

    def publish(self, pod: Pod = WEB, *, fs_group: int | None = None, **options: str) -> Path:
        """A pod's volume; where it is seen."""
        request = self.request(pod, fs_group=fs_group, **options)
        self.service.publish(request)
        return Path(request.target)

    def note(self, pod: Pod = WEB) -> notes.Note:
        found = notes.read(self.request(pod).id)
        assert found is not None
        return found

    def turn(self, *, after: float = 0.0) -> tuple[float | None, dict[str, str]]:
        """One run of a new chore, `after` seconds from now: when it wants to run again, and what is in trouble."""
        stop = os.eventfd(0)
        try:
            turn = self.ready(stop, after=after)
            return IdentityChore(self.settings).run(turn), turn.troubles
        finally:
            os.close(stop)

    def ready(self, stop: int, *, after: float = 0.0) -> Turn:
        """A turn that is still to be taken."""
        turn = Turn(stop, lambda sentence, **_more: self.said.append(sentence))
        turn.now = self.now + after
        return turn
