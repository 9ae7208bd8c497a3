"""firewall's configuration: every key of the reference plugin."""

from __future__ import annotations

from nodeplug.cni.contract import NetConf
from nodeplug.core.document import Wrong, choice, expects, text
from nodeplug.core.record import key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nodeplug.core.document import Place

IPTABLES = "iptables"
FIREWALLD = "firewalld"

OPEN = "open"
SAME_BRIDGE = "same-bridge"
ISOLATED = "isolated"

_LONGEST_CHAIN = 28
"""iptables' XT_EXTENSION_MAXNAMELEN less one."""


@expects("the name of a chain of iptables")
def chain_name(value: Any, at: Place) -> str:
    """It is written into what iptables-restore reads, so nothing but a name may be in it."""
    name = text(value, at)
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_CHAIN:
        raise Wrong(f"{name!r} cannot be the name of a chain: it is longer than {_LONGEST_CHAIN} bytes")
    if name[:1] in ("-", "!") or not all(c.isascii() and (c.isalnum() or c in "_.-:+") for c in name):
        raise Wrong(f"{name!r} cannot be the name of a chain: letters, digits and _ . - : + can, not - first")
    return name


class FirewallConf(NetConf):
    backend: str = key(
        choice("", IPTABLES, FIREWALLD),
        default="",
        help="`firewalld` puts the pod's addresses into a zone as well; nothing means so where firewalld runs",
    )
    iptables_admin_chain_name: str = key(
        chain_name,
        default="",
        name="iptablesAdminChainName",
        help="the administrator's chain, asked before ours accepts; nothing means `CNI-ADMIN`, where ours is needed",
    )
    firewalld_zone: str = key(
        text, default="", name="firewalldZone", help="the zone for the pod's addresses; nothing means `trusted`"
    )
    ingress_policy: str = key(
        choice("", OPEN, SAME_BRIDGE, ISOLATED),
        default="",
        name="ingressPolicy",
        help="who may open connections to the pod: all (`open`, and nothing), of the pods those on its bridge, or none",
    )

    @property
    def zone(self) -> str:
        return self.firewalld_zone or "trusted"

    @property
    def guarded(self) -> bool:
        """Whether other pods may not simply reach it."""
        return self.ingress_policy in (SAME_BRIDGE, ISOLATED)
