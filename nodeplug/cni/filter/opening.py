"""Letting marked packets through the chains that `gates` finds closed: a fixed number of rules, once on a node.

iptables' chains are changed by iptables itself, in one transaction of iptables-restore, so that it can print and load
what is there: a jump from FORWARD to CNI-FORWARD, and there one to the administrator's chain and one rule for the mark.
Somebody's own chain gets the rule for the mark at its end, or before the rule that drops everything: what his other
rules drop stays dropped.
"""

from __future__ import annotations

import errno

from nodeplug.cni.filter import gates, iptables
from nodeplug.cni.filter.gates import ADMIN, CHAIN, IPTABLES_LEGACY, NFT
from nodeplug.cni.filter.passage import MARK, has_mark
from nodeplug.core.errors import Error, TryAgain
from nodeplug.kernel.netlink import NetlinkError
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft import messages
from nodeplug.kernel.nft.wire import INET, IPV4, IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from nodeplug.cni.filter.gates import Gate
    from nodeplug.kernel.netlink import Netlink

COMMENT = "nodeplug: what pods send and get"

_NUMBERS = {4: IPV4, 6: IPV6, 0: INET}


def open_all(
    netlink: Netlink,
    families: Iterable[int],
    *,
    admin: str,
    lock: AbstractContextManager[None],
    warn: Callable[[str], None],
) -> None:
    """Open what is closed, looked at anew under `lock`; `admin` as for `gates.find`. Warns of what cannot be opened.

    Raises OSError, and `TryAgain` while somebody else holds the lock of iptables.
    """
    families = tuple(families)
    with lock:
        for gate in gates.find(netlink, families, admin=admin):
            if gate.is_open:
                continue
            reason = gate.obstacle or _open(netlink, gate, admin or ADMIN)
            if reason:
                warn(f"{gate} drops what pods send and get, and cannot be opened: {reason}")


def _open(netlink: Netlink, gate: Gate, admin: str) -> str:
    """Open one; why not, or nothing."""
    if gate.backend == NFT:
        return _insert(netlink, gate)
    try:
        iptables.restore(_kind(gate), gate.family, script(gate, admin))
    except TryAgain:
        raise
    except Error as error:
        # nf_tables takes the rule from us as well, in the form that iptables reads; x_tables does not.
        reason = "" if gate.backend == IPTABLES_LEGACY else _insert(netlink, gate)
        return str(error) if gate.backend == IPTABLES_LEGACY else reason
    return ""


def script(gate: Gate, admin: str) -> str:
    """What iptables-restore is to add, beside what is there."""
    lines = [f"*{gate.table}"]
    # A chain that is named here is emptied: only those that are missing are.
    if "chain" in gate.lacks:
        lines.append(f":{CHAIN} - [0:0]")
    if "admin chain" in gate.lacks:
        lines.append(f":{admin} - [0:0]")
    if "admin jump" in gate.lacks:
        lines.append(f'-I {CHAIN} 1 -m comment --comment "CNI firewall plugin admin overrides" -j {admin}')
    if "accept" in gate.lacks:
        lines.append(f'-A {CHAIN} -m mark --mark {MARK:#x}/{MARK:#x} -m comment --comment "{COMMENT}" -j ACCEPT')
    if "jump" in gate.lacks:
        lines.append(f'-I FORWARD 1 -m comment --comment "CNI firewall plugin rules" -j {CHAIN}')
    return "\n".join((*lines, "COMMIT", ""))


def lacking(gate: Gate) -> str:
    """What is missing on the node for opening the gate; empty when nothing is. nf_tables itself is always there."""
    if gate.backend != IPTABLES_LEGACY:
        return ""
    try:
        iptables.program(_kind(gate), gate.family, "restore")
    except Error as error:
        return str(error)
    return ""


def _kind(gate: Gate) -> str:
    return iptables.LEGACY if gate.backend == IPTABLES_LEGACY else iptables.NFT


def _insert(netlink: Netlink, gate: Gate) -> str:
    """Add the rule for the mark to a chain of nf_tables; why not, or nothing."""
    number = _NUMBERS[gate.family]
    parts = (*has_mark(), x.counter(), x.verdict(x.ACCEPT))
    if gate.before is not None:
        change = messages.insert_rule(number, gate.table, gate.chain, *parts, before=gate.before, comment=COMMENT)
    elif gate.backend == NFT:
        change = messages.add_rule(number, gate.table, gate.chain, *parts, comment=COMMENT)
    else:
        change = messages.insert_rule(number, gate.table, gate.chain, *parts, comment=COMMENT)
    try:
        messages.commit(netlink, [change])
    except NetlinkError as error:
        if error.errno in (errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP):
            return str(error)
        raise
    return ""
