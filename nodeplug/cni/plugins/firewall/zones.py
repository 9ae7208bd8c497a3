"""firewalld: a pod's addresses as sources of a zone, for as long as the pod lives.

Only where firewalld is on the system bus; what it is told is not permanent, and it forgets it when it is reloaded.
"""

from __future__ import annotations

import os

from nodeplug.cni.plugins.firewall.config import FIREWALLD
from nodeplug.core import inet
from nodeplug.core.errors import Error, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nodeplug.cni.plugins.firewall.bus import Bus
    from nodeplug.cni.plugins.firewall.config import FirewallConf
    from nodeplug.core.inet import Ip

_NAME = "org.fedoraproject.FirewallD1"
_PATH = "/org/fedoraproject/FirewallD1"
_ZONE = "org.fedoraproject.FirewallD1.zone"
_THERE_ALREADY = ("ZONE_ALREADY_SET", "ALREADY_ENABLED")


class Zone:
    """The zone of a configuration, in a `with` block. Does nothing where firewalld has no part in it.

    Entering raises `Unavailable` when the configuration asks for firewalld and it does not run.
    """

    def __init__(self, config: FirewallConf, env: Mapping[str, str]) -> None:
        self._name = config.zone
        self._backend = config.backend
        self._env = env
        self._bus: Bus | None = None

    def __enter__(self) -> Zone:
        if self._backend in ("", FIREWALLD):
            self._bus = _connect(self._env)
        if self._backend == FIREWALLD and self._bus is None:
            raise Unavailable(
                "the configuration asks for firewalld, which is not on the system bus",
                hint='start it, or leave "backend" out',
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bus is not None:
            self._bus.close()

    def join(self, addresses: Iterable[Ip]) -> None:
        """Make them sources of the zone. Raises `Refused` with firewalld's own words."""
        if self._bus is None:
            return
        from nodeplug.cni.plugins.firewall.bus import CallFailed

        for ip in addresses:
            try:
                self._ask("addSource", ip)
            except CallFailed as error:
                if not any(word in error.message for word in _THERE_ALREADY):
                    raise

    def leave(self, addresses: Iterable[Ip]) -> None:
        """Take them out again; those that are in no zone are passed over."""
        if self._bus is None:
            return
        from nodeplug.cni.plugins.firewall.bus import CallFailed

        for ip in addresses:
            try:
                self._ask("removeSource", ip)
            except CallFailed:
                pass  # it was reloaded, or somebody took it out

    def faults(self, addresses: Iterable[Ip]) -> list[str]:
        """Which of them are no sources of the zone, as sentences."""
        return [
            f"{ip} is not in the zone {self._name} of firewalld"
            for ip in (addresses if self._bus is not None else ())
            if self._ask("querySource", ip) is not True
        ]

    def _ask(self, method: str, ip: Ip) -> str | bool | None:
        assert self._bus is not None, "the callers look"
        return self._bus.call(_NAME, _PATH, _ZONE, method, self._name, str(inet.host(ip)))


def _connect(env: Mapping[str, str]) -> Bus | None:
    """The bus, when firewalld is on it."""
    from nodeplug.cni.plugins.firewall import bus

    where = bus.address(env)
    if not where or (not where.startswith("\0") and not os.path.exists(where)):
        return None
    try:
        found = bus.Bus(where)
    except Error:
        return None
    try:
        if found.has(_NAME):
            return found
    except Error:
        pass  # a bus without firewalld, or none that works
    found.close()
    return None
