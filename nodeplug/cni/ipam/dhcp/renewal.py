"""The chore of nodeplugd that keeps leases: renewed, rebound, given up when they end, asked for anew.

What is due stands in the leases, so it does not matter who wrote them or when nodeplugd was started. All that is due at
one time is asked for at one time, each over a socket in its own pod's namespace, which is found again as `sandbox` says
or not at all. RFC 2131, section 4.4.5.
"""

from __future__ import annotations

import errno
import os
import time

from nodeplug.cni.ipam.dhcp import conf, link
from nodeplug.cni.ipam.dhcp.exchange import REBINDING, RENEWING, SELECTING, Exchange
from nodeplug.cni.ipam.dhcp.goodbye import farewell
from nodeplug.cni.ipam.dhcp.lease import BOUND, FOREVER, LOST, REQUESTING, uptime
from nodeplug.cni.ipam.dhcp.plugin import CHORE
from nodeplug.cni.ipam.dhcp.sandbox import boot
from nodeplug.cni.ipam.dhcp.store import Leases, Unreadable
from nodeplug.cni.ipam.dhcp.talk import Broadcast, Talk, Unicast, converse
from nodeplug.core.chore import Chore
from nodeplug.core.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodeplug.cni.ipam.dhcp.exchange import Granted
    from nodeplug.cni.ipam.dhcp.lease import Lease
    from nodeplug.cni.ipam.dhcp.sandbox import Pod
    from nodeplug.cni.ipam.dhcp.talk import Line
    from nodeplug.core.chore import Turn

_TOGETHER = 64  # leases asked about at one time: each holds three or four descriptors
_RENEWING_FOR = 5.0  # seconds of one attempt, in which two or three messages go out
_ASKING_FOR = 8.0
_USUAL_PAUSE = 60.0  # between attempts, of leases that last half an hour or more
_FIRST_PAUSE, _LAST_PAUSE = 4.0, 300.0  # between attempts to be granted an address again
_ABANDONED = 600.0
_AFTER_A_FAULT = 10.0
_SOON = 1.0  # at least between two runs: what cannot be written down stays due


