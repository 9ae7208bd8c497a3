"""Pairs of virtual Ethernet links whose far end is made straight in another namespace."""

from __future__ import annotations

from nodeplug.kernel.attributes import attr_u32, nest
from nodeplug.kernel.rtnl import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.netlink import Message
    from nodeplug.kernel.netns import Netns

_VETH_INFO_PEER = 1
_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_ONE_QUEUE = attr_u32(_IFLA_NUM_TX_QUEUES, 1) + attr_u32(_IFLA_NUM_RX_QUEUES, 1)


def add(
    name: str,
    peer: str,
    *,
    peer_netns: Netns | None = None,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    master: int | None = None,
    group: int | None = None,
    txqlen: int | None = None,
    peer_mac: bytes | None = None,
    peer_mtu: int | None = None,
    peer_txqlen: int | None = None,
) -> Message:
    """Add the pair `name` here and `peer` in `peer_netns`, either of which may be taken already (EEXIST).

    `up` is for this end: the kernel refuses a far end that is up before its pair is complete. `peer_mtu` is `mtu` when
    not given. `links.query(name)` in the same request tells this end's index and, as `parent`, the far end's.

    Each end has one queue each way. It would have without a word, after the kernel has made one for each CPU there
    could be, entries in /sys and all, and taken the others away again: on two CPUs a third of the time a pair takes.
    """
    far = links.description(
        name=peer,
        mac=peer_mac,
        mtu=mtu if peer_mtu is None else peer_mtu,
        txqlen=peer_txqlen,
        netns=peer_netns,
    )
    message = links.add(
        name,
        "veth",
        data=nest(_VETH_INFO_PEER, far, _ONE_QUEUE),
        up=up,
        mtu=mtu,
        mac=mac,
        master=master,
        group=group,
        txqlen=txqlen,
    )
    message.payload += _ONE_QUEUE
    message.subject = f"{name} with {peer} in {peer_netns.path}" if peer_netns else f"{name} with {peer}"
    return message
