"""The chore that keeps leases: in time, in the right namespace, and through all that servers, pods and clocks do."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.ipam.dhcp import renewal, sandbox
from nodeplug.cni.ipam.dhcp.lease import BOUND, LOST, REQUESTING, uptime
from nodeplug.cni.ipam.dhcp.renewal import Renewal
from nodeplug.kernel import netns as namespaces
from nodeplug.worker.keeper import Turn
from tests.child import until
from tests.cni.dhcp.lan import (
    ACK,
    DIRECTORY,
    DISCOVER,
    NAK,
    RELEASE,
    REQUEST,
    SERVER,
    Dnsmasq,
    Faulty,
    Heard,
    Lan,
    default_routes,
    ipv4,
    leases,
    reply,
    rewrite,
    the_lease,
)
from tests.cni.dhcp.test_dhcp import add, call, conf, delete, give, refused
from tests.cni.injection import killed_at, steps_of
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = [needs("sandbox", "program:dnsmasq"), pytest.mark.usefixtures("brief", "unattended")]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are short: a server on the same machine answers at once, or not at all."""
    monkeypatch.setattr(renewal, "_RENEWING_FOR", 0.4)
    monkeypatch.setattr(renewal, "_ASKING_FOR", 0.8)


@pytest.fixture
def unattended(configure: Callable[..., None]) -> None:
    configure('unattended = "0s"')


class Run:
    """One run of the chore, and what it said."""

    def __init__(self, chore: Renewal | None = None) -> None:
        self.said: list[str] = []
        stop = os.eventfd(0)
        try:
            turn = Turn(stop, lambda message, **_more: self.said.append(message))
            self.again = (chore or Renewal({})).run(turn)
            self.troubles = dict(turn.troubles)
        finally:
            os.close(stop)

    @property
    def trouble(self) -> str:
        return " ".join(self.troubles.values())


def running(lan: Lan, **more: Any) -> tuple[Faulty, Space]:
    """A server, and a pod with an address and routes as its main plugin gives them."""
    server = Faulty(lan, **more)
    pod = lan.pod()
    result = add(pod)
    give(pod, result)
    pod.run("ip", "route", "add", "default", "via", SERVER).ok()
    server.heard.clear()
    return server, pod


def test_nothing_is_done_before_its_time(lan: Lan) -> None:
    server, pod = running(lan)
    done = Run()
    assert server.heard == [] and done.said == [] and not done.troubles
    assert done.again is not None and 0.8 * 1800 < done.again <= 1800
    delete(pod)
    assert Run().again is None


def test_a_lease_is_renewed_by_its_server_alone_and_from_its_address(lan: Lan) -> None:
    server, pod = running(lan)
    before = rewrite(renew=-1.0)
    assert not Run().troubles
    (request,) = server.heard
    assert request.type == REQUEST and request.sender == ("10.5.0.50", 68) and request.ciaddr == "10.5.0.50"
    assert not {50, 54} & request.options.keys()
    after = the_lease()
    assert after.expires > before.expires and after.renew > uptime()
    assert after.replace(**{name: 0 for name in ("renew", "expires", "rebind", "until", "next")}) == before.replace(
        **{name: 0 for name in ("renew", "expires", "rebind", "until", "next")}
    )
    assert ipv4(pod) == {"10.5.0.50/24"} and default_routes(pod) == {SERVER}
    delete(pod)


