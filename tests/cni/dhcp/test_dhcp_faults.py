"""dhcp killed or failed at each of its steps: the runtime's next call takes back what remains, at the server too."""

from __future__ import annotations

import errno
import json

import pytest

from tests.child import Finished, run, until
from tests.cni import faults
from tests.cni.calls import environment
from tests.cni.dhcp.lan import DIRECTORY, Dnsmasq, Lan, ipv4, leases
from tests.cni.dhcp.test_dhcp import add, call, conf, delete, give
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:dnsmasq")
KILLED = -9


def faulty(command: str, pod: Space, step: int, fault: str | int) -> Finished:
    env = environment(command, CNI_NETNS=pod.path, CNI_CONTAINERID=pod.name)
    return run(faults.program(step, fault, "dhcp"), env=env, stdin=json.dumps(conf()).encode())


def nothing_remains(server: Dnsmasq, pod: Space) -> None:
    until(lambda: not server.leases(), "the server has it back")
    assert leases() == [] and ipv4(pod) == set()


@pytest.mark.parametrize("after", ["DEL", "ADD", "GC"])
def test_dhcp_add_killed_at_any_step_is_taken_back_by_what_comes_next(lan: Lan, after: str) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    step = 0
    while (done := faulty("ADD", pod, step, "kill")).code == KILLED:
        if after == "ADD":
            add(pod)
            assert len(server.leases()) == 1
        elif after == "GC":
            assert call("GC", None, {**conf(), "cni.dev/valid-attachments": []}, CNI_NETNS=None)[0] == 0
            assert not list(DIRECTORY.glob(".np*"))
            nothing_remains(server, pod)
        delete(pod)
        nothing_remains(server, pod)
        step += 1
    assert done.code == 0 and step > 6
    delete(pod)


def test_dhcp_delete_killed_at_any_step_is_done_by_the_next(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.pod()
    step = 0
    while True:
        give(pod, add(pod))
        if faulty("DEL", pod, step, "kill").code != KILLED:
            break
        delete(pod)
        nothing_remains(server, pod)
        step += 1
    assert step > 3
    nothing_remains(server, pod)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPERM])
def test_dhcp_add_that_fails_at_any_step_leaves_nothing_behind(lan: Lan, error: int) -> None:
    """Every other step by each error: what one of them finds, the other would."""
    server = Dnsmasq(lan)
    pod = lan.pod()
    count = faulty("ADD", pod, 0, "count").ok().stderr.decode().count("step ")
    delete(pod)
    failed = 0
    for step in range(0 if error == errno.ENOSPC else 1, count, 2):
        done = faulty("ADD", pod, step, error)
        if done.code:
            failed += 1
            assert done.json()["code"] in (5, 7, 8, 11), done
            # By itself, without the DEL that comes; only what the step itself was to take back may remain for that.
            until(lambda: not server.leases() or leases(), "nothing is left, or it is known")
        delete(pod)
        nothing_remains(server, pod)
    assert failed > count / 4
