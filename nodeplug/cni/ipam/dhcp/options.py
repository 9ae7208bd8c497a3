"""Options by their names, and what the values that servers send mean: RFC 2132, 3397, 3442. Pure.

A value that makes no sense counts as not sent: a server's slip in one option must not cost the lease.
"""

from __future__ import annotations

from nodeplug.core.inet import Ip, Net, default

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Way = tuple[Net, Ip | None]

SUBNET_MASK = 1
ROUTERS = 3
NAME_SERVERS = 6
HOST_NAME = 12
DOMAIN = 15
MTU = 26
STATIC_ROUTES = 33
SEARCH = 119
CLASSLESS_ROUTES = 121

# As in dhcp-options(5).
NAMES = {
    "subnet-mask": 1,
    "time-offset": 2,
    "routers": 3,
    "time-servers": 4,
    "ien116-name-servers": 5,
    "domain-name-servers": 6,
    "log-servers": 7,
    "cookie-servers": 8,
    "lpr-servers": 9,
    "impress-servers": 10,
    "resource-location-servers": 11,
    "host-name": 12,
    "boot-size": 13,
    "merit-dump": 14,
    "domain-name": 15,
    "swap-server": 16,
    "root-path": 17,
    "extensions-path": 18,
    "ip-forwarding": 19,
    "non-local-source-routing": 20,
    "policy-filter": 21,
    "max-dgram-reassembly": 22,
    "default-ip-ttl": 23,
    "path-mtu-aging-timeout": 24,
    "path-mtu-plateau-table": 25,
    "interface-mtu": 26,
    "all-subnets-local": 27,
    "broadcast-address": 28,
    "perform-mask-discovery": 29,
    "mask-supplier": 30,
    "router-discovery": 31,
    "router-solicitation-address": 32,
    "static-routes": 33,
    "trailer-encapsulation": 34,
    "arp-cache-timeout": 35,
    "ieee802-3-encapsulation": 36,
    "default-tcp-ttl": 37,
    "tcp-keepalive-interval": 38,
    "tcp-keepalive-garbage": 39,
    "nis-domain": 40,
    "nis-servers": 41,
    "ntp-servers": 42,
    "vendor-encapsulated-options": 43,
    "netbios-name-servers": 44,
    "netbios-dd-server": 45,
    "netbios-node-type": 46,
    "netbios-scope": 47,
    "font-servers": 48,
    "x-display-manager": 49,
    "dhcp-requested-address": 50,
    "dhcp-lease-time": 51,
    "dhcp-option-overload": 52,
    "dhcp-message-type": 53,
    "dhcp-server-identifier": 54,
    "dhcp-parameter-request-list": 55,
    "dhcp-message": 56,
    "dhcp-max-message-size": 57,
    "dhcp-renewal-time": 58,
    "dhcp-rebinding-time": 59,
    "vendor-class-identifier": 60,
    "dhcp-client-identifier": 61,
    "nwip-domain": 62,
    "nisplus-domain": 64,
    "nisplus-servers": 65,
    "tftp-server-name": 66,
    "bootfile-name": 67,
    "mobile-ip-home-agent": 68,
    "smtp-server": 69,
    "pop-server": 70,
    "nntp-server": 71,
    "www-server": 72,
    "finger-server": 73,
    "irc-server": 74,
    "streettalk-server": 75,
    "streettalk-directory-assistance-server": 76,
    "user-class": 77,
    "slp-directory-agent": 78,
    "slp-service-scope": 79,
    "nds-servers": 85,
    "nds-tree-name": 86,
    "nds-context": 87,
    "bcms-controller-names": 88,
    "bcms-controller-address": 89,
    "uap-servers": 98,
    "pcode": 100,
    "tcode": 101,
    "netinfo-server-address": 112,
    "netinfo-server-tag": 113,
    "default-url": 114,
    "domain-search": 119,
    "classless-static-routes": 121,
    "rfc3442-classless-static-routes": 121,
    "vivco": 124,
    "vivso": 125,
}

_SHORTEST_MTU = 68
_LONGEST_NAME = 253
_MOST_DOMAINS = 32


