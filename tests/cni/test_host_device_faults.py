"""host-device met by faults: killed or failed at each step, the next call brings the device home."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeplug.cni.plugins.hostdevice import loans
from tests.child import Finished, run
from tests.cni import faults
from tests.cni.pods import Network, host_local, link
from tests.cni.test_host_device import at_home, device, loan_files, network
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

__all__ = ["device", "network"]  # fixtures
pytestmark = [needs("sandbox"), pytest.mark.timeout(300)]

KILLED = -9


def faulty(network: Network, pod: Space, command: str, step: int, fault: str | int) -> Finished:
    program = faults.program(step, fault, "host-device")
    return run(program, env=network.env(command, pod), stdin=json.dumps(network.config).encode())


def test_an_add_that_is_killed_at_any_step_is_taken_back_by_delete(ledger: Ledger, device: str) -> None:
    network = Network(ledger, type="host-device", device=device, ipam=host_local())
    step = 0
    while True:
        pod = ledger.netns()
        killed = faulty(network, pod, "ADD", step, "kill").code == KILLED
        network.delete(pod)
        assert at_home(), f"killed at step {step}"
        assert (pod.links(), network.leases()) == ({"lo"}, set()), f"killed at step {step}"
        if not killed:
            break
        step += 1
    assert step > 5


def test_an_add_that_is_killed_at_any_step_can_be_made_again(network: Network, netns: Space) -> None:
    for step in range(100):
        killed = faulty(network, netns, "ADD", step, "kill").code == KILLED
        found = loans.find(network_attachment(netns))
        if found is not None and found.finished:
            break
        result = network.add(netns)
        network.check(netns, result)
        network.delete(netns)
        assert at_home(), f"killed at step {step}"
        assert killed
    network.delete(netns)
    assert at_home()


def network_attachment(pod: Space) -> loans.Attachment:
    return loans.Attachment(network="pods", container=pod.name, ifname="eth0")


def test_a_delete_that_is_killed_at_any_step_is_finished_by_the_next(network: Network, netns: Space) -> None:
    for step in range(100):
        network.add(netns)
        killed = faulty(network, netns, "DEL", step, "kill").code == KILLED
        network.delete(netns)
        assert at_home(), f"killed at step {step}"
        if not killed:
            return
    raise AssertionError("a DEL has fewer steps")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
def test_an_add_of_which_any_step_fails_leaves_the_device_at_home(network: Network, netns: Space, number: int) -> None:
    for step in range(100):
        done = faulty(network, netns, "ADD", step, number)
        if done.code == 0:
            network.delete(netns)
            assert at_home()
            return
        assert json.loads(done.stdout)["code"]
        # The fault may be in the way home, or of what notes that it is; then DEL is what a runtime calls next.
        network.delete(netns)
        assert at_home(), f"failed at step {step}"
        assert netns.links() == {"lo"}
    raise AssertionError("an ADD has fewer steps")


def test_of_many_pods_that_ask_at_once_one_has_the_device(ledger: Ledger, network: Network) -> None:
    pods = [ledger.netns() for _ in range(8)]
    with ThreadPoolExecutor(len(pods)) as pool:
        done = list(pool.map(lambda pod: network.executable("ADD", pod), pods))
    winners = [pod for pod, outcome in zip(pods, done, strict=True) if outcome.code == 0]
    assert len(winners) == 1
    assert [pod.name for pod in pods if "eth0" in pod.links()] == [winners[0].name]
    assert len(loan_files()) == 1
    with ThreadPoolExecutor(len(pods)) as pool:
        assert all(outcome.code == 0 for outcome in pool.map(lambda pod: network.executable("DEL", pod), pods))
    assert at_home()


def test_a_virtual_device_ends_with_its_pod_and_delete_forgets_it(network: Network, ledger: Ledger) -> None:
    pod = ledger.netns()
    network.add(pod)
    pod.remove()
    network.delete(pod)
    assert (link("ens5"), loan_files()) == (None, [])
