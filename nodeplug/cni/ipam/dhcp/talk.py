"""Moving the messages of one exchange, or of many at once, over sockets in the pods' namespaces.

A client without an address speaks over a packet socket. One that renews speaks over UDP as its server's peer, through
whatever routes and filters the pod has; one that nobody answered that way, past them again.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, SO_BINDTODEVICE, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket

from nodeplug.cni.ipam.dhcp import datagram, message
from nodeplug.cni.ipam.dhcp.lease import uptime
from nodeplug.core import company
from nodeplug.core.errors import Malformed
from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.packet import PacketSocket, udp_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from select import poll
    from typing import Protocol

    from nodeplug.cni.ipam.dhcp.exchange import Exchange
    from nodeplug.core.inet import Ip
    from nodeplug.kernel.netns import Netns

    class Line(Protocol):
        """A way to servers and back."""

        def fileno(self) -> int: ...

        def send(self, data: bytes) -> None: ...

        def receive(self) -> tuple[bytes, bytes] | None:
            """The next message and where it came from ("" unknown); None when there is none now."""

        def close(self) -> None: ...


_LARGEST = 64 * 1024
_IP_PKTINFO = 8
_MOST_AT_ONCE = 64  # messages read of one line before the others have their turn
# What a send says of a link or a network that is not there now but may come.
_PASSING = frozenset((errno.ENOBUFS, errno.EAGAIN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED))


class Broadcast:
    """To every station on the link of that name, from `source`; without one the client has no address."""

    def __init__(self, netns: Netns, link: str, *, source: Ip | None = None) -> None:
        self._source = datagram.NOBODY if source is None else source.packed
        self._socket = PacketSocket(link, netns=netns, accepted=udp_to(datagram.CLIENT_PORT))
        self._sink: socket | None = None
        if source is not None:
            try:
                self._sink = _udp(netns, link)
            except OSError:
                pass  # the pod's kernel tells the server that nobody listens, which does not

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.send(datagram.wrap(data, source=self._source))

    def send_to(self, server: Ip, station: bytes, data: bytes) -> None:
        """To a single server, which does not answer: by the station that its packets came from, which may be a relay,
        and by every station, for it may have another address since. The address that would ask for it is given up.
        """
        packet = datagram.wrap(data, source=self._source, destination=server.packed)
        if station:
            self._socket.send(packet, station)
        self._socket.send(packet)

    def receive(self) -> tuple[bytes, bytes] | None:
        while (packet := self._socket.receive()) is not None:
            found = datagram.unwrap(packet.data, sealed=packet.sealed)
            if found is not None:
                return found, packet.sender
        return None

    def close(self) -> None:
        # The kernel lets a packet socket go only once nobody looks at it any more: some ten milliseconds.
        with company.present().waiting():
            self._socket.close()
        if self._sink is not None:
            self._sink.close()


class Unicast:
    """To one server, from an address that the link has. Raises OSError(EADDRINUSE) when the pod has a client too."""

    def __init__(self, netns: Netns, link: str, *, source: Ip, server: Ip) -> None:
        self._server = (str(server), datagram.SERVER_PORT)
        self._source = [(0, _IP_PKTINFO, bytes(4) + source.packed + bytes(4))]
        self._socket = _udp(netns, link)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendmsg([data], self._source, 0, self._server)

    def receive(self) -> tuple[bytes, bytes] | None:
        try:
            data, sender = self._socket.recvfrom(_LARGEST)
        except (BlockingIOError, ConnectionRefusedError):
            return None
        return (data, b"") if sender[1] == datagram.SERVER_PORT else (b"", b"")

    def close(self) -> None:
        self._socket.close()


def _udp(netns: Netns, link: str) -> socket:
    """A socket for what is sent to clients on that link: to its addresses and, as refusals are, to everybody."""
    found = namespaces.inside(netns, lambda: socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC))
    try:
        found.setblocking(False)
        found.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, link.encode())
        found.bind(("0.0.0.0", datagram.CLIENT_PORT))
    except BaseException:
        found.close()
        raise
    return found


class Talk:
    """An exchange and the line it goes over; `failure` is what ended it before its time."""

    def __init__(self, exchange: Exchange, line: Line) -> None:
        self.exchange = exchange
        self.line = line
        self.failure: OSError | None = None

    @property
    def over(self) -> bool:
        return self.failure is not None or self.exchange.over or uptime() >= self.exchange.end

    def say_what_is_due(self) -> None:
        now = uptime()
        if self.over or now < self.exchange.due:
            return
        data = self.exchange.say(now)
        try:
            self.line.send(data)
        except OSError as error:
            if error.errno not in _PASSING:
                self.failure = error

    def hear_what_came(self) -> None:
        try:
            for _ in range(_MOST_AT_ONCE):
                found = self.line.receive()
                if found is None:
                    return
                try:
                    self.exchange.hear(message.parse(found[0]), found[1], uptime())
                except Malformed:
                    continue
        except OSError as error:
            self.failure = error


def converse(talks: Sequence[Talk], *, stop: int = -1) -> None:
    """Carry all of them through to their ends; no further once the descriptor `stop` becomes readable."""
    import select

    poll = select.poll()
    if stop >= 0:
        poll.register(stop, select.POLLIN)
    by_fd = {talk.line.fileno(): talk for talk in talks}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while True:
        for talk in by_fd.values():
            talk.say_what_is_due()
        for fd in [fd for fd, talk in by_fd.items() if talk.over]:
            del by_fd[fd]
            poll.unregister(fd)
        if not by_fd:
            return
        soonest = min(talk.exchange.due for talk in by_fd.values())
        for fd in _wait(poll, soonest - uptime()):
            if fd == stop:
                return
            by_fd[fd].hear_what_came()


def _wait(poll: poll, seconds: float) -> Iterable[int]:
    # Rounded up: a poll that ends before the time has come would be made again and again.
    milliseconds = max(0, int(seconds * 1000) + 1)
    with company.present().waiting():
        return [fd for fd, _events in poll.poll(milliseconds)]
