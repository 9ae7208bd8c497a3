"""host-local: addresses from ranges of this node's own, with leases as files under `ipam.dataDir`.

The verbs; what they are told is in `settings`, the rules of ranges in `ranges`, the files in `store`. Reached through
`dispatch.IPAM`: by a file of that name, and by our own plugins without another process.
"""

from __future__ import annotations

from nodeplug.cni.contract import Dns, IpConfig, Plugin, Result
from nodeplug.cni.ipam.settings import HostLocalConf, data_dir, settings
from nodeplug.cni.ipam.store import Leases, directory_of, holder_of
from nodeplug.core.errors import ConfigInvalid, Error, NotFound, Refused, TryAgain, Unavailable
from nodeplug.core.inet import Ip, Net
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeplug.cni.contract import AddRequest, CheckRequest, DelRequest, GcRequest, StatusRequest
    from nodeplug.cni.ipam.ranges import Range, RangeSet
    from nodeplug.cni.ipam.settings import Settings

_HELD = "#"  # a file that begins so is no lease: somebody keeps the address from being given


class HostLocal(Plugin):
    name = "host-local"
    config = HostLocalConf
    args = ("IP",)
    needs_netns = False

    def add(self, request: AddRequest) -> Result:
        """One address from each range set, all or none, under one lock."""
        told = settings(request)
        if not told.sets:
            raise ConfigInvalid("no IP ranges specified", hint="set ipam.subnet or ipam.ranges")
        asked = _assign(told)
        dns = _dns(told)
        ips = []
        with Leases(told.data_dir, request.network, create=True) as leases, Undo() as undo:
            allocation = _Allocation(leases, undo, request.container, request.ifname)
            for number, members in enumerate(told.sets):
                try:
                    ips.append(allocation.take(number, members, asked.get(number)))
                except Error as error:
                    error.message = f"failed to allocate for range {number}: {error.message}"
                    raise
            undo.commit()
        return Result(ips=tuple(ips), routes=told.routes, dns=dns)

    def delete(self, request: DelRequest) -> None:
        """Free every address of the attachment."""
        try:
            with Leases(data_dir(request), request.network) as leases:
                holder = holder_of(request.container, request.ifname)
                # Very old leases name the container alone; they count where there is no newer one, as in the reference.
                if not leases.held_by(holder):
                    holder = request.container
                _release(leases, [(name, holder) for name in leases.held_by(holder)])
        except NotFound:
            pass  # no directory, no leases

    def check(self, request: CheckRequest) -> None:
        """The attachment has a lease, and one for each address of its result that lies in our ranges."""
        told = settings(request)
        directory = directory_of(told.data_dir, request.network)
        try:
            with Leases(told.data_dir, request.network) as leases:
                holder = holder_of(request.container, request.ifname)
                held = leases.held_by(holder) or leases.held_by(request.container)
                given = [found.address.ip for found in request.prev_result.ips]
                lost = [ip for ip in given if str(ip) not in held and any(s.range_of(ip) for s in told.sets)]
                if held and lost:
                    raise Refused(
                        f"the result has {lost[0]}, whose lease is of {leases.who(lost[0])}",
                        hint=f"another container may be given that address; see {directory}",
                    )
        except NotFound:
            held = []
        if not held:
            raise Refused(
                f"Failed to find address added by container {request.container}",
                hint=f"{directory} holds no lease of its interface {request.ifname}",
            )

    def gc(self, request: GcRequest) -> None:
        """Free all addresses but those of valid attachments, and clear away what killed plugins left."""
        valid = {holder_of(kept.container, kept.ifname) for kept in request.valid}
        valid |= {kept.container for kept in request.valid}
        try:
            with Leases(data_dir(request), request.network) as leases:
                stale = [
                    (name, holder)
                    for holder, names in leases.read_all().items()
                    if holder not in valid and not holder.startswith(_HELD)
                    for name in names
                ]
                steps = Steps()
                steps.run(lambda: _release(leases, stale))
                steps.run(leases.clear_temporary)
                steps.close()
        except NotFound:
            pass  # no directory, no leases

    def status(self, request: StatusRequest) -> None:
        """The files an ADD needs can be written and read; with statusOnExhaustion, there is an address left too."""
        from nodeplug.cni.ipam.room import expect_room

        told = settings(request)
        expect_room(directory_of(told.data_dir, request.network), hint="mend it, or name another ipam.dataDir")
        _dns(told)
        if told.status_on_exhaustion:
            _expect_free(told, request.network)


