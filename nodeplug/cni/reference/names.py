"""How the reference plugins call what they make. Pure.

Old and new versions differ in where they put their rules: iptables' tables of either kind, or nft tables of their own.
"""

from __future__ import annotations

from nodeplug.core.naming import sha512_hex

NAT = "nat"
FILTER = "filter"

PREFIX = b"CNI-"
"""All their chains of iptables begin so; in x_tables a name stands once, at its chain's head."""

ENTRIES = {"DN-": "CNI-HOSTPORT-DNAT", "SN-": "CNI-HOSTPORT-SNAT"}
"""The chains that lead to those of single pods, by what these are called. The second is of versions before 0.7."""
SHARED = frozenset({*ENTRIES.values(), "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"})
"""Of all pods with host ports; they stay, as the reference leaves them, and do nothing by themselves."""

FORWARD = "CNI-FORWARD"
STAGES = ("CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2")

MASQUERADE_TABLE, MASQUERADE_CHAIN = "cni_plugins_masquerade", "masq_checks"
PORTS_TABLE, PORTS_CHAINS = "cni_hostport", ("hostports", "hostip_hostports", "masquerading")
GUARD = "cni-br-iface-"
IFB = "bwp"

_LONGEST_CHAIN = 28
_LONGEST_LINK = 15


def chain(network: str, container: str, kind: str = "") -> str:
    """A pod's chain of iptables: that of its masquerade, or one of `ENTRIES`. It knows no ifname."""
    return f"CNI-{kind}{sha512_hex(network + container)}"[:_LONGEST_CHAIN]


def is_masquerade_chain(name: str) -> bool:
    digits = name.removeprefix("CNI-")
    return len(name) == _LONGEST_CHAIN and name != digits and all(c in "0123456789abcdef" for c in digits)


def masquerade_comment(network: str, container: str) -> str:
    return f'{masquerade_comments(network)}{container}"'


def masquerade_comments(network: str) -> str:
    """What the comments of the network's rules begin with."""
    return f'name: "{network}" id: "'


def ports_comment(network: str, container: str) -> str:
    return f'{ports_comments(network)}{container}"'


def ports_comments(network: str) -> str:
    return f'dnat name: "{network}" id: "'


def network_mark(network: str) -> str:
    """What the comments of the network's rules in `MASQUERADE_TABLE` begin with."""
    return sha512_hex(network)[:16] + "-"


def mark(network: str, container: str, ifname: str) -> str:
    """What those of one attachment begin with."""
    return network_mark(network) + sha512_hex(f"{ifname}:{container}")[:16]


def guard(container: str, ifname: str) -> str:
    """The chain of the table bridge nat that keeps a pod to its MAC address; a second one ends with `-mac`."""
    return f"{GUARD}{container}-{ifname}"


def ifb(network: str, container: str) -> str:
    """The IFB of the reference's bandwidth, which knows no ifname."""
    return f"{IFB}{sha512_hex(network + container)}"[:_LONGEST_LINK]


def is_ifb(name: str) -> bool:
    return len(name) == _LONGEST_LINK and name.startswith(IFB)
