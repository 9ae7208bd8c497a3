"""bridge's configuration: every key of the reference plugin, with the problems that need no look at the node."""

from __future__ import annotations

from nodeplug.cni.contract import Dns, NetConf
from nodeplug.cni.plugins.keys import Args, RuntimeConfig, dns, link_name, mtu
from nodeplug.core.document import array, boolean, choice, integer, nested
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.record import Record, key

_VLAN_ID = integer(1, 4094)


class Trunk(Record):
    """An entry of `vlanTrunk`: a range, a single VLAN, or both."""

    min_id: int | None = key(_VLAN_ID, default=None, name="minID", help="the first of a range; needs `maxID`")
    max_id: int | None = key(_VLAN_ID, default=None, name="maxID", help="the last of a range; needs `minID`")
    id: int | None = key(_VLAN_ID, default=None, help="a single VLAN")


class BridgeConf(NetConf):
    """The keys of bridge, as documented by containernetworking/plugins."""

    bridge: str = key(link_name, default="cni0", help="the bridge, made when it is not there")
    is_gateway: bool = key(boolean, default=False, name="isGateway", help="put the pods' gateway addresses on it")
    is_default_gateway: bool = key(
        boolean,
        default=False,
        name="isDefaultGateway",
        help="`isGateway`, and give pods a default route to it unless the address manager gave one with a gateway",
    )
    force_address: bool = key(
        boolean, default=False, name="forceAddress", help="replace an address of the bridge that is in the way"
    )
    ip_masq: bool = key(
        boolean, default=False, name="ipMasq", help="masquerade what pods send to other networks than their own"
    )
    ip_masq_backend: str | None = key(
        choice("iptables", "nftables"),
        default=None,
        name="ipMasqBackend",
        help="taken and without effect: nodeplug masquerades by nftables in either case",
    )
    mtu: int = key(mtu, default=0, help="of the bridge when it is made, and of both ends of the pod's link")
    hairpin_mode: bool = key(
        boolean, default=False, name="hairpinMode", help="let a frame leave by the port it came in by"
    )
    promisc_mode: bool = key(boolean, default=False, name="promiscMode", help="put the bridge in promiscuous mode")
    vlan: int = key(integer(0, 4094), default=0, help="the pod's VLAN, untagged on its port; 0 for none")
    vlan_trunk: tuple[Trunk, ...] | None = key(
        array(nested(Trunk)), default=None, name="vlanTrunk", help="VLANs that the pod gets tagged"
    )
    preserve_default_vlan: bool = key(
        boolean,
        default=False,
        name="preserveDefaultVlan",
        help="with `vlan` or `vlanTrunk`: keep what the bridge gives a new port, VLAN 1",
    )
    macspoofchk: bool = key(boolean, default=False, help="drop frames of the pod that carry another MAC address")
    enabledad: bool = key(
        boolean, default=False, help="detect duplicate IPv6 addresses; ADD waits for it, for a second or two"
    )
    disable_container_interface: bool = key(
        boolean, default=False, name="disableContainerInterface", help="leave the pod's end down; not with `ipam`"
    )
    port_isolation: bool = key(
        boolean, default=False, name="portIsolation", help="no frames between isolated ports of the bridge"
    )
    args: Args = key(nested(Args), default=Args(), help="by convention, of the configuration's author or the runtime")
    runtime_config: RuntimeConfig = key(
        nested(RuntimeConfig), default=RuntimeConfig(), name="runtimeConfig", help="what the runtime offers"
    )
    dns: Dns | None = key(dns, default=None, help="takes the place of the address manager's; so does an empty list")

    @property
    def gateway(self) -> bool:
        """Whether this host is the pods' gateway."""
        return self.is_gateway or self.is_default_gateway

    @property
    def uses_vlans(self) -> bool:
        """Whether the bridge has to filter VLANs. An empty `vlanTrunk` asks for that too, as in the reference."""
        return self.vlan != 0 or self.vlan_trunk is not None


def validate(config: BridgeConf, *, addresses: bool) -> None:
    """Raise `ConfigInvalid` with every contradiction; `addresses` tells whether `ipam` names an address manager."""
    problems = []
    if config.hairpin_mode and config.promisc_mode:
        problems.append(("$.promiscMode", "cannot set hairpin mode and promiscuous mode at the same time"))
    if config.disable_container_interface and addresses:
        problems.append(("$.disableContainerInterface", "cannot use IPAM when DisableContainerInterface flag is set"))
    if config.vlan and config.gateway and len(f"{config.bridge}.{config.vlan}".encode()) > 15:
        sentence = f"the gateway's link {config.bridge}.{config.vlan} would have a name longer than 15 bytes"
        problems.append(("$.bridge", sentence))
    for n, trunk in enumerate(config.vlan_trunk or ()):
        fault = _trunk_fault(trunk)
        if fault:
            problems.append((f"$.vlanTrunk[{n}]", fault))
    if problems:
        raise ConfigInvalid("the network configuration is not valid", problems=problems)


def _trunk_fault(trunk: Trunk) -> str:
    if trunk.min_id is None and trunk.max_id is not None:
        return "minID and maxID should be configured simultaneously, minID is missing"
    if trunk.min_id is not None and trunk.max_id is None:
        return "minID and maxID should be configured simultaneously, maxID is missing"
    if trunk.min_id is not None and trunk.max_id is not None and trunk.min_id > trunk.max_id:
        return "minID is greater than maxID in trunk parameter"
    return ""


def trunk_ids(config: BridgeConf) -> list[int]:
    """The VLANs that the pod's port carries tagged, ascending; its own untagged one is not among them."""
    found: set[int] = set()
    for trunk in config.vlan_trunk or ():
        if trunk.min_id is not None and trunk.max_id is not None:
            found.update(range(trunk.min_id, trunk.max_id + 1))
        if trunk.id is not None:
            found.add(trunk.id)
    return sorted(found - {config.vlan})
