"""dhcp: an address leased from a server of the pod's own network, over the pod's own link.

The verbs. ADD asks by itself, in whichever process it runs, so there is no daemon to wait for; what comes after, the
renewing, is `chore`'s. The protocol is in `exchange`, `talk` and `message`; leases on disk in `lease` and `store`.
"""

from __future__ import annotations

import os
import time

from nodeplug.cni.contract import GcRequest, IpConfig, Plugin, Result
from nodeplug.cni.ipam.dhcp import conf, link
from nodeplug.cni.ipam.dhcp.conf import DhcpConf
from nodeplug.cni.ipam.dhcp.exchange import SELECTING, Exchange
from nodeplug.cni.ipam.dhcp.goodbye import collect, give_back
from nodeplug.cni.ipam.dhcp.lease import BOUND, FOREVER, REQUESTING, Client, Lease, uptime
from nodeplug.cni.ipam.dhcp.sandbox import Sandbox, boot
from nodeplug.cni.ipam.dhcp.store import Leases, Unreadable
from nodeplug.cni.ipam.dhcp.talk import Broadcast, Talk, converse
from nodeplug.core import chore, company
from nodeplug.core.errors import Refused, TimedOut, TryAgain, Unavailable, doing, from_os
from nodeplug.core.steps import Steps
from nodeplug.core.undo import Undo
from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeplug.cni.contract import (
        AddRequest,
        AttachmentRequest,
        CheckRequest,
        DelRequest,
        StatusRequest,
    )
    from nodeplug.cni.ipam.dhcp.conf import Settings
    from nodeplug.cni.ipam.dhcp.exchange import Granted
    from nodeplug.core.inet import Ip

CHORE = "dhcp"
_RESTART = 3.0
"""Seconds that a nodeplugd may be away for a restart before it counts as not there."""
_NOBODY = "no nodeplugd that renews leases runs on this node"
_HINT = "start nodeplugd, with its chore `dhcp` enabled"


class Dhcp(Plugin):
    """Called by the door; see the module."""

    name = "dhcp"
    config = DhcpConf

    def add(self, request: AddRequest) -> Result:
        """Raises `TimedOut` and `TryAgain` when no server grants an address: the runtime asks again."""
        keys, told = conf.ipam(request), conf.settings()
        acquisition = _Acquisition(request, Leases(told.directory), keys, told)
        with Undo() as undo:
            undo.push(acquisition.undo)
            lease, mtu = acquisition.run()
            net = lease.net
            if net is None:
                raise Refused(
                    f"the DHCP server {lease.server} gave {lease.address} without a subnet mask",
                    hint="have it send one; ipam.request has to list subnet-mask where skipDefault is set",
                )
            _expect_renewal(lease, told, request.warn)
            undo.commit()
        return Result(ips=(IpConfig(address=net, gateway=lease.gateway),), routes=lease.routes(mtu), dns=lease.dns)

    def leave(self, request: DelRequest | GcRequest) -> None:
        """All of it: the server hears over the link that the address is free, which that has lost by then."""
        if isinstance(request, GcRequest):
            self.gc(request)
        else:
            self.delete(request)

    def delete(self, request: DelRequest) -> None:
        give_back(Leases(conf.settings().directory), request.attachment, request.netns, request.warn)

    def check(self, request: CheckRequest) -> None:
        """The attachment has a lease, of the address in its result, which has not ended."""
        lease = _read(Leases(conf.settings().directory), request)
        if lease is None or lease.sandbox.boot != boot():
            raise Refused(f"{request.ifname} has no lease", hint="only a new pod gets another")
        if lease.state != BOUND or uptime() >= lease.expires:
            raise Refused(
                f"the lease of {lease.address} has ended: {lease.trouble or 'it was not renewed in time'}",
                hint="nodeplugd goes on asking for another",
            )
        given = [found.address.ip for found in request.prev_result.ips]
        if lease.address not in given:
            raise Refused(
                f"{request.ifname} was given {lease.address} when an earlier lease had ended",
                hint=f"the result has {', '.join(map(str, given)) or 'no address'}",
            )
        if not chore.is_kept(CHORE):
            request.warn(f"{_NOBODY}; {_HINT}")

    def gc(self, request: GcRequest) -> None:
        """Give back what belongs to no valid attachment; over its link where that is still there."""
        leases = Leases(conf.settings().directory)
        steps = Steps()
        for lease in list(leases.all()):
            if isinstance(lease, Unreadable):
                request.warn(str(lease))
            elif lease.network == request.network and lease.attachment not in request.valid:
                stale = lease
                steps.run(lambda: collect(leases, stale, request.warn))  # noqa: B023  # run at once
        steps.run(leases.clear_temporary)
        steps.close()

    def status(self, request: StatusRequest) -> None:
        """Leases can be kept, and somebody renews them."""
        from nodeplug.cni.ipam.room import expect_room

        told = conf.settings()
        conf.ipam(request)
        expect_room(told.directory, hint="mend it, or name another cni.dhcp.directory")
        if not _is_renewing():
            raise Unavailable(_NOBODY, hint=f"{_HINT}; until then leases end with the time they were granted for")


