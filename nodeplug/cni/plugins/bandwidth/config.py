"""bandwidth's configuration: every key of the reference plugin, which limits count, and the filters they come to."""

from __future__ import annotations

from nodeplug.cni.contract import NetConf
from nodeplug.core.document import integer, nested
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key
from nodeplug.kernel.rtnl.qdiscs import LONGEST, Bucket

_LATENCY = 40
"""A packet waits for 1/40 s at most, 25 ms as with the reference plugin; then it is dropped."""

_FRAME = 18
"""Bytes of a frame beside its packet: the Ethernet header and a VLAN tag."""

_BITS = integer(0, (1 << 64) - 1)


class Limits(Record):
    """Bits a second, and bits at once after a pause. 0 is no limit; a rate and its burst come together."""

    ingress_rate: int = key(_BITS, default=0, name="ingressRate", help="bits a second that the pod may receive")
    ingress_burst: int = key(_BITS, default=0, name="ingressBurst", help="bits that it may receive at once")
    egress_rate: int = key(_BITS, default=0, name="egressRate", help="bits a second that the pod may send")
    egress_burst: int = key(_BITS, default=0, name="egressBurst", help="bits that it may send at once")

    def of(self, direction: str) -> tuple[int, int]:
        """(rate, burst) of one of `DIRECTIONS`."""
        return getattr(self, f"{direction}_rate"), getattr(self, f"{direction}_burst")


class RuntimeConfig(Record):
    """What a runtime adds for the capability bandwidth."""

    bandwidth: Limits | None = key(nested(Limits), default=None, help="counts where the configuration has no limit")


class BandwidthConf(NetConf):
    ingress_rate: int | None = key(
        _BITS, default=None, name="ingressRate", help="bits a second that the pod may receive; 0 for no limit"
    )
    ingress_burst: int | None = key(
        _BITS, default=None, name="ingressBurst", help="bits that it may receive at once; needed with `ingressRate`"
    )
    egress_rate: int | None = key(
        _BITS, default=None, name="egressRate", help="bits a second that the pod may send; 0 for no limit"
    )
    egress_burst: int | None = key(
        _BITS, default=None, name="egressBurst", help="bits that it may send at once; needed with `egressRate`"
    )
    runtime_config: RuntimeConfig = key(nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig")


DIRECTIONS = ("ingress", "egress")


def effective(config: BandwidthConf) -> Limits:
    """The limits that count: the configuration's where it has any, else the runtime's. Raises `ConfigInvalid`."""
    own = {name: getattr(config, name) for name in Limits._fields}
    path = "$"
    if any(value is not None for value in own.values()):
        limits = Limits(**{name: value or 0 for name, value in own.items()})
    else:
        limits = config.runtime_config.bandwidth or Limits()
        path = "$.runtimeConfig.bandwidth"
    problems = []
    for direction in DIRECTIONS:
        rate, burst = limits.of(direction)
        if rate and not burst:
            problems.append((f"{path}.{direction}Burst", "if rate is set, burst must also be set"))
        elif burst and not rate:
            problems.append((f"{path}.{direction}Rate", "if burst is set, rate must also be set"))
        elif 0 < rate < 8:
            problems.append((f"{path}.{direction}Rate", f"{rate} is less than a byte a second; 8 is the least"))
        elif burst // 8 >= LONGEST:
            problems.append((f"{path}.{direction}Burst", "burst cannot be more than 4GB"))
    if problems:
        raise ConfigInvalid("the limits of bandwidth are not valid", problems=problems)
    return limits


def bucket(rate: int, burst: int, mtu: int) -> Bucket | None:
    """The filter for so many bits a second, and bits at once, on a link of that MTU; None for no limit.

    It holds one full frame at least: a longer one than its bucket would never be sent.
    """
    if not rate:
        return None
    rate, burst = rate // 8, max(burst // 8, mtu + _FRAME)
    return Bucket(rate=rate, burst=burst, limit=min(rate // _LATENCY + burst, LONGEST))