def test_a_real_server_renews(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    give(pod, add(pod))
    rewrite(renew=-1.0, expires=100.0)
    assert not Run().troubles
    assert the_lease().expires > uptime() + 3000
    assert server.heard("DHCPACK") == 2
    # Rebound: by nobody's name, past the routes of the pod.
    rewrite(renew=-2.0, rebind=-1.0, expires=100.0)
    pod.run("ip", "route", "flush", "table", "main").ok()
    assert not Run().troubles
    assert the_lease().expires > uptime() + 3000 and server.heard("DHCPACK") == 3
    delete(pod)
    until(lambda: not server.leases(), "it is given back")


def test_a_server_that_is_away_is_asked_again_after_half_of_the_time_that_is_left(lan: Lan) -> None:
    server, pod = running(lan, silent=False)
    server.silent = True
    before = rewrite(renew=-1.0, rebind=1000.0, expires=2000.0)
    done = Run()
    after = the_lease()
    assert f"the server {SERVER} does not answer; the lease of 10.5.0.50 ends at 2" in done.trouble
    assert (after.state, after.attempts, after.expires) == (BOUND, 1, before.expires)
    assert 450 < after.next - uptime() < 510
    assert done.again is not None and done.again <= 510
    # It is told again by each run until it is well, though it is not asked about.
    asked = len(server.heard)
    assert Run().troubles and len(server.heard) == asked
    server.silent = False
    rewrite(next=uptime() - 1)
    done = Run()
    assert not done.troubles and (the_lease().attempts, the_lease().trouble) == (0, "")
    assert all(heard.sender[0] == "10.5.0.50" for heard in server.heard)
    delete(pod)


def test_short_leases_are_asked_for_more_often_than_each_minute(lan: Lan) -> None:
    server, pod = running(lan, lasts=60)
    server.silent = True
    rewrite(renew=-1.0, rebind=20.0, expires=30.0)
    Run()
    assert 5 < the_lease().next - uptime() <= 10
    delete(pod)


def test_between_t1_and_t2_the_server_is_asked_and_then_any(lan: Lan) -> None:
    server, pod = running(lan)
    rewrite(renew=-2.0, rebind=-1.0)

    def answer(heard: Heard) -> list[bytes]:
        return [reply(heard, ACK, "10.5.0.50", {**server.options, 51: b"\0\0\x0e\x10"}, server="10.5.0.7")]

    server.answer = answer
    # The pod lets nothing out that it did not ask for itself: a packet socket does not mind.
    pod.run("ip", "route", "flush", "table", "main").ok()
    assert not Run().troubles
    (request,) = server.heard
    assert request.ciaddr == "10.5.0.50" and not request.broadcast
    assert str(the_lease().server) == "10.5.0.7"
    delete(pod)


def test_a_client_in_the_pod_that_has_the_port_does_not_keep_a_lease_from_being_renewed(lan: Lan) -> None:
    _server, pod = running(lan)

    def take() -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind(("0.0.0.0", 68))
        return found

    held = pod.call(take)
    try:
        rewrite(renew=-1.0)
        assert not Run().troubles
        assert the_lease().renew > uptime()
    finally:
        held.close()
    delete(pod)


def test_a_lease_that_has_ended_takes_its_address_along_and_comes_back_with_the_server(lan: Lan) -> None:
    server, pod = running(lan)
    result = {**conf(), "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.50/24"}]}}
    server.silent = True
    rewrite(renew=-3.0, rebind=-2.0, expires=-1.0)
    done = Run()
    assert ipv4(pod) == set() and default_routes(pod) == set()
    assert "UP" in pod.ip("link", "show", "eth0")[0]["flags"]  # to ask for another
    assert (the_lease().state, the_lease().attempts) == (LOST, 1)
    assert "no address in place of 10.5.0.50: no server answers" in done.trouble
    assert any("has no address any more" in line for line in done.said)
    assert "has ended" in refused("CHECK", pod, result)["msg"]
    assert {heard.type for heard in server.heard} == {DISCOVER}
    first = the_lease().next - uptime()
    rewrite(next=uptime() - 1)
    Run()
    assert the_lease().next - uptime() > 1.3 * first  # ever less often
    server.silent = False
    rewrite(next=uptime() - 1)
    done = Run()
    assert not done.troubles and "has 10.5.0.50 again" in done.said[-1]
    assert ipv4(pod) == {"10.5.0.50/24"} and default_routes(pod) == {SERVER}
    assert server.heard[-2].options[50] == socket.inet_aton("10.5.0.50")
    assert call("CHECK", pod, result)[0] == 0
    delete(pod)
    until(lambda: server.count(RELEASE) > 0, "it is given back")