class _Acquisition:
    """A lease in the making."""

    def __init__(self, request: AddRequest, leases: Leases, keys: conf.IpamKeys, told: Settings) -> None:
        self._request = request
        self._leases = leases
        self._keys = keys
        self._told = told
        self._intent: Lease | None = None

    def run(self) -> tuple[Lease, int]:
        """The lease, and the link's MTU."""
        request = self._request
        where = request.netns.path
        provide = conf.provided(self._keys, request.args)
        former = _read(self._leases, request)
        with doing(f"cannot enter {where}"), Netlink(NETLINK_ROUTE, netns=request.netns) as route:
            found = link.ready(route, request.ifname, where)
            sandbox = Sandbox.of(request.netns, found)
        client = Client(
            mac=found.mac,
            broadcast=link.is_deaf(found) or self._told.broadcast,
            id=conf.client_id(request.container, request.network, request.ifname),
            provide=provide,
            request=conf.requested(self._keys),
        )
        granted = self._ask(client, sandbox, None if former is None else former.address)
        intent = self._intent
        assert intent is not None, "nothing is granted that was not offered"
        lease = intent.bound(granted.ack, granted.station, asked=granted.asked, fuzz=os.urandom(1)[0] / 255)
        with self._leases.lock(request.attachment):
            self._leases.write(lease)
        return lease, found.mtu

    def undo(self) -> None:
        """Give back what was taken, if anything was: what an earlier ADD has may be in use."""
        if self._intent is not None:
            give_back(self._leases, self._request.attachment, self._request.netns, self._request.warn)

    def _ask(self, client: Client, sandbox: Sandbox, former: Ip | None) -> Granted:
        request, begin = self._request, uptime()
        exchange = Exchange(
            client,
            state=SELECTING,
            begin=begin,
            end=begin + self._told.wait,
            address=former,
            offered=lambda *offer: self._note(client, sandbox, *offer),
        )
        what = f"cannot ask for a lease over {request.ifname} in {request.netns.path}"
        with doing(what):
            line = Broadcast(request.netns, request.ifname)
        try:
            talk = Talk(exchange, line)
            converse([talk])
        finally:
            line.close()
        if exchange.granted is not None:
            return exchange.granted
        if talk.failure is not None:
            raise from_os(talk.failure, what)
        if exchange.refused:
            raise TryAgain(
                f"the DHCP server refused what it had offered to {request.ifname}: {exchange.refused}",
                hint="its log says why; its addresses may be used up",
            )
        raise TimedOut(
            f"no DHCP server granted {request.ifname} an address within {self._told.wait:g} s",
            hint="no server is on that network, or its addresses are used up"
            if not exchange.heard
            else "it made an offer, and did not answer when that was taken",
        )

    def _note(self, client: Client, sandbox: Sandbox, address: Ip, server: Ip, station: bytes) -> None:
        """Before the offer is taken: whoever finds this after kill -9 can give it back."""
        request = self._request
        self._intent = Lease(
            network=request.network,
            container=request.container,
            ifname=request.ifname,
            sandbox=sandbox,
            client=client,
            state=REQUESTING,
            address=address,
            server=server,
            station=station,
            options={},
            priority=self._keys.priority,
            next=uptime() + self._told.wait,
        )
        with self._leases.lock(request.attachment):
            self._leases.write(self._intent, durable=False)


def _read(leases: Leases, request: AttachmentRequest) -> Lease | None:
    try:
        return leases.read(request.attachment)
    except Unreadable as unreadable:
        request.warn(str(unreadable))
        return None


def _expect_renewal(lease: Lease, told: Settings, warn: Callable[[str], None]) -> None:
    """Say that nobody renews the lease, and refuse one that would end before somebody sees to it.

    A pod that goes on with an address whose lease has ended does harm to another host; one that is not started yet does
    none. For a long lease there is time to start nodeplugd, which then finds it on disk.
    """
    if lease.expires == FOREVER or chore.is_kept(CHORE):
        return
    if lease.expires - uptime() >= told.unattended:
        ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lease.until))
        warn(f"{_NOBODY}: the lease of {lease.address} ends at {ends} unless one is started before")
    elif not _is_renewing():
        raise TryAgain(
            f"{_NOBODY}, and the lease of {lease.address} would end in {lease.expires - uptime():.0f} s",
            hint=f"{_HINT}; or allow it by cni.dhcp.unattended",
        )


def _is_renewing() -> bool:
    """Whether a nodeplugd renews leases; one that is being started again is waited for."""
    deadline = time.monotonic() + _RESTART
    while not chore.is_kept(CHORE):
        if time.monotonic() > deadline:
            return False
        with company.present().waiting():
            time.sleep(0.05)
    return True
