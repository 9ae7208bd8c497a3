"""IP addresses and networks as small values, read and written by the C library's own functions.

`ipaddress` costs 4 ms to import. Text is accepted as Go's net package does: no leading zeros, no zone, IPv4 mapped into
IPv6 is IPv4. Used by core, cni; the kernel rooms take `packed` bytes.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from nodeplug.core.record import Record

_MAPPED = bytes(10) + b"\xff\xff"


class Ip(Record):
    """One address. Ordered within its family by value."""

    packed: bytes  # 4 or 16 bytes, network order

    @classmethod
    def parse(cls, text: str) -> Ip:
        """Raises ValueError with the text in it."""
        try:
            packed = inet_pton(AF_INET6, text) if ":" in text else inet_pton(AF_INET, text)
        except (OSError, ValueError):
            raise ValueError(f"{text!r} is not an IP address") from None
        return cls(packed=packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed)

    @classmethod
    def of(cls, value: int, family: int) -> Ip:
        """The address with that numeric value; OverflowError when the family (4 or 6) has none."""
        return cls(packed=value.to_bytes(4 if family == 4 else 16, "big"))

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.packed) == 4 else 6

    @property
    def bits(self) -> int:
        """32 or 128."""
        return 8 * len(self.packed)

    @property
    def value(self) -> int:
        return int.from_bytes(self.packed, "big")

    @property
    def is_unspecified(self) -> bool:
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        return self.packed[0] == 127 if len(self.packed) == 4 else self.value == 1

    @property
    def is_link_local(self) -> bool:
        if len(self.packed) == 4:
            return self.packed[:2] == b"\xa9\xfe"
        return self.packed[0] == 0xFE and self.packed[1] & 0xC0 == 0x80

    @property
    def is_multicast(self) -> bool:
        return self.packed[0] >> 4 == 14 if len(self.packed) == 4 else self.packed[0] == 0xFF

    def __str__(self) -> str:
        return inet_ntop(AF_INET if len(self.packed) == 4 else AF_INET6, self.packed)


class Net(Record):
    """An address with a prefix length: `10.0.0.7/24` as an interface holds it, `10.0.0.0/24` as a route names it."""

    ip: Ip
    prefix: int

    @classmethod
    def parse(cls, text: str) -> Net:
        """Raises ValueError with the text in it. The host bits are kept; see `network`."""
        address, slash, length = text.partition("/")
        try:
            ip = Ip.parse(address)
        except ValueError:
            raise ValueError(f"{text!r} is not an address with a prefix length (such as 10.1.0.0/16)") from None
        if not slash or not (length.isascii() and length.isdecimal()) or len(length) > 3 or int(length) > ip.bits:
            raise ValueError(f"{text!r} is not an address with a prefix length (such as 10.1.0.0/16)")
        return cls(ip=ip, prefix=int(length))

    @property
    def family(self) -> int:
        return self.ip.family

    @property
    def network(self) -> Net:
        """The same with the host bits cleared."""
        hosts = self.ip.bits - self.prefix
        return Net(ip=Ip.of(self.ip.value >> hosts << hosts, self.family), prefix=self.prefix)

    @property
    def first(self) -> int:
        """The numeric value of the network's lowest address."""
        hosts = self.ip.bits - self.prefix
        return self.ip.value >> hosts << hosts

    @property
    def last(self) -> int:
        """The numeric value of the network's highest address (v4: the broadcast address)."""
        return self.first + (1 << (self.ip.bits - self.prefix)) - 1

    def holds(self, ip: Ip) -> bool:
        return ip.family == self.family and self.first <= ip.value <= self.last

    def overlaps(self, other: Net) -> bool:
        return self.family == other.family and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"{self.ip}/{self.prefix}"


def host(ip: Ip) -> Net:
    """The network of just that address: /32 or /128."""
    return Net(ip=ip, prefix=ip.bits)


def default(family: int) -> Net:
    """0.0.0.0/0 or ::/0."""
    return Net(ip=Ip.of(0, family), prefix=0)
