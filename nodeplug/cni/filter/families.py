"""What differs between the families, as rules need it, and a rule itself. Pure; used by `layout` and `passage`."""

from __future__ import annotations

from nodeplug.core.record import Record
from nodeplug.kernel.nft import expressions as x
from nodeplug.kernel.nft.expressions import R0
from nodeplug.kernel.nft.wire import IPV4, IPV4_ADDR, IPV6, IPV6_ADDR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.kernel.nft.wire import Field


class Rule(Record):
    """One rule: where it stands, what it is called (its comment), what it does."""

    chain: str
    title: str
    parts: tuple[bytes, ...]


class Family(Record):
    """IPv4 or IPv6."""

    number: int  # 4 or 6, the last letter of set names
    nfproto: int
    address: Field
    src: int  # offsets in the network header
    dst: int
    multicast: bytes
    multicast_mask: bytes

    @property
    def after(self) -> int:
        """The register behind an address in R0."""
        return R0 + self.address.size // 4

    def name(self, of: str) -> str:
        """Of the family's set."""
        return f"{of}{self.number}"


FOUR = Family(
    number=4,
    nfproto=IPV4,
    address=IPV4_ADDR,
    src=12,
    dst=16,
    multicast=bytes((224, 0, 0, 0)),
    multicast_mask=bytes((240, 0, 0, 0)),
)
SIX = Family(
    number=6,
    nfproto=IPV6,
    address=IPV6_ADDR,
    src=8,
    dst=24,
    multicast=b"\xff" + bytes(15),
    multicast_mask=b"\xff" + bytes(15),
)
FAMILIES = (FOUR, SIX)


def is_family(family: Family) -> tuple[bytes, ...]:
    """Go on only with packets of the family."""
    return x.meta(x.META_NFPROTO), x.cmp(x.EQ, bytes((family.nfproto,)))


def source(family: Family) -> bytes:
    """Load the packet's source address."""
    return x.payload(x.NETWORK, family.src, family.address.size)


def destination(family: Family) -> bytes:
    """Load its destination address."""
    return x.payload(x.NETWORK, family.dst, family.address.size)