class Renewal(Chore):
    """See the module."""

    name = CHORE
    patience = 900.0

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.directory = conf.settings(settings).directory
        self._leases = Leases(self.directory)
        self._boot = boot()

    def run(self, turn: Turn) -> float | None:
        self._leases.clear_temporary()
        now = uptime()
        due = [lease for lease in self._readable() if self._due(lease, now) <= now]
        faults = 0
        for start in range(0, len(due), _TOGETHER):
            if turn.stopping:
                return _SOON
            faults += self._attend(due[start : start + _TOGETHER], turn)
        return self._look_ahead(turn, at_least=_AFTER_A_FAULT if faults else _SOON)

    def _readable(self) -> list[Lease]:
        return [lease for lease in self._leases.all() if not isinstance(lease, Unreadable)]

    def _look_ahead(self, turn: Turn, *, at_least: float) -> float | None:
        """Tell of what is in trouble; the seconds until something is due again."""
        now = uptime()
        soonest = FOREVER
        for lease in self._leases.all():
            if isinstance(lease, Unreadable):
                turn.fail(lease.path, str(lease))
                continue
            if lease.trouble:
                turn.fail(str(lease.attachment), lease.trouble)
            soonest = min(soonest, self._due(lease, now))
        return None if soonest == FOREVER else max(at_least, soonest - now)

    def _due(self, lease: Lease, now: float) -> float:
        """When something is due for it, by the clock of this boot."""
        if lease.sandbox.boot == self._boot:
            return lease.next
        # Of a boot before: should its attachment come back, it asks for its address until the server forgets it.
        return now + lease.until - time.time()

    def _attend(self, leases: Sequence[Lease], turn: Turn) -> int:
        """Ask about all of them; how many could not be attended to."""
        faults = 0
        asking: list[_Asking] = []
        try:
            for lease in leases:
                try:
                    found = self._begin(lease, turn)
                except (Error, OSError) as error:
                    turn.fail(str(lease.attachment), _words(error))
                    faults += 1
                else:
                    asking += [found] if found is not None else []
            converse([one.talk for one in asking], stop=turn.fileno())
            for one in asking:
                try:
                    self._end(one, turn)
                except (Error, OSError) as error:
                    turn.fail(str(one.lease.attachment), _words(error))
                    faults += 1
        finally:
            for one in asking:
                one.close()
        return faults

    def _begin(self, lease: Lease, turn: Turn) -> _Asking | None:
        """The question that is due; None when the lease is settled without one."""
        if lease.sandbox.boot != self._boot:
            self._change(lease, None)
            return None
        pod = lease.sandbox.enter(lease.ifname)
        if pod is None:
            self._without_pod(lease)
            return None
        try:
            if lease.state == REQUESTING:
                # Its ADD was killed, and the runtime's DEL is to come.
                self._change(lease, lease.replace(next=uptime() + _ABANDONED))
            elif lease.state == BOUND and uptime() >= lease.expires:
                lost = self._lose(lease, pod, f"the lease of {lease.address} has ended: {lease.trouble}", turn)
                if lost is not None:
                    return _Asking(lost, pod)
            else:
                return _Asking(lease, pod)
        except BaseException:
            pod.close()
            raise
        pod.close()
        return None

    def _without_pod(self, lease: Lease) -> None:
        """Its pod has ended, and nobody asked for its DEL. The server forgets the lease when it ends; so do we."""
        if lease.state != BOUND or uptime() >= lease.expires:
            self._change(lease, None)
        else:
            self._change(lease, lease.replace(next=lease.expires, trouble=""))

    def _end(self, asking: _Asking, turn: Turn) -> None:
        lease, exchange = asking.lease, asking.exchange
        if exchange.granted is not None and lease.state == LOST:
            self._restore(asking, exchange.granted, turn)
        elif exchange.granted is not None:
            self._renewed(asking, exchange.granted, turn)
        elif exchange.refused and lease.state == BOUND:
            self._lose(lease, asking.pod, f"the server took {lease.address} back: {exchange.refused}", turn)
        elif not turn.stopping:
            self._failed(asking)

    def _renewed(self, asking: _Asking, granted: Granted, turn: Turn) -> None:
        lease = asking.lease
        new = lease.bound(granted.ack, granted.station, asked=granted.asked, fuzz=_chance())
        if not self._change(lease, new):
            self._return(new, asking.pod)
            return
        mtu = asking.pod.link.mtu
        if (new.net, new.routes(mtu)) != (lease.net, lease.routes(mtu)):
            turn.note(f"{lease.attachment}: the server now gives other routes; the pod keeps those it has")

    def _restore(self, asking: _Asking, granted: Granted, turn: Turn) -> None:
        """Give the pod what it was granted: the address it had, unless somebody else has it by now."""
        lease, pod = asking.lease, asking.pod
        new = lease.bound(granted.ack, granted.station, asked=granted.asked, fuzz=_chance())
        net = new.net
        if net is None:
            self._return(new, pod)
            self._postpone(lease, f"the server {new.server} gives {new.address} without a subnet mask")
            return
        with self._leases.lock(lease.attachment):
            same = self._leases.read(lease.attachment) == lease
            if same:
                # The link first: a lease that says it is in use is not looked at before it has to be renewed.
                link.give(pod.route, pod.link, new, net)
                self._leases.write(new)
        if not same:
            self._return(new, pod)
        elif new.address == lease.address:
            turn.note(f"{lease.attachment} has {new.address} again")
        else:
            turn.note(
                f"{lease.attachment} has {new.address} in place of {lease.address}, which its runtime knows it by",
                level="warning",
            )

    def _return(self, granted: Lease, pod: Pod) -> None:
        """What was granted while its attachment was deleted; not what another ADD of it has been granted since."""
        with self._leases.lock(granted.attachment):
            if self._leases.read(granted.attachment) is None:
                farewell(granted, pod.netns)

    def _lose(self, lease: Lease, pod: Pod, why: str, turn: Turn) -> Lease | None:
        """Take the address from the pod; the lease as it is then, None when somebody else has changed it."""
        lost = lease.replace(state=LOST, next=uptime(), attempts=0, trouble=why)
        with self._leases.lock(lease.attachment):
            if self._leases.read(lease.attachment) != lease:
                return None
            link.take(pod.route, pod.link.index, lease.address)
            self._leases.write(lost)
        turn.note(f"{lease.attachment} has no address any more: {why}", level="warning")
        return lost

    def _failed(self, asking: _Asking) -> None:
        lease, failure = asking.lease, asking.talk.failure
        if failure is not None:
            said = f"cannot ask over {lease.ifname}: {failure.strerror}"
        elif asking.exchange.refused:
            said = f"the server refused what it had offered: {asking.exchange.refused}"
        elif lease.state == LOST:
            said = "no server answers"
        else:
            said = f"the server {lease.server} does not answer"
        if lease.state == LOST:
            self._postpone(lease, f"no address in place of {lease.address}: {said}")
        else:
            ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lease.until))
            self._postpone(lease, f"{said}; the lease of {lease.address} ends at {ends}")

    def _postpone(self, lease: Lease, trouble: str) -> None:
        """Until the next attempt: half of the time that is left, as the RFC has it, or ever longer once it is over."""
        now = uptime()
        if lease.state == LOST:
            pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2 ** min(lease.attempts, 10)) * (1 - _chance() / 4)
        else:
            limit = lease.rebind if now < lease.rebind else lease.expires
            # A short lease is asked for more often than each minute, or it would be lost by one lost packet.
            least = min(_USUAL_PAUSE, max(_SOON, (lease.expires - lease.renew) / 15))
            pause = min(max((limit - now) / 2, least), max(limit - now, 0.0))
        self._change(lease, lease.replace(next=now + pause, attempts=lease.attempts + 1, trouble=trouble))

    def _change(self, lease: Lease, to: Lease | None) -> bool:
        """Write it, or remove it for None, unless somebody else has changed it since; whether it was."""
        with self._leases.lock(lease.attachment):
            if self._leases.read(lease.attachment) != lease:
                return False
            if to is None:
                self._leases.remove(lease.attachment)
            else:
                self._leases.write(to, durable=to.expires != lease.expires)
        return True


