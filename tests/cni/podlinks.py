"""The plugins whose pods have a link made straight in their namespace, with configurations that work on a `Lan`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cni.pods import Network, host_local
from tests.ledger import Ledger
from tests.needs import needs

CONFIGS: dict[str, dict[str, Any]] = {
    "macvlan": {"master": "lan0"},
    "ipvlan": {"master": "lan0"},
    "vlan": {"master": "lan0", "vlanId": 100},
    "tap": {},
    "dummy": {},
}
KINDS = {"tap": "tun"}
"""The kernel's words, where they differ from the plugin's name."""

ANYWHERE = [
    pytest.param("macvlan", marks=needs("link:macvlan")),
    pytest.param("tap", marks=needs("file:/dev/net/tun")),
]
"""Those that most kernels have, by which what all have in common is shown in full."""
ELSEWHERE = [pytest.param(plugin, marks=needs(f"link:{plugin}")) for plugin in ("ipvlan", "vlan", "dummy")]


def network(ledger: Ledger, plugin: str, **config: Any) -> Network:
    """A network of that plugin; with a bridge in it, one of the pod's."""
    return Network(ledger, **{"type": plugin, **CONFIGS[plugin], "ipam": host_local(), **config})


def nth(plugin: str, number: int) -> dict[str, Any]:
    """What the n-th pod's configuration must have else: a master has each VLAN once."""
    return {"vlanId": 100 + number} if plugin == "vlan" else {}
