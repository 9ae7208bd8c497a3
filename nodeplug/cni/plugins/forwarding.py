"""The host forwards what its pods send and receive: switched on where a pod's gateway is, and said where it is dropped.

Shared by the plugins whose pods are routed by the host.
"""

from __future__ import annotations

import time

from nodeplug.core import company
from nodeplug.core.errors import doing
from nodeplug.kernel import sysctl
from nodeplug.kernel.netlink import netfilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_FRESH = 10
"""Seconds for which it is known what the host's own rules do: their owner does not change them for each pod."""
_SWITCHES = {4: ("net", "ipv4", "ip_forward"), 6: ("net", "ipv6", "conf", "all", "forwarding")}


def enable(families: Iterable[int]) -> None:
    """Switch forwarding on for these families, 4 and 6; what is on is left alone and needs no right to write."""
    for family in families:
        with doing(f"cannot switch forwarding of IPv{family} on"):
            sysctl.ensure("1", *_SWITCHES[family])


def warn_where_dropped(families: Collection[int], warn: Callable[[str], None]) -> None:
    """Tell of a host whose own rules drop by default what it is to forward. No fault of an ADD, which goes on."""
    now = int(time.monotonic()) // _FRESH
    sentence = company.present().recall((_dropped, *sorted(families), now), lambda: _dropped(families))
    if sentence:
        warn(sentence)


def _dropped(families: Collection[int]) -> str:
    from nodeplug.cni.filter.forward import dropped

    try:
        with company.present().lend(netfilter) as netlink:
            return dropped(netlink, families)
    except OSError:
        return ""  # no nf_tables, so nothing of it drops