class _Asking:
    """One lease, its pod, and what is asked about it."""

    def __init__(self, lease: Lease, pod: Pod) -> None:
        """Takes over `pod`. Raises OSError, and leaves it to the caller then."""
        begin = uptime()
        self.lease = lease
        self.pod = pod
        if lease.state == LOST:
            state, end = SELECTING, begin + _ASKING_FOR
        else:
            state = REBINDING if begin >= lease.rebind else RENEWING
            # Not past the moment from which something else has to be done.
            end = min(begin + _RENEWING_FOR, lease.expires if state == REBINDING else lease.rebind)
        self.exchange = Exchange(
            lease.client, state=state, begin=begin, end=end, address=lease.address, server=lease.server
        )
        self.talk = Talk(self.exchange, _line(lease, pod, state))

    def close(self) -> None:
        self.talk.line.close()
        self.pod.close()


def _line(lease: Lease, pod: Pod, state: str) -> Line:
    if state == SELECTING:
        return Broadcast(pod.netns, lease.ifname)
    if state == RENEWING:
        try:
            return Unicast(pod.netns, lease.ifname, source=lease.address, server=lease.server)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # by a client in the pod
                raise
    return Broadcast(pod.netns, lease.ifname, source=lease.address)


def _words(error: Exception) -> str:
    return f"{error.strerror} [{error.filename}]" if isinstance(error, OSError) and error.strerror else str(error)


def _chance() -> float:
    """From 0 to 1."""
    return os.urandom(1)[0] / 255