class _Allocation:
    """The addresses of one attachment in the making."""

    def __init__(self, leases: Leases, undo: Undo, container: str, ifname: str) -> None:
        self._leases = leases
        self._undo = undo
        self._container = container
        self._holder = holder_of(container, ifname)

    def take(self, number: int, members: RangeSet, asked: Ip | None) -> IpConfig:
        """An address of range set `number`: the one asked for, or the next in turn."""
        if asked is not None:
            found = self._reserve_asked(members, asked)
            address = asked
        else:
            found, address = self._reserve_next(number, members)
        self._undo.push(lambda: self._leases.release(str(address), self._holder))
        self._leases.remember(number, address)
        return IpConfig(address=Net(ip=address, prefix=found.subnet.prefix), gateway=found.gateway)

    def _reserve_asked(self, members: RangeSet, asked: Ip) -> Range:
        found = members.range_of(asked)
        assert found is not None, "_assign gives each set what lies in it"
        if asked.value in found.withheld:
            raise Refused(f"requested IP address {asked} is {_withheld_for(found, asked)}", hint="ask for another")
        if not self._leases.reserve(asked, self._holder):
            raise Refused(
                f"requested IP address {asked} is not available in range set {members}",
                hint=f"it is held by {self._leases.who(asked)}",
            )
        return found

    def _reserve_next(self, number: int, members: RangeSet) -> tuple[Range, Ip]:
        # A second ADD without DEL is against the specification, and what the first one left behind may be in use: its
        # address must not be handed over to whoever asks under the same name (as in the reference).
        for name in (*self._leases.held_by(self._holder), *self._leases.held_by(self._container)):
            if members.range_of(Ip.parse(name)) is not None:
                raise Refused(
                    f"{name} has been allocated to {self._container}, duplicate allocation is not allowed",
                    hint="DEL frees it, or GC once the runtime no longer lists the container",
                )
        last = self._leases.last(number)
        while (free := self._leases.first_free(members, last)) is not None:
            if self._leases.reserve(free[1], self._holder):
                return free
            last = free[1]  # somebody who does not lock was faster
        raise TryAgain(
            f"no IP addresses available in range set: {members}",
            hint=f"all {members.capacity} are leased in {self._leases.directory}; GC frees those of lost containers",
        )


def _assign(told: Settings) -> dict[int, Ip]:
    """Range set number -> the address asked for there. Raises `Refused` when one has no place."""
    left = list(told.requested)
    asked: dict[int, Ip] = {}
    for number, members in enumerate(told.sets):
        fitting = next((ip for ip in left if members.range_of(ip) is not None), None)
        if fitting is not None:
            asked[number] = fitting
            left.remove(fitting)
    if left:
        raise Refused(
            f"failed to allocate all requested IPs: {' '.join(str(ip) for ip in left)}",
            hint=f"one can be asked for in each range set, and these are {' and '.join(str(s) for s in told.sets)}",
        )
    return asked


def _withheld_for(found: Range, address: Ip) -> str:
    if address.family == 4 and address.value == found.subnet.last:
        return f"the broadcast address of {found.subnet}"
    if address.family == 4 and address.value == found.subnet.first:
        return f"the address of the network {found.subnet} itself"
    return "a subnet's gateway"


def _release(leases: Leases, given: list[tuple[str, str]]) -> None:
    """Free each (name, holder), whatever becomes of the others; raises the first error."""
    steps = Steps()
    left = iter(given)
    for _ in given:
        steps.run(lambda: leases.release(*next(left)))
    steps.close()


def _dns(told: Settings) -> Dns:
    if not told.resolv_conf:
        return Dns()
    from nodeplug.cni.ipam import resolvconf

    return resolvconf.read(told.resolv_conf)


def _expect_free(told: Settings, network: str) -> None:
    directory = directory_of(told.data_dir, network)
    for members in told.sets:
        try:
            used = Leases(told.data_dir, network).taken(members.family)
        except NotFound:
            return
        if all(value in used for _, value in members.turn(None)):
            raise Unavailable(
                f"no IP addresses available in range set: {members}",
                hint=f"all {members.capacity} are leased in {directory}; GC frees those of lost containers",
            )
