"""CNI's nouns and the base class of a plugin; no I/O, no wire.

Field names on the wire are the specification's (docs/cni.md names the version of each). The wire itself is
`nodeplug.cni.protocol`; who calls a plugin is `nodeplug.cni.dispatch`.
"""

from __future__ import annotations

from nodeplug.core import company
from nodeplug.core.document import array, expects, integer, ip, nested, net, text
from nodeplug.core.errors import ConfigInvalid, Error, NotFound
from nodeplug.core.naming import identity
from nodeplug.core.record import Record, key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from typing import Any, ClassVar, Protocol, TypeVar

    from nodeplug.core.document import Place
    from nodeplug.core.inet import Ip, Net
    from nodeplug.kernel.netns import Netns

    T = TypeVar("T")

    class Ipam(Protocol):
        """The address manager that a configuration names, bound to one request.

        Raises the errors of its plugin; one that was executed and refused raises `DelegateFailed`.
        """

        def add(self) -> Result:
            """Addresses, routes and dns; no interfaces."""

        def leave(self) -> None:
            """What has to be said over the link before it goes, if anything. The door sees to it before DEL and GC; in
            the rollback of an ADD the plugin does.
            """

        def delete(self) -> None: ...

        def check(self) -> None: ...

        def gc(self) -> None: ...

        def status(self) -> None: ...


_LONGEST_RECALLED = 16 * 1024

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


class EnvironmentInvalid(ConfigInvalid):
    """A CNI_* variable is missing or wrong (code 4)."""


class FieldUnsupported(ConfigInvalid):
    """A key whose value this plugin understands and cannot honour here (code 2)."""


class NetnsInvalid(ConfigInvalid):
    """CNI_NETNS is not a network namespace this plugin may work in (code 8)."""


class ContainerUnknown(NotFound):
    """The container does not exist; a runtime may skip its clean-up (code 3)."""


class DelegateFailed(Error):
    """A delegated plugin answered with an error of its own, passed on as it came."""

    def __init__(self, message: str, *, code: int, details: str = "") -> None:
        super().__init__(message, hint=details)
        self.code = code


@expects("an address, or nothing")
def ip_or_none(value: Any, at: Place) -> Ip | None:
    """Parser of a gateway: the empty string says nothing, as it does to Go's net.IP."""
    return None if value == "" else ip(value, at)


class Interface(Record):
    """An interface of a result. `sandbox` is the netns path for one inside, empty for one on the host."""

    name: str = key(text, default="")
    mac: str = key(text, default="")
    mtu: int = key(integer(), default=0)
    sandbox: str = key(text, default="")
    socket_path: str = key(text, default="", name="socketPath")
    pci_id: str = key(text, default="", name="pciID")


class IpConfig(Record):
    """An address of a result; `interface` is an index into the result's interfaces."""

    address: Net = key(net)
    gateway: Ip | None = key(ip_or_none, default=None)
    interface: int | None = key(integer(), default=None)


class Route(Record):
    """A route of a result. `table` and `scope` are the kernel's numbers."""

    dst: Net = key(net, help="where to")
    gw: Ip | None = key(ip_or_none, default=None, help="through which neighbour; that of the pod's address if unset")
    mtu: int = key(integer(), default=0, help="largest packet on it; the link's if 0")
    advmss: int = key(integer(), default=0, help="TCP segment size to advertise; from the MTU if 0")
    priority: int = key(integer(), default=0, help="its metric: the lowest wins")
    table: int | None = key(integer(), default=None, help="routing table, by number; the main one if unset")
    scope: int | None = key(integer(), default=None, help="scope, by number: 0 universe, 253 link, 254 host")


class Dns(Record):
    """Name service for the pod, which the runtime may or may not use."""

    nameservers: tuple[str, ...] = key(array(text), default=(), help="addresses to ask, first one first")
    domain: str = key(text, default="", help="the local domain")
    search: tuple[str, ...] = key(array(text), default=(), help="domains in which short names are looked up")
    options: tuple[str, ...] = key(array(text), default=(), help="of resolv.conf(5)")


class Result(Record):
    """What an ADD made, in the current form; `protocol` writes it in the version asked for."""

    interfaces: tuple[Interface, ...] = key(array(nested(Interface)), default=())
    ips: tuple[IpConfig, ...] = key(array(nested(IpConfig)), default=())
    routes: tuple[Route, ...] = key(array(nested(Route)), default=())
    dns: Dns = key(nested(Dns), default=Dns())


