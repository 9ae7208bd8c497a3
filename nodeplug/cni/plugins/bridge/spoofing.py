"""`macspoofchk`: a pod's port takes only frames that carry the pod's own MAC address.

An nft table of the bridge family, with one rule whatever the number of pods: a port that is `guarded` may send what is
in `allowed`, the pair of port and address. A file by identity says which address, so DEL needs nothing else and GC
finds what is left; it is written before the table changes and removed after. Who finds the table missing makes it
again for all files. Loaded only where a configuration, or a file, asks for it.
"""

from __future__ import annotations

import errno
import os

from nodeplug.cni.contract import Attachment
from nodeplug.cni.plugins.bridge.ports import GUARDS, is_guarded
from nodeplug.core import company, files
from nodeplug.core.errors import Refused, TryAgain, doing
from nodeplug.core.record import Record
from nodeplug.kernel.netlink import NetlinkError, netfilter
from nodeplug.kernel.nft import elements, expressions, messages
from nodeplug.kernel.nft.elements import Element
from nodeplug.kernel.nft.wire import BRIDGE, IFNAME, Field, concat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nodeplug.kernel.netlink import Message, Netlink

TABLE = "nodeplug"
GUARDED = "guarded"
ALLOWED = "allowed"
CHAIN = "macspoofchk"

_ETHER_ADDR = Field(name="ether_addr", number=9, size=6)
_BEFORE_ALL = -300
_SOURCE = 6  # offset of the sender's address in an Ethernet header
_ATTEMPTS = 8
_LARGEST = 4096
_WHAT = f"cannot change the nft table bridge {TABLE}"
_HINTS = {errno.EPERM: "it needs CAP_NET_ADMIN", errno.EOPNOTSUPP: "macspoofchk needs CONFIG_NF_TABLES_BRIDGE"}


class Guard(Record):
    """One pod's port, which is named by the attachment's identity, and the address it may send from."""

    attachment: Attachment
    mac: bytes

    @property
    def port(self) -> bytes:
        """The port's name as the kernel compares it: 16 bytes."""
        return self.attachment.identity.encode().ljust(16, b"\0")


def add(attachment: Attachment, mac: bytes) -> None:
    """Guard the port. Raises `Unavailable` where the kernel cannot."""
    guard = Guard(attachment=attachment, mac=mac)
    with doing(_WHAT, hints=_HINTS), company.present().lend(netfilter) as netlink:
        if is_guarded(attachment.identity):
            _remove(netlink, attachment.identity)  # of an ADD that was killed, with another address
        _write(guard)
        refused = messages.attempt(netlink, _elements([guard]))
        if any(error.errno == errno.ENOENT for error in refused):
            _make(netlink)
        elif refused:
            raise refused[0]


def remove(attachment: Attachment) -> None:
    """Guard the port no longer; no matter whether it was."""
    if is_guarded(attachment.identity):
        with doing(_WHAT, hints=_HINTS), company.present().lend(netfilter) as netlink:
            _remove(netlink, attachment.identity)


def guarded() -> list[Attachment]:
    """The attachments whose ports are guarded."""
    return [guard.attachment for guard in _all()]


def check(attachment: Attachment) -> None:
    """Raise `Refused` when the pod could send from another address."""
    guard = _read(attachment.identity)
    with doing(f"cannot read the nft table bridge {TABLE}", hints=_HINTS), company.present().lend(netfilter) as netlink:
        keys = [] if guard is None else [(TABLE, GUARDED, guard.port), (TABLE, ALLOWED, _pair(guard))]
        found = elements.get_elements(netlink, BRIDGE, keys)
        rules = messages.rules(netlink, BRIDGE, TABLE, CHAIN)
    if not found or None in found or not rules:
        raise Refused(
            f"the pod on port {attachment.identity} may send from any MAC address: it is not in the nft table bridge"
            f" {TABLE}, or its rule is gone",
            hint="the next ADD of a pod with macspoofchk makes a missing table again; else delete the pod",
        )