def number(given: str) -> int:
    """The number of an option that is given by name or number. Raises ValueError."""
    found = NAMES.get(given)
    if found is not None:
        return found
    if given.isascii() and given.isdecimal() and 0 < int(given) < 255:
        return int(given)
    from difflib import get_close_matches

    near = get_close_matches(given, list(NAMES), n=1)
    raise ValueError(
        f"{given!r} is no DHCP option: neither a number from 1 to 254 nor a name of dhcp-options(5)"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def prefix(options: Mapping[int, bytes]) -> int | None:
    """The length of the subnet mask; None where there is none, or one with holes."""
    mask = options.get(SUBNET_MASK, b"")
    if len(mask) != 4:
        return None
    inverse = int.from_bytes(mask, "big") ^ 0xFFFFFFFF
    return None if inverse & (inverse + 1) else 32 - inverse.bit_length()


def addresses(options: Mapping[int, bytes], code: int) -> list[Ip]:
    """Those in an option that holds a list of them."""
    value = options.get(code, b"")
    if len(value) % 4:
        return []
    found = [Ip(packed=value[at : at + 4]) for at in range(0, len(value), 4)]
    return [ip for ip in found if not ip.is_unspecified]


def routes(options: Mapping[int, bytes]) -> list[Way]:
    """Destinations and their gateways, None for those on the link itself.

    Classless routes take the place of all others, the default route by the router among them (RFC 3442).
    """
    classless = _classless(options.get(CLASSLESS_ROUTES, b""))
    if classless:
        return classless
    found = _classful(options.get(STATIC_ROUTES, b""))
    found += [(default(4), router) for router in addresses(options, ROUTERS)[:1]]
    return found


def _classless(value: bytes) -> list[Way]:
    found: list[Way] = []
    at = 0
    while at < len(value):
        length = value[at]
        significant = (length + 7) // 8
        end = at + 1 + significant + 4
        if length > 32 or end > len(value):
            return []
        target = value[at + 1 : at + 1 + significant].ljust(4, b"\0")
        router = Ip(packed=value[end - 4 : end])
        network = Net(ip=Ip(packed=target), prefix=length).network
        found.append((network, None if router.is_unspecified else router))
        at = end
    return found


def _classful(value: bytes) -> list[Way]:
    found: list[Way] = []
    if len(value) % 8:
        return found
    for at in range(0, len(value), 8):
        target, router = Ip(packed=value[at : at + 4]), Ip(packed=value[at + 4 : at + 8])
        first = target.packed[0]
        length = 8 if first < 128 else 16 if first < 192 else 24
        # "The default route (0.0.0.0) is an illegal destination" (RFC 2132, section 5.8).
        if not target.is_unspecified and first < 224 and not router.is_unspecified:
            found.append((Net(ip=target, prefix=length).network, router))
    return found


def mtu(options: Mapping[int, bytes]) -> int:
    """0 where none was sent."""
    value = options.get(MTU, b"")
    found = int.from_bytes(value, "big") if len(value) == 2 else 0
    return found if found >= _SHORTEST_MTU else 0


def domain(options: Mapping[int, bytes]) -> str:
    """The domain name; empty where none was sent."""
    found = options.get(DOMAIN, b"").rstrip(b"\0")
    return found.decode("ascii") if _is_name(found) else ""


def search(options: Mapping[int, bytes]) -> list[str]:
    """The domains to search, in RFC 1035's form with pointers (RFC 3397)."""
    value = options.get(SEARCH, b"")
    found: list[str] = []
    at = 0
    while at < len(value) and len(found) < _MOST_DOMAINS:
        name, at = _name(value, at)
        if not name:
            return []
        found.append(name)
    return found


def _name(value: bytes, at: int) -> tuple[str, int]:
    """The name that begins there and where the next one does; "" when it is none."""
    labels: list[bytes] = []
    after = 0
    while at < len(value):
        length = value[at]
        if length == 0:
            name = b".".join(labels)
            return (name.decode("ascii") if _is_name(name) else ""), after or at + 1
        if length & 0xC0 == 0xC0:
            # A pointer leads back, always: so no two of them lead round and round.
            if at + 1 >= len(value) or (target := (length & 0x3F) << 8 | value[at + 1]) >= at:
                return "", len(value)
            after = after or at + 2
            at = target
            continue
        label = value[at + 1 : at + 1 + length]
        if length > 63 or len(label) < length or len(b".".join(labels)) > _LONGEST_NAME:
            return "", len(value)
        labels.append(label)
        at += 1 + length
    return "", len(value)


def _is_name(found: bytes) -> bool:
    """What resolv.conf(5) may hold: whoever runs the server does not write lines into the files of a pod."""
    allowed = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
    return 0 < len(found) <= _LONGEST_NAME and all(c in allowed for c in found)