def test_an_address_that_somebody_else_has_by_now_is_replaced_by_another(lan: Lan) -> None:
    server, pod = running(lan)
    server.address = "10.5.0.77"
    rewrite(renew=-3.0, rebind=-2.0, expires=-1.0)
    done = Run()
    assert ipv4(pod) == {"10.5.0.77/24"} and default_routes(pod) == {SERVER}
    assert "has 10.5.0.77 in place of 10.5.0.50" in done.said[-1]
    result = {**conf(), "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.50/24"}]}}
    assert "was given 10.5.0.77 when an earlier lease had ended" in refused("CHECK", pod, result)["msg"]
    delete(pod)
    until(lambda: server.count(RELEASE) > 0, "the new one is given back")
    assert server.heard[-1].ciaddr == "10.5.0.77"


def test_a_server_that_takes_an_address_back_is_obeyed_at_once(lan: Lan) -> None:
    server, pod = running(lan)
    server.nak = True
    rewrite(renew=-1.0)
    done = Run()
    assert ipv4(pod) == set() and the_lease().state == LOST
    assert "the server took 10.5.0.50 back: not today?" in done.trouble
    assert done.again is not None and done.again <= 2
    server.nak = False
    Run()
    assert ipv4(pod) == {"10.5.0.50/24"}
    delete(pod)


@pytest.mark.parametrize(
    "kind", ["wrong transaction", "wrong client", "another address", "another server", "cut", "noise"]
)
def test_what_is_no_answer_renews_nothing_and_takes_nothing_away(lan: Lan, kind: str) -> None:
    server, pod = running(lan)

    def answer(heard: Heard) -> list[bytes]:
        options = {**server.options, 51: b"\0\0\xff\xff"}
        if kind == "wrong transaction":
            return [reply(heard, number, "10.5.0.50", options, xid=heard.xid ^ 1) for number in (ACK, NAK)]
        if kind == "wrong client":
            return [reply(heard, number, "10.5.0.50", options, chaddr=b"\2\0\0\0\0\1") for number in (ACK, NAK)]
        if kind == "another address":
            return [reply(heard, ACK, "10.5.0.51", options)]
        if kind == "another server":
            return [reply(heard, number, "10.5.0.50", options, server="10.5.0.9") for number in (ACK, NAK)]
        whole = reply(heard, ACK, "10.5.0.50", options)
        return [whole[:-4], whole[:100]] if kind == "cut" else [os.urandom(300), b""]

    server.answer = answer
    before = rewrite(renew=-1.0)
    assert Run().troubles
    assert ipv4(pod) == {"10.5.0.50/24"}
    assert the_lease().expires == before.expires
    delete(pod)


@pytest.mark.parametrize(
    "what", ["a pod that has ended", "its path leads nowhere", "another namespace", "another link"]
)
def test_a_pod_that_has_gone_is_not_looked_for_elsewhere(lan: Lan, ledger: Ledger, what: str) -> None:
    server, pod = running(lan)
    if what == "another link":
        pod.run("ip", "link", "delete", "eth0").ok()
        lan.plug(pod, "eth0")
        stranger = pod
    else:
        path = Path(pod.path)
        pod.remove()
        stranger = ledger.netns()
        lan.plug(stranger, "eth0")
        if what == "another namespace":
            path.symlink_to(stranger.path)
            ledger.adopt("path", lambda: path.unlink(missing_ok=True))
        elif what == "its path leads nowhere":
            path.write_text("a runtime that was killed leaves this")
            ledger.adopt("path", lambda: path.unlink(missing_ok=True))
    stranger.run("ip", "address", "add", "10.5.0.50/24", "dev", "eth0").ok()
    rewrite(renew=-1.0, rebind=50.0, expires=100.0)
    done = Run()
    assert server.heard == [] and not done.troubles
    assert done.again is not None and 90 < done.again <= 100  # and then it is forgotten
    rewrite(renew=-3.0, rebind=-2.0, expires=-1.0)
    Run()
    assert leases() == [] and server.heard == []
    assert ipv4(stranger) == {"10.5.0.50/24"}


