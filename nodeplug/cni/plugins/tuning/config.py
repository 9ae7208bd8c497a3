"""tuning's configuration: every key of the reference plugin, and which of the places that may name a value wins."""

from __future__ import annotations

from nodeplug.cni.contract import EnvironmentInvalid, NetConf
from nodeplug.cni.plugins.keys import RuntimeConfig, mac, mtu, read_mac
from nodeplug.core.document import absolute_path, boolean, expects, integer, nested, table, text
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nodeplug.core.document import Place

DATA_DIR = "/run/cni/tuning"

_SYSCTLS = table(text)
_QUEUE = integer(0, 0xFFFFFFFF)


@expects("an absolute path, or nothing for the default")
def data_dir(value: Any, at: Place) -> str:
    return absolute_path(value, at) if value != "" else DATA_DIR


class CniArgs(Record):
    """`args.cni`: the same keys once more, which go before all others."""

    sysctl: Mapping[str, str] | None = key(_SYSCTLS, default=None, help="added to `sysctl`, key by key")
    mac: bytes | None = key(mac, default=None, help="goes before every other MAC address")
    promisc: bool | None = key(boolean, default=None, help="in place of `promisc`")
    mtu: int | None = key(mtu, default=None, help="in place of `mtu`")
    allmulti: bool | None = key(boolean, default=None, help="in place of `allmulti`")
    txqlen: int | None = key(_QUEUE, default=None, name="txQLen", help="in place of `txQLen`")


class Args(Record):
    """`args`: what the configuration's author or the runtime adds by convention."""

    cni: CniArgs = key(nested(CniArgs), default=CniArgs())


class TuningConf(NetConf):
    sysctl: Mapping[str, str] | None = key(
        _SYSCTLS, default=None, help="settings of the pod's network namespace, below net; IFNAME stands for CNI_IFNAME"
    )
    mac: bytes | None = key(mac, default=None, help="the interface's MAC address")
    promisc: bool = key(boolean, default=False, help="put the interface in promiscuous mode; false leaves it as it is")
    mtu: int = key(mtu, default=0, help="0 leaves it as it is")
    allmulti: bool | None = key(boolean, default=None, help="receive all multicast frames, or not")
    txqlen: int | None = key(_QUEUE, default=None, name="txQLen", help="length of the transmit queue in packets")
    data_dir: str = key(
        data_dir, default=DATA_DIR, name="dataDir", help="where the values to restore on DEL are kept meanwhile"
    )
    args: Args = key(nested(Args), default=Args())
    runtime_config: RuntimeConfig = key(nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig")


class Wanted(Record):
    """What is to be set: None leaves a thing alone."""

    sysctl: Mapping[str, str]
    mac: bytes | None
    promisc: bool | None
    mtu: int | None
    allmulti: bool | None
    txqlen: int | None

    @property
    def of_link(self) -> dict[str, Any]:
        """What is wanted of the interface itself, by the names that `links.set` takes."""
        return {name: value for name in OF_LINK if (value := getattr(self, name)) is not None}


OF_LINK = ("mac", "promisc", "mtu", "allmulti", "txqlen")


def wanted(config: TuningConf, cni_args: Mapping[str, str]) -> Wanted:
    """`args.cni` goes before `runtimeConfig`, that before CNI_ARGS, that before the keys themselves.

    Raises `EnvironmentInvalid` for a MAC in CNI_ARGS that is none.
    """
    over = config.args.cni
    given = cni_args.get("MAC", "")
    by_variable = read_mac(given)
    if given and by_variable is None:
        raise EnvironmentInvalid(
            f"CNI_ARGS: MAC is {given!r}", hint="give the MAC address of one station, such as 02:00:0a:00:00:07"
        )
    promisc = config.promisc if over.promisc is None else over.promisc
    mtu = config.mtu if over.mtu is None else over.mtu
    return Wanted(
        sysctl={**(config.sysctl or {}), **(over.sysctl or {})},
        mac=over.mac or config.runtime_config.mac or by_variable or config.mac,
        promisc=promisc or None,
        mtu=mtu or None,
        allmulti=config.allmulti if over.allmulti is None else over.allmulti,
        txqlen=config.txqlen if over.txqlen is None else over.txqlen,
    )
