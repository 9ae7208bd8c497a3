"""What the reference plugin's bridge left in nf_tables for an attachment that this one deletes.

A node that changes from one to the other has pods of the other for a while. Their rules are found by the names the
reference derives: iptables chains (as iptables-nft has them; those of iptables-legacy are not seen), its nft table, its
chains against spoofing. Loaded only for a DEL that has nothing of ours to remove.
"""

from __future__ import annotations

import errno

from nodeplug.core import company
from nodeplug.core.errors import doing
from nodeplug.kernel.attributes import attrs, text
from nodeplug.kernel.netlink import NetlinkError, netfilter
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import BRIDGE, INET, IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import Attachment
    from nodeplug.kernel.netlink import Message, Netlink
    from nodeplug.kernel.nft.messages import Rule

_NFT_TABLE = "cni_plugins_masquerade"
_NFT_CHAIN = "masq_checks"
_IMMEDIATE_DATA = 2
_DATA_VERDICT = 2
_VERDICT_CHAIN = 2


def remove_rules(attachment: Attachment) -> None:
    """Remove them in one transaction; none there is success."""
    from hashlib import sha512

    def digest(words: str, length: int) -> str:
        return sha512(words.encode()).hexdigest()[:length]

    masquerade = "CNI-" + digest(attachment.network + attachment.container, 24)
    spoofing = f"cni-br-iface-{attachment.container}-{attachment.ifname}"
    comment = f"{digest(attachment.network, 16)}-{digest(f'{attachment.ifname}:{attachment.container}', 16)}"
    with (
        doing(f"cannot remove the reference plugin's rules for {attachment}"),
        company.present().lend(netfilter) as netlink,
    ):
        if not _has_nf_tables(netlink):
            return
        change = [
            *_chains(netlink, IPV4, "POSTROUTING", masquerade),
            *_chains(netlink, IPV6, "POSTROUTING", masquerade),
            *_chains(netlink, BRIDGE, "PREROUTING", spoofing, f"{spoofing}-mac"),
        ]
        for rule in messages.rules(netlink, INET, _NFT_TABLE, _NFT_CHAIN):
            if rule.comment.startswith(comment):
                change.append(messages.delete_rule(INET, _NFT_TABLE, _NFT_CHAIN, rule.handle))
        if change:
            messages.commit(netlink, change)


def _has_nf_tables(netlink: Netlink) -> bool:
    """False on a kernel without it, where the reference's rules are those of iptables-legacy."""
    try:
        messages.generation(netlink)
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _chains(netlink: Netlink, family: int, base: str, *names: str) -> list[Message]:
    """Messages that delete the chains `names` of the table nat, and the rules of `base` that jump to the first."""
    there = [name for name in names if messages.chain(netlink, family, "nat", name) is not None]
    if not there:
        return []
    jumps = [rule for rule in messages.rules(netlink, family, "nat", base) if _target(rule) == names[0]]
    return [
        *[messages.delete_rule(family, "nat", base, rule.handle) for rule in jumps],
        *[messages.delete_rule(family, "nat", name) for name in there],
        *[messages.delete_chain(family, "nat", name) for name in there],
    ]


def _target(rule: Rule) -> str:
    """The chain that the rule jumps to; empty when it ends otherwise."""
    for expression in rule.expressions:
        if expression.name == "immediate":
            data = attrs(dict(expression.attributes).get(_IMMEDIATE_DATA, b""))
            return text(attrs(data.get(_DATA_VERDICT, b"")).get(_VERDICT_CHAIN))
    return ""