def test_a_namespace_with_the_inode_of_one_that_has_ended_is_another(lan: Lan) -> None:
    """The kernel gives inodes of namespaces again; what it never gives again is the cookie."""
    server, pod = running(lan)
    found = the_lease().sandbox
    assert found.cookie, "this kernel gives cookies"
    rewrite(renew=-1.0, sandbox=found.replace(cookie=found.cookie - 1))
    Run()
    assert server.heard == []
    delete(pod)


def test_the_daemons_own_namespace_is_never_worked_in(lan: Lan) -> None:
    """However a lease came to name it: by a process number given again, say."""
    server = Faulty(lan)
    name = lan.uplink()
    pod = lan.pod()
    add(pod)
    server.heard.clear()
    index = socket.if_nametoindex(name)
    device, inode = namespaces.own_identity()
    with namespaces.Netns.open("/proc/self/ns/net") as own:
        cookie = namespaces.cookie(own)
    here = sandbox.Sandbox(
        path="/proc/self/ns/net", boot=sandbox.boot(), device=device, inode=inode, cookie=cookie, index=index
    )
    assert here.enter(name) is None
    rewrite(renew=-3.0, rebind=-2.0, expires=-1.0, sandbox=here)
    Run()
    assert server.heard == [] and leases() == []


def test_what_is_left_of_the_boot_before_is_kept_until_the_server_forgets_it(lan: Lan) -> None:
    server, pod = running(lan)
    before = the_lease().sandbox.replace(boot="the boot before")
    rewrite(sandbox=before, renew=-3.0, rebind=-2.0, expires=-1.0, until=time.time() + 100)
    done = Run()
    assert done.again is not None and 90 < done.again <= 100
    assert ipv4(pod) == {"10.5.0.50/24"} and server.heard == []
    rewrite(sandbox=before, until=time.time() - 1)
    Run()
    assert leases() == [] and server.heard == []