class Attachment(Record):
    """One interface of one container in one network: the key of all state on the host."""

    __slots__ = ("_identity",)  # no field: it is worked out when it is first asked for

    network: str
    container: str
    ifname: str
    if TYPE_CHECKING:
        _identity: ClassVar[str]

    @property
    def identity(self) -> str:
        """15 characters, fit for an interface name: what a killed ADD left behind is found by it."""
        try:
            return self._identity
        except AttributeError:
            found = identity(self.network, self.container, self.ifname)
            object.__setattr__(self, "_identity", found)
            return found

    def __str__(self) -> str:
        return f"{self.network}/{self.container}/{self.ifname}"


class NetConf(Record):
    """The keys of every network configuration; a plugin's own configuration is a subclass with more of them.

    Read with case folded and unknown keys ignored, as the reference library does.
    """

    version: str = key(text, default="0.1.0", name="cniVersion", help="specification version of the configuration")
    network: str = key(text, default="", name="name", help="the network's name")
    type: str = key(text, default="", help="the plugin's file name")


class Request(Record):
    """What every operation is told. `config` is an instance of the plugin's `config` class."""

    config: Any
    version: str
    network: str
    prev_result: Result | None
    ipam: Ipam | None  # None where the configuration names no ipam.type
    warn: Callable[[str], None]  # a sentence for the log and the runtime's; the operation still succeeds
    env: Mapping[str, str]
    raw: bytes  # the configuration as it came


class AttachmentRequest(Request):
    """ADD, CHECK and DEL."""

    __slots__ = ("_attachment",)  # likewise

    container: str
    ifname: str
    args: Mapping[str, str]  # CNI_ARGS
    if TYPE_CHECKING:
        _attachment: ClassVar[Attachment]

    @property
    def attachment(self) -> Attachment:
        try:
            return self._attachment
        except AttributeError:
            found = Attachment(network=self.network, container=self.container, ifname=self.ifname)
            object.__setattr__(self, "_attachment", found)
            return found


class AddRequest(AttachmentRequest):
    netns: Netns


class CheckRequest(AttachmentRequest):
    """`prev_result` is what ADD and those after it in the chain returned; never None."""

    netns: Netns
    prev_result: Result


class DelRequest(AttachmentRequest):
    """`netns` is None when the namespace is gone, was never named, or its path holds something else."""

    netns: Netns | None
    netns_path: str


class GcRequest(Request):
    """`valid` holds what must stay; everything else of this network goes."""

    valid: frozenset[Attachment]


class StatusRequest(Request):
    pass


def recalled(raw: bytes, what: Hashable, make: Callable[[], T]) -> T:
    """What `make()` reads of the configuration `raw`, `what` it may be; nobody changes it.

    The bytes are the same for each pod of a network, unless there is a result in them.
    """
    if len(raw) > _LONGEST_RECALLED or b"prevResult" in raw:
        return make()
    return company.present().recall((what, raw), make)


class Plugin:
    """Subclass this, and `nodeplug.cni.run(Mine)` is the executable.

    Methods return or raise an error of `nodeplug.core.errors`; they never print, read the environment or exit. One
    instance serves one request. No two requests for one attachment are served at once, nor any beside its network's GC.
    """

    name = ""
    config: type[NetConf] = NetConf
    versions: tuple[str, ...] = VERSIONS
    args: tuple[str, ...] = ()  # CNI_ARGS keys it takes; with any, unknown keys are refused unless IgnoreUnknown is set
    # False for one that never works inside: CNI_NETNS is then not opened, need not exist, and nobody else is kept away.
    needs_netns = True

    def add(self, request: AddRequest) -> Result:
        """Make the attachment. Undo everything on failure: the runtime's DEL may never come."""
        raise ConfigInvalid(f"plugin {self.name} has no ADD")

    def leave(self, request: DelRequest | GcRequest) -> None:
        """Of an address manager: say what has to be said over links before they go, ahead of `delete` or `gc`."""

    def delete(self, request: DelRequest) -> None:
        """Remove what is left of the attachment; nothing left is success."""

    def check(self, request: CheckRequest) -> None:
        """Raise when the attachment is not as `prev_result` says."""

    def gc(self, request: GcRequest) -> None:
        """Remove what belongs to the network and to no valid attachment."""

    def status(self, request: StatusRequest) -> None:
        """Raise `Unavailable` when no ADD can succeed; read-only and cheap."""