def collect(network: str, valid: Collection[Attachment]) -> None:
    """Remove the guards of the network's ports that belong to no attachment of `valid`."""
    stale = [guard for guard in _all() if guard.attachment.network == network and guard.attachment not in valid]
    if stale:
        with doing(_WHAT, hints=_HINTS), company.present().lend(netfilter) as netlink:
            for guard in stale:
                _remove(netlink, guard.attachment.identity)


def _remove(netlink: Netlink, identity: str) -> None:
    guard = _read(identity)
    if guard is not None:
        # Not one transaction: each is to go even where the other has gone before.
        for key in ((GUARDED, guard.port), (ALLOWED, _pair(guard))):
            for error in messages.attempt(netlink, elements.delete_elements(BRIDGE, TABLE, key[0], [key[1]])):
                if error.errno != errno.ENOENT:
                    raise error
    files.remove(f"{GUARDS}/{identity}")


def _make(netlink: Netlink) -> None:
    """The table with what all files say, unless another call makes it meanwhile: then it is looked at again."""
    for _ in range(_ATTEMPTS):
        generation = messages.generation(netlink)
        change = [
            # The idiom of nft scripts: a table that is added first can be deleted whether it was there or not.
            messages.add_table(BRIDGE, TABLE),
            messages.delete_table(BRIDGE, TABLE),
            messages.add_table(BRIDGE, TABLE, comment="pods that may use only their own MAC address"),
            messages.add_set(BRIDGE, TABLE, GUARDED, (IFNAME,), number=1),
            messages.add_set(BRIDGE, TABLE, ALLOWED, (IFNAME, _ETHER_ADDR), number=2),
            messages.add_base_chain(
                BRIDGE, TABLE, CHAIN, type="filter", hook=messages.PREROUTING, priority=_BEFORE_ALL
            ),
            _rule(),
            *_elements(_all()),
        ]
        try:
            messages.commit(netlink, change, generation=generation)
        except NetlinkError as error:
            if error.errno == errno.ERESTART:
                continue
            raise
        return
    raise TryAgain(f"the nft ruleset kept changing while the table bridge {TABLE} was made")


def _rule() -> Message:
    """iifname @guarded iifname . ether saddr != @allowed drop"""
    return messages.add_rule(
        BRIDGE,
        TABLE,
        CHAIN,
        expressions.meta(expressions.META_IIFNAME),
        expressions.lookup(GUARDED),
        expressions.meta(expressions.META_IIFNAME),
        expressions.payload(expressions.LINK, _SOURCE, 6, expressions.R0 + 4),
        expressions.lookup(ALLOWED, inverted=True),
        expressions.verdict(expressions.DROP),
    )


def _elements(guards: Iterable[Guard]) -> list[Message]:
    guarded, allowed = [], []
    for guard in guards:
        comment = f"{guard.attachment}"
        guarded.append(Element(key=guard.port, comment=comment))
        allowed.append(Element(key=_pair(guard), comment=comment))
    # The pair first: a transaction is whole, but its elements take effect one after another.
    return [
        *elements.add_elements(BRIDGE, TABLE, ALLOWED, allowed),
        *elements.add_elements(BRIDGE, TABLE, GUARDED, guarded),
    ]


def _pair(guard: Guard) -> bytes:
    return concat(guard.port, guard.mac)


def _write(guard: Guard) -> None:
    files.ensure_directory(GUARDS, 0o700)
    files.create_whole(f"{GUARDS}/{guard.attachment.identity}", f"{guard.attachment}\n{guard.mac.hex(':')}\n".encode())


def _read(name: str) -> Guard | None:
    """What the file of that name says; None when there is none, or one that is not ours."""
    try:
        text, mac = files.read_bounded(f"{GUARDS}/{name}", _LARGEST).decode().split()
        network, container, ifname = text.split("/")
        guard = Guard(
            attachment=Attachment(network=network, container=container, ifname=ifname),
            mac=bytes.fromhex(mac.replace(":", "")),
        )
    except (FileNotFoundError, ValueError):
        return None
    return guard if guard.attachment.identity == name and len(guard.mac) == 6 else None


def _all() -> list[Guard]:
    try:
        names = os.listdir(GUARDS)
    except FileNotFoundError:
        return []
    return [guard for guard in map(_read, sorted(names)) if guard is not None]
