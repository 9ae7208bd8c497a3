"""A lease as it stands on disk: whose it is, where, what the server granted, and when what is due.

Times are of CLOCK_BOOTTIME: nobody sets that clock, and it goes on while the machine sleeps. A wall clock that is put
right an hour after the boot would end every lease at once, or have each used an hour too long. The price is that they
mean nothing after the next boot; but neither does the lease, whose pod has ended then. `until` is the wall clock's
word, for people, and for what is left of the boot before: when the server forgets it.
"""

from __future__ import annotations

import time

from nodeplug.cni.contract import Attachment, Dns, Route
from nodeplug.cni.ipam.dhcp import message, options
from nodeplug.cni.ipam.dhcp.sandbox import Sandbox
from nodeplug.core.document import Wrong, array, boolean, choice, expects, integer, ip, nested, number, text
from nodeplug.core.inet import Ip, Net
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nodeplug.cni.ipam.dhcp.message import Message
    from nodeplug.core.document import Place

REQUESTING = "requesting"
"""An ADD is at it, or was killed over it: the server may have granted it or not."""
BOUND = "bound"
LOST = "lost"
"""It ended, and the pod has no address until a server grants one again."""

FOREVER = float("inf")
_FOREVER = 0xFFFFFFFF
_USUAL = 3600  # seconds, of a lease whose time the server did not say
_SCOPE_LINK = 253


def uptime() -> float:
    """Seconds since the boot, those asleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@expects("bytes as hexadecimal digits")
def _bytes(value: Any, at: Place) -> bytes:
    try:
        return bytes.fromhex(text(value, at))
    except ValueError:
        raise Wrong("expected hexadecimal digits") from None


@expects("options by number, each as hexadecimal digits")
def _options(value: Any, at: Place) -> dict[int, bytes]:
    if not isinstance(value, dict) or not all(name.isascii() and name.isdecimal() for name in value):
        raise Wrong("expected options by number")
    return {int(name): _bytes(given, at.below(f".{name}")) for name, given in value.items()}


class Client(Record):
    """What a server knows the client by, and is told and asked each time."""

    mac: bytes = key(_bytes)
    broadcast: bool = key(boolean)
    id: bytes = key(_bytes)
    provide: Mapping[int, bytes] = key(_options)
    request: tuple[int, ...] = key(array(integer(1, 254)))


class Lease(Record):
    """One attachment's. What changes makes a new one, which is written in the old one's place."""

    network: str = key(text)
    container: str = key(text)
    ifname: str = key(text)
    sandbox: Sandbox = key(nested(Sandbox))
    client: Client = key(nested(Client))
    state: str = key(choice(REQUESTING, BOUND, LOST))
    address: Ip = key(ip)
    server: Ip = key(ip)
    station: bytes = key(_bytes)
    """The hardware address that the server's packets come from: its own, or that of the relay before it."""
    options: Mapping[int, bytes] = key(_options)
    priority: int = key(integer(), default=0)
    renew: float = key(number, default=FOREVER)
    rebind: float = key(number, default=FOREVER)
    expires: float = key(number, default=FOREVER)
    until: float = key(number, default=FOREVER)
    """Seconds since the epoch."""
    next: float = key(number, default=FOREVER)
    """When it is to be looked at: at `renew`, and later as attempts fail."""
    attempts: int = key(integer(), default=0)
    """Those that have failed since all was well."""
    trouble: str = key(text, default="")

    @property
    def attachment(self) -> Attachment:
        return Attachment(network=self.network, container=self.container, ifname=self.ifname)

    @property
    def net(self) -> Net | None:
        """The address in its network; None where the server did not say in which."""
        length = options.prefix(self.options)
        return None if length is None else Net(ip=self.address, prefix=length)

    @property
    def gateway(self) -> Ip | None:
        """That of the default route."""
        return next((gateway for dst, gateway in options.routes(self.options) if not dst.prefix), None)

    @property
    def dns(self) -> Dns:
        return Dns(
            nameservers=tuple(str(ip) for ip in options.addresses(self.options, options.NAME_SERVERS)),
            domain=options.domain(self.options),
            search=tuple(options.search(self.options)),
        )

    def routes(self, link_mtu: int) -> tuple[Route, ...]:
        """As the server gave them. Its MTU is theirs where it is smaller than the link's."""
        mtu = options.mtu(self.options)
        return tuple(
            Route(
                dst=dst,
                gw=gateway,
                mtu=mtu if mtu < link_mtu else 0,
                priority=self.priority,
                scope=_SCOPE_LINK if gateway is None else None,
            )
            for dst, gateway in options.routes(self.options)
        )

    def bound(self, ack: Message, station: bytes, *, asked: float, fuzz: float) -> Lease:
        """What it is after a server's acknowledgement of a request that was made at `asked`.

        `fuzz`, from 0 to 1, has some clients of one moment come back a little before others (RFC 2131, section 4.4.5).
        """
        lasts = _seconds(ack, message.LEASE_TIME) or _USUAL
        renew = _seconds(ack, message.RENEW_AFTER) or lasts / 2
        rebind = _seconds(ack, message.REBIND_AFTER) or lasts * 0.875
        if not renew <= rebind <= lasts:
            renew, rebind = lasts / 2, lasts * 0.875
        forever = lasts == _FOREVER
        # Some servers repeat only what has changed when a lease is renewed.
        kept = self.options if self.state == BOUND else {}
        renewing = FOREVER if forever else asked + renew * (1 - fuzz / 10)
        return self.replace(
            state=BOUND,
            address=Ip(packed=ack.yiaddr),
            server=Ip(packed=ack.server) if ack.server else self.server,
            station=station or self.station,
            options={**kept, **{code: value for code, value in ack.options.items() if code not in _SPENT}},
            renew=renewing,
            rebind=FOREVER if forever else asked + rebind * (1 - fuzz / 50),
            expires=FOREVER if forever else asked + lasts,
            until=FOREVER if forever else time.time() - uptime() + asked + lasts,
            next=renewing,
            attempts=0,
            trouble="",
        )


_SPENT = frozenset((message.TYPE, message.SERVER, message.TEXT, message.CLIENT_ID))


def _seconds(ack: Message, code: int) -> int:
    """0 where the server did not say."""
    found = ack.options.get(code, b"")
    return int.from_bytes(found, "big") if len(found) == 4 else 0


def encode(lease: Lease) -> dict[str, Any]:
    """As JSON has it."""
    return {name: _plain(value) for name, value in lease.__dict__.items() if value != FOREVER}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Ip):
        return str(value)
    if isinstance(value, Record):
        return {name: _plain(part) for name, part in value.__dict__.items()}
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {str(code): _plain(part) for code, part in value.items()}
    return value
