"""ptp's configuration: every key of the reference plugin."""

from __future__ import annotations

from nodeplug.cni.contract import Dns, NetConf
from nodeplug.cni.plugins.keys import dns, mtu
from nodeplug.core.document import boolean, choice
from nodeplug.core.record import key


class PtpConf(NetConf):
    ip_masq: bool = key(
        boolean, default=False, name="ipMasq", help="masquerade what pods send to other networks than their own"
    )
    ip_masq_backend: str | None = key(
        choice("iptables", "nftables"),
        default=None,
        name="ipMasqBackend",
        help="taken and without effect: nodeplug masquerades by nftables in either case",
    )
    mtu: int = key(mtu, default=0, help="of both ends of the pod's link")
    dns: Dns | None = key(dns, default=None, help="takes the place of the address manager's; so does an empty list")