def test_a_wall_clock_that_jumps_renews_and_ends_nothing(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    server, pod = running(lan)
    true = time.time
    for by in (-1e8, 1e8):
        monkeypatch.setattr(time, "time", lambda by=by: true() + by)
        done = Run()
        assert server.heard == [] and not done.troubles
        assert done.again is not None and done.again > 1000
    monkeypatch.undo()
    assert ipv4(pod) == {"10.5.0.50/24"}
    delete(pod)


def test_a_lease_that_was_deleted_while_it_was_renewed_stays_deleted(lan: Lan) -> None:
    server, pod = running(lan)

    def answer(heard: Heard) -> list[bytes]:
        if heard.type == REQUEST:
            next(DIRECTORY.glob("np*")).unlink()
        return server.lease(heard)

    server.answer = answer
    rewrite(renew=-1.0)
    Run()
    assert leases() == []
    until(lambda: server.count(RELEASE) > 0, "what was granted in vain is given back")
    assert ipv4(pod) == set()


def test_a_lease_that_an_add_has_taken_anew_meanwhile_is_left_to_it(lan: Lan) -> None:
    server, pod = running(lan)
    newer = the_lease().replace(state=REQUESTING, next=uptime() + 20)

    def answer(heard: Heard) -> list[bytes]:
        if heard.type == REQUEST and server.count(REQUEST) == 1:
            rewrite(**newer.__dict__ | {"renew": 1e6, "rebind": 1e6, "expires": 1e6})
        return server.lease(heard)

    server.answer = answer
    rewrite(renew=-1.0)
    Run()
    assert the_lease().state == REQUESTING and server.count(RELEASE) == 0
    assert ipv4(pod) == {"10.5.0.50/24"}
    delete(pod)


def test_a_link_that_is_down_is_trouble_and_no_end(lan: Lan) -> None:
    server, pod = running(lan)
    pod.run("ip", "link", "set", "eth0", "down").ok()
    rewrite(renew=-2.0, rebind=-1.0)
    assert "Network is down" in Run().trouble
    pod.run("ip", "link", "set", "eth0", "up").ok()
    rewrite(next=uptime() - 1)
    assert not Run().troubles
    assert server.count(REQUEST) == 1
    delete(pod)


def test_a_file_that_is_no_lease_is_told_of_and_the_others_go_on(lan: Lan) -> None:
    server, pod = running(lan)
    rewrite(renew=-1.0)
    (DIRECTORY / "npbroken").write_text('{"network": 7}')
    done = Run()
    assert list(done.troubles) == [str(DIRECTORY / "npbroken")] and "remove it" in done.trouble
    assert server.count(REQUEST) == 1
    (DIRECTORY / "npbroken").unlink()
    delete(pod)


def test_a_disk_that_takes_nothing_is_not_hammered(lan: Lan, ledger: Ledger, configure: Callable[..., None]) -> None:
    from tests.child import run

    place = ledger.directory()
    run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]).ok()
    configure(f'directory = "{place}"\nunattended = "0s"')
    chore = Renewal({"cni": {"dhcp": {"directory": str(place)}}})
    server, pod = running(lan)
    (lease,) = chore._leases.all()
    chore._leases.write(lease.replace(next=0.0))  # type: ignore[union-attr]  # it is one
    filler = place / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 65536)
    done = Run(chore)
    assert "No space left" in done.trouble and done.again == 10.0
    filler.unlink()
    assert not Run(chore).troubles
    assert server.count(REQUEST) == 2
    delete(pod)


def test_many_are_renewed_at_once(lan: Lan) -> None:
    server = Faulty(lan)
    pods = [lan.pod() for _ in range(12)]
    for number, pod in enumerate(pods):
        server.address = f"10.5.0.{100 + number}"
        give(pod, add(pod))

    def answer(heard: Heard) -> list[bytes]:
        server.address = heard.ciaddr
        return server.lease(heard)

    server.answer = answer
    chore = Renewal({})
    for lease in leases():
        chore._leases.write(lease.replace(next=0.0))
    server.silent = True
    began = time.monotonic()
    assert len(Run(chore).troubles) == 12
    # All at one time: one after another they would take twelve times one attempt.
    assert time.monotonic() - began < 12 * 0.4
    for lease in leases():
        chore._leases.write(lease.replace(next=0.0))
    server.silent = False
    assert not Run(chore).troubles
    assert all(lease.attempts == 0 and lease.renew > uptime() for lease in leases())
    for pod in pods:
        delete(pod)


SCENES: dict[str, dict[str, float]] = {
    "renewing": {"renew": -1.0},
    "rebinding": {"renew": -2.0, "rebind": -1.0},
    "ended": {"renew": -3.0, "rebind": -2.0, "expires": -1.0},
}


@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_any_step_the_next_run_goes_on(lan: Lan, scene: str) -> None:
    _server, pod = running(lan)
    work = lambda: Run() and 0  # noqa: E731  # what the child does
    rewrite(**SCENES[scene])
    steps = steps_of(work, "nodeplug/dhcp")
    assert len(steps) > 2
    for step in range(len(steps)):
        rewrite(**SCENES[scene])
        killed_at(step, work, "nodeplug/dhcp")
        if the_lease().next > uptime() and the_lease().state == BOUND:
            assert ipv4(pod) == {"10.5.0.50/24"}, (step, steps)
        Run()
        Run()
        assert the_lease().state == BOUND and the_lease().renew > uptime(), (step, steps)
        assert ipv4(pod) == {"10.5.0.50/24"}, (step, steps)
        assert not list(DIRECTORY.glob(".np*")), (step, steps)
    delete(pod)
