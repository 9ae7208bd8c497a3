"""Whether the host forwards at all what nodeplug translates, as far as nf_tables shows it."""

from __future__ import annotations

from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeplug.kernel.netlink import Netlink

_FIREWALL = "CNI-FORWARD"
_TABLES = {4: (IPV4, "ip"), 6: (IPV6, "ip6")}


def dropped(netlink: Netlink, families: Iterable[int]) -> str:
    """A sentence for the log when iptables' FORWARD chain drops by default in one of the families (4, 6), else "".

    Rules of that chain may let a pod's traffic pass all the same; no rule of another table can. Where the plugin
    `firewall` has a chain of its own, it adds them for each pod, and nothing is said. What iptables-legacy has is not
    seen. Raises `NetlinkError`.
    """
    for family in families:
        number, name = _TABLES[family]
        chain = messages.chain(netlink, number, "filter", "FORWARD")
        if chain is None or chain.policy != messages.POLICY_DROP:
            continue
        if messages.chain(netlink, number, "filter", _FIREWALL) is None:
            return (
                f"the chain FORWARD of the nft table {name} filter drops by default, so traffic from and to pods "
                "passes only where a rule there accepts it; the CNI plugin firewall, next in the chain, adds such rules"
            )
    return ""
