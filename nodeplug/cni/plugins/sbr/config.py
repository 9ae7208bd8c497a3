"""sbr's configuration: every key of the reference plugin."""

from __future__ import annotations

from nodeplug.cni.contract import NetConf
from nodeplug.core.document import array, boolean, integer, ip
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.core.inet import Ip


class SbrConf(NetConf):
    table: int | None = key(
        integer(1, 0xFFFFFFFF), default=None, help="add rules to this table only, and leave all routes alone"
    )
    gateways: tuple[Ip, ...] = key(
        array(ip), default=(), help="in place of the addresses' own gateways: at most one of each family"
    )
    add_source_hints: bool = key(
        boolean,
        default=False,
        name="addSourceHints",
        help="keep the interface's direct routes in the main table, with its address as source",
    )


def gateways(config: SbrConf) -> dict[int, Ip]:
    """The static gateway of each family. Raises `ConfigInvalid` for two of one."""
    found: dict[int, Ip] = {}
    problems = []
    for n, gateway in enumerate(config.gateways):
        if gateway.family in found:
            sentence = f"a second one of IPv{gateway.family}: {found[gateway.family]} and {gateway}"
            problems.append((f"$.gateways[{n}]", sentence))
        found.setdefault(gateway.family, gateway)
    if problems:
        raise ConfigInvalid("gateways has multiple addresses of one family", problems=problems)
    return found
