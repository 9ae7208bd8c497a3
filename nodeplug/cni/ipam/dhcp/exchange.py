"""One attempt to be granted an address or a longer time: what a client says when, and what an answer means (RFC 2131).

No sockets and no clock: `talk` moves the messages, tests hand them over. Everything that is not an answer to this very
attempt is passed over: wrong transaction, wrong client, wrong server, an address that is none.
"""

from __future__ import annotations

import os

from nodeplug.cni.ipam.dhcp import message
from nodeplug.cni.ipam.dhcp.message import ACK, DISCOVER, NAK, OFFER, REQUEST, Message
from nodeplug.core.inet import Ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.ipam.dhcp.lease import Client

SELECTING, REQUESTING, RENEWING, REBINDING = "selecting", "requesting", "renewing", "rebinding"
_PAUSES = (0.1, 0.4, 1.0, 2.0, 4.0, 8.0)
"""Seconds between messages, the last one from there on. The RFC begins with 4. But a pod waits, its first message may
be lost in a bridge that has not seen its link come up, and no server minds a few more of one transaction."""
_AFTER_REFUSAL = 1.0
_REQUESTS = 4  # of one offer, before other offers are asked for
_LARGEST_MESSAGE = (1472).to_bytes(2, "big")
_MOST_TEXT = 200


class Granted:
    """A server's acknowledgement of a request first made at `asked`; `station` is where it came from."""

    __slots__ = ("ack", "asked", "station")

    def __init__(self, ack: Message, station: bytes, asked: float) -> None:
        self.ack = ack
        self.station = station
        self.asked = asked


class Exchange:
    """From `begin`, in seconds of any clock, until `end`.

    `state` is SELECTING for an address, RENEWING for a longer time by `server`, REBINDING by any server. `address` is
    the one that is held, and in SELECTING one that was held once. `offered` hears of the offer that is to be taken,
    before it is.
    """

    def __init__(
        self,
        client: Client,
        *,
        state: str,
        begin: float,
        end: float,
        address: Ip | None = None,
        server: Ip | None = None,
        offered: Callable[[Ip, Ip, bytes], object] = lambda _address, _server, _station: None,
    ) -> None:
        self.granted: Granted | None = None
        self.refused = ""
        """What a server said that refused; in RENEWING and REBINDING the address must not be used any more."""
        self.heard = 0
        """Messages that were answers, if only refusals."""
        self._client = client
        self._state = state
        self._begin = begin
        self._end = end
        self._address = address
        self._server = b"" if server is None else server.packed
        self._offered = offered
        self._xid = _random()
        self._sent = 0
        self._asked = begin
        self._due = begin

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it, apart from `end`."""
        return self.granted is not None or bool(self.refused and self._state in (RENEWING, REBINDING))

    @property
    def due(self) -> float:
        """When something is to be said, or it ends."""
        return min(self._due, self._end)

    @property
    def end(self) -> float:
        return self._end

    def say(self, now: float) -> bytes:
        """The message that is due."""
        if self._state == REQUESTING and self._sent >= _REQUESTS:
            self._start_again(now, known=True)
        if self._sent == 0:
            self._asked = now
        # Only the first question can be lost that way.
        pause = _PAUSES[min(self._sent + (self._state != SELECTING), len(_PAUSES) - 1)]
        self._due = now + pause * (0.75 + os.urandom(1)[0] / 512)
        self._sent += 1
        return message.build(self._message(now))

    def hear(self, data: Message, station: bytes, now: float) -> None:
        """What a server said, whoever it was meant for; `station` is where it came from."""
        client = self._client
        if self.over or not data.reply or data.xid != self._xid or data.client != client.mac:
            return
        if data.type == OFFER:
            self._hear_offer(data, station, now)
        elif data.type == ACK:
            self._hear_ack(data, station)
        elif data.type == NAK:
            self._hear_nak(data, now)

    def _hear_offer(self, data: Message, station: bytes, now: float) -> None:
        if self._state != SELECTING or not data.server or not _is_usable(data.yiaddr):
            return
        self.heard += 1
        self._address, self._server = Ip(packed=data.yiaddr), data.server
        self._offered(self._address, Ip(packed=data.server), station)
        self._state = REQUESTING
        self._sent = 0
        self._due = now

    def _hear_ack(self, data: Message, station: bytes) -> None:
        if self._state == SELECTING or not _is_usable(data.yiaddr):
            return
        if self._address is None or data.yiaddr != self._address.packed:
            return
        if self._state != REBINDING and data.server not in (b"", self._server):
            return
        # A lease of no time at all would be over before it is used.
        if not int.from_bytes(data.options.get(message.LEASE_TIME, b"\1"), "big"):
            return
        self.heard += 1
        self.granted = Granted(data, station, self._asked)

    def _hear_nak(self, data: Message, now: float) -> None:
        if self._state == SELECTING:
            return
        if self._state != REBINDING and data.server not in (b"", self._server):
            return
        self.heard += 1
        text = data.options.get(message.TEXT, b"")[:_MOST_TEXT].decode("utf-8", "replace")
        self.refused = "".join(c if c.isprintable() else "?" for c in text).strip() or "without a reason"
        if self._state == REQUESTING:
            self._start_again(now, known=False)
            self._due = now + _AFTER_REFUSAL

    def _start_again(self, now: float, *, known: bool) -> None:
        """Ask for offers once more; not for the address that was refused."""
        self._state = SELECTING
        self._xid = _random()
        self._sent = 0
        self._due = now
        self._server = b""
        if not known:
            self._address = None

    def _message(self, now: float) -> Message:
        holding = self._state in (RENEWING, REBINDING)
        found = {message.TYPE: bytes((DISCOVER if self._state == SELECTING else REQUEST,))}
        found[message.CLIENT_ID] = self._client.id
        if self._address is not None and not holding:
            found[message.REQUESTED_ADDRESS] = self._address.packed
        if self._state == REQUESTING:
            found[message.SERVER] = self._server
        found[message.LARGEST_MESSAGE] = _LARGEST_MESSAGE
        if self._client.request:
            found[message.REQUEST_LIST] = bytes(self._client.request)
        found.update(self._client.provide)
        return Message(
            reply=False,
            xid=self._xid,
            client=self._client.mac,
            seconds=max(0, int(now - self._begin)),
            # Whoever holds an address hears what is sent to it.
            broadcast=self._client.broadcast and not holding,
            ciaddr=self._address.packed if holding and self._address is not None else bytes(4),
            options=found,
        )


def release(client: Client, address: Ip, server: Ip) -> bytes:
    """The message that gives an address back; nobody answers it."""
    found = {
        message.TYPE: bytes((message.RELEASE,)),
        message.SERVER: server.packed,
        message.CLIENT_ID: client.provide.get(message.CLIENT_ID, client.id),
    }
    return message.build(
        Message(
            reply=False,
            xid=_random(),
            client=client.mac,
            ciaddr=address.packed,
            options=found,
        )
    )


def _random() -> int:
    return int.from_bytes(os.urandom(4), "big")


def _is_usable(address: bytes) -> bool:
    """Whether a host may have it."""
    ip = Ip(packed=address)
    return not ip.is_unspecified and not ip.is_loopback and address[0] < 224
