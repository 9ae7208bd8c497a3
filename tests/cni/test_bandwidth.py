"""bandwidth: what tc shows of a limited pod, how much really passes, and what is left of it."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.plugins.bandwidth.config import BandwidthConf, bucket
from nodeplug.core import document
from nodeplug.core.naming import identity
from nodeplug.kernel.rtnl.qdiscs import LONGEST
from tests.child import run
from tests.cni.calls import VERSIONS
from tests.cni.chains import Chain, result, wire
from tests.cni.pods import Network, host_links, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space

pytestmark = needs("sandbox", "program:tc", "link:ifb")

BOTH = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000}
INGRESS = {"ingressRate": 8_000_000, "ingressBurst": 800_000}
EGRESS = {"egressRate": 16_000_000, "egressBurst": 1_600_000}
ADDRESS, GATEWAY = "10.77.0.2", "10.77.0.1"


def bandwidth(ledger: Ledger, **config: Any) -> Network:
    return Network(ledger, type="bandwidth", **config)


class Pod:
    """A pod on a veth, and what a runtime knows of it."""

    def __init__(self, ledger: Ledger, address: str = ADDRESS, gateway: str = GATEWAY) -> None:
        self.space = ledger.netns()
        self.end = wire(ledger, self.space, "eth0", f"{address}/24")
        HERE.run("ip", "address", "add", f"{gateway}/24", "dev", self.end).ok()
        self.address, self.gateway = address, gateway
        self.result = result(self.space, f"{address}/24", host=(self.end,))
        self.ifb = ledger.link(identity("ifb", "pods", self.space.name, "eth0"))

    def add(self, network: Network, extra: Any = None) -> Any:
        return network.add(self.space, {"prevResult": self.result, **(extra or {})})


@pytest.fixture
def pod(ledger: Ledger) -> Pod:
    return Pod(ledger)


def tbf(name: str) -> dict[str, Any] | None:
    shown = json.loads(run(["tc", "-j", "qdisc", "show", "dev", name]).ok().stdout)
    return next((item["options"] for item in shown if item["kind"] == "tbf"), None)


def redirected_to(name: str) -> list[str]:
    shown = json.loads(run(["tc", "-j", "filter", "show", "dev", name, "ingress"]).ok().stdout or b"[]")
    actions = [action for item in shown for action in item.get("options", {}).get("actions", ())]
    return [action["to_dev"] for action in actions]


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_both_directions_are_limited_in_every_version(ledger: Ledger, pod: Pod, version: str) -> None:
    network = bandwidth(ledger, cniVersion=version, **BOTH)
    before = {**pod.result, "cniVersion": version}
    if version < "1":
        before["ips"] = [{**ip, "version": "4"} for ip in before["ips"]]
    answer = network.add(pod.space, {"prevResult": before})
    ingress, egress = tbf(pod.end), tbf(pod.ifb)
    assert ingress is not None and egress is not None
    assert (ingress["rate"], egress["rate"]) == (1_000_000, 2_000_000)
    assert (ingress["burst"], egress["burst"]) == (pytest.approx(100_000, rel=0.01), pytest.approx(200_000, rel=0.01))
    # tc tells the limit as the time that a packet waits behind a full bucket: 25 ms.
    assert (ingress["lat"], egress["lat"]) == (pytest.approx(25_000, rel=0.02), pytest.approx(25_000, rel=0.02))
    ifb = link(pod.ifb)
    assert ifb is not None and (ifb.up, ifb.mtu, ifb.txqlen) == (True, 1500, 0)
    assert redirected_to(pod.end) == [pod.ifb]
    assert answer["interfaces"] == [*before["interfaces"], {"name": pod.ifb, "mac": ifb.mac.hex(":")}]
    if version >= "0.4.0":
        network.check(pod.space, answer)
    network.delete(pod.space)
    assert link(pod.ifb) is None


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_versions_whose_results_name_no_interfaces_are_refused(ledger: Ledger, pod: Pod, version: str) -> None:
    error = bandwidth(ledger, cniVersion=version, **BOTH).refused("ADD", pod.space, {"prevResult": pod.result})
    assert error["code"] == 1


def test_one_direction_alone_is_limited(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **INGRESS)
    answer = pod.add(network)
    assert (tbf(pod.end) is not None, link(pod.ifb), answer) == (True, None, pod.result)
    network.check(pod.space, answer)
    network.delete(pod.space)
    other = Pod(ledger, "10.78.0.2", "10.78.0.1")
    network = bandwidth(ledger, **EGRESS)
    answer = other.add(network)
    assert (tbf(other.end), tbf(other.ifb) is not None) == (None, True)
    network.check(other.space, answer)


def test_the_configuration_goes_before_the_runtime_and_the_runtime_before_nothing(ledger: Ledger, pod: Pod) -> None:
    runtime = {"runtimeConfig": {"bandwidth": BOTH}}
    network = bandwidth(ledger, ingressRate=80_000_000, ingressBurst=800_000)
    pod.add(network, runtime)
    shown = tbf(pod.end)
    assert shown is not None and (shown["rate"], link(pod.ifb)) == (10_000_000, None)
    network = bandwidth(ledger)
    pod.add(network, runtime)
    shown = tbf(pod.end)
    assert shown is not None and (shown["rate"], link(pod.ifb) is not None) == (1_000_000, True)
    other = Pod(ledger, "10.78.0.2", "10.78.0.1")
    assert other.add(bandwidth(ledger, ingressRate=0), runtime) == other.result
    assert (tbf(other.end), link(other.ifb)) == (None, None)


@pytest.mark.parametrize("keys", [{}, {"runtimeConfig": {}}, {"runtimeConfig": {"bandwidth": {}}}])
def test_without_limits_the_result_before_passes_through(ledger: Ledger, pod: Pod, keys: dict[str, Any]) -> None:
    network = bandwidth(ledger, **keys)
    answer = pod.add(network)
    assert (answer, tbf(pod.end)) == (pod.result, None)
    network.check(pod.space, answer)
    network.delete(pod.space)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ingressRate": 8}, "$.ingressBurst: if rate is set, burst must also be set"),
        ({"egressBurst": 8}, "$.egressRate: if burst is set, rate must also be set"),
        ({"ingressRate": 8, "ingressBurst": 8 * LONGEST}, "burst cannot be more than 4GB"),
        ({"ingressRate": 7, "ingressBurst": 800}, "7 is less than a byte a second"),
        ({"ingressRate": -1}, "$.ingressRate: expected a whole number from 0"),
        ({"egressRate": 1.5}, "$.egressRate: expected a whole number"),
        ({"egressRate": "1M"}, "$.egressRate: expected a whole number"),
        ({"egressRate": 1 << 64}, "$.egressRate: expected a whole number"),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 8}}}, "$.runtimeConfig.bandwidth.egressBurst"),
    ],
)
def test_wrong_limits_are_named(ledger: Ledger, pod: Pod, keys: dict[str, Any], said: str) -> None:
    network = bandwidth(ledger, **keys)
    error = network.refused("ADD", pod.space, {"prevResult": pod.result})
    assert (error["code"], said in error["details"]) == (7, True)
    assert network.refused("STATUS")["code"] == 7


def test_the_largest_burst_and_rate_are_taken(ledger: Ledger, pod: Pod) -> None:
    most = {"Rate": 10**12, "Burst": 8 * (LONGEST - 1)}
    network = bandwidth(
        ledger, **{f"{way}{name}": value for way in ("ingress", "egress") for name, value in most.items()}
    )
    network.check(pod.space, pod.add(network))
    shown = tbf(pod.end)
    assert shown is not None and shown["rate"] == 125_000_000_000


def test_a_slow_rate_with_a_large_burst_is_checked_as_the_kernel_tells_it(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, ingressRate=1_000_000, ingressBurst=(1 << 31) - 1)
    network.check(pod.space, pod.add(network))


def test_a_burst_of_less_than_a_frame_is_made_one_and_told(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, ingressRate=8_000_000, ingressBurst=8000)
    stderr = network.warnings("ADD", pod.space, {"prevResult": pod.result})
    assert "ingressBurst of 8000 bits is less than one frame" in stderr
    assert sent(pod, seconds=0.3) > 0
    network.check(pod.space, pod.result)


@given(st.integers(8, (1 << 64) - 1), st.integers(1, 8 * LONGEST - 1), st.integers(68, 65535))
def test_any_limits_are_ones_the_kernel_can_hold(rate: int, burst: int, mtu: int) -> None:
    made = bucket(rate, burst, mtu)
    assert made is not None
    assert made.rate >= 1 and mtu < made.burst <= LONGEST and made.burst <= made.limit <= LONGEST
    assert 0 <= made.ticks <= 0xFFFFFFFF


def test_it_must_be_chained(ledger: Ledger, pod: Pod) -> None:
    error = bandwidth(ledger, **BOTH).refused("ADD", pod.space)
    assert (error["code"], error["msg"]) == (7, "must be called as chained plugin")


def test_a_result_that_does_not_name_the_hosts_end_is_refused(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **BOTH)
    nothing = {name: value for name, value in pod.result.items() if name == "cniVersion"}
    assert network.refused("ADD", pod.space, {"prevResult": nothing})["msg"] == "no interfaces provided"
    inside = {**pod.result, "interfaces": [{"name": "other"}, {"name": pod.end, "sandbox": pod.space.path}]}
    error = network.refused("ADD", pod.space, {"prevResult": {**inside, "ips": []}})
    assert "no veth peer of container interface eth0 found" in error["msg"]
    assert (tbf(pod.end), link(pod.ifb)) == (None, None)


def test_an_interface_without_a_peer_on_the_host_is_refused(ledger: Ledger, netns: Space) -> None:
    network = bandwidth(ledger, **BOTH)
    before = {"prevResult": result(netns, host=("cni0",))}
    assert "there is no interface eth0" in network.refused("ADD", netns, before)["msg"]
    netns.run("ip", "link", "add", "eth0", "type", "bridge").ok()
    assert "eth0 has no veth peer: it is of kind 'bridge'" in network.refused("ADD", netns, before)["msg"]
    netns.run("ip", "link", "delete", "eth0").ok()
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "here").ok()
    assert "is not on the host" in network.refused("ADD", netns, before)["msg"]


def test_the_right_veth_of_several_on_the_host_is_limited(ledger: Ledger, pod: Pod) -> None:
    others = [Pod(ledger, f"10.{n}.0.2", f"10.{n}.0.1") for n in (78, 79)]
    before = {
        **pod.result,
        "interfaces": [{"name": other.end} for other in others] + pod.result["interfaces"],
        "ips": [],
    }
    bandwidth(ledger, **BOTH).add(pod.space, {"prevResult": before})
    assert tbf(pod.end) is not None
    assert [tbf(other.end) for other in others] == [None, None]


def test_a_repeated_add_and_one_after_a_killed_one_replace_what_is_there(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **BOTH)
    answer = pod.add(network)
    assert [found["name"] for found in pod.add(network)["interfaces"]] == [
        found["name"] for found in answer["interfaces"]
    ]
    network.check(pod.space, answer)
    run(["ip", "link", "delete", pod.ifb]).ok()
    run(["ip", "link", "add", pod.ifb, "type", "ifb"]).ok()
    pod.add(network)
    network.check(pod.space, answer)


def test_a_foreign_link_of_the_ifbs_name_stays_and_nothing_is_left(ledger: Ledger, pod: Pod) -> None:
    run(["ip", "link", "add", pod.ifb, "type", "bridge"]).ok()
    error = bandwidth(ledger, **BOTH).refused("ADD", pod.space, {"prevResult": pod.result})
    assert "has the name that belongs to this pod's IFB" in error["msg"]
    found = link(pod.ifb)
    assert found is not None and (found.kind, tbf(pod.end), redirected_to(pod.end)) == ("bridge", None, [])


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
def test_somebody_elses_filters_are_left_alone_and_a_failed_add_leaves_nothing(
    ledger: Ledger, pod: Pod, kind: str
) -> None:
    run(["tc", "qdisc", "add", "dev", pod.end, kind]).ok()
    for port in (80, 81):
        rule = f"tc filter add dev {pod.end} ingress u32 match ip dport {port} 0xffff flowid 1:{port}"
        run(rule.split()).ok()
    before = run(["tc", "filter", "show", "dev", pod.end, "ingress"]).ok().text
    error = bandwidth(ledger, **BOTH).refused("ADD", pod.space, {"prevResult": pod.result})
    assert f"somebody else filters what {pod.end} receives: {kind} is there" in error["msg"]
    assert (tbf(pod.end), link(pod.ifb)) == (None, None)
    assert run(["tc", "filter", "show", "dev", pod.end, "ingress"]).ok().text == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("tc qdisc replace dev {end} root handle 1: tbf rate 9mbit burst 100000 limit 125000", "Rate doesn't match"),
        ("tc qdisc replace dev {end} root handle 1: tbf rate 8mbit burst 100000 limit 1250000", "Limit doesn't match"),
        ("tc qdisc replace dev {end} root handle 1: tbf rate 8mbit burst 90000 limit 125000", "Buffer doesn't match"),
        ("tc qdisc delete dev {end} root", "sends by noqueue, not by tbf"),
        ("tc qdisc delete dev {ifb} root", "not by tbf"),
        ("tc filter delete dev {end} ingress", "is not redirected to"),
        ("tc qdisc delete dev {end} ingress", "is not redirected to"),
        ("ip link set {ifb} down", "is down"),
        ("ip link delete {ifb}", "the IFB that the pod's packets should go to is not there"),
    ],
)
def test_check_names_what_was_changed(ledger: Ledger, pod: Pod, spoil: str, said: str) -> None:
    network = bandwidth(ledger, **BOTH)
    answer = pod.add(network)
    run(spoil.format(end=pod.end, ifb=pod.ifb).split()).ok()
    assert said in network.refused("CHECK", pod.space, {"prevResult": answer})["msg"]


def test_delete_needs_nothing_but_the_names_and_may_be_repeated(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **BOTH)
    pod.add(network)
    pod.space.remove()
    for _ in range(2):
        network.delete(pod.space, {name: None for name in BOTH}, CNI_NETNS="")
        assert link(pod.ifb) is None


def test_two_interfaces_of_a_pod_have_an_ifb_each(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **EGRESS)
    end = wire(ledger, pod.space, "eth1", peer="second")
    pod.add(network)
    second = result(pod.space, ifname="eth1", host=(end,))
    answer = network.add(pod.space, {"prevResult": second}, CNI_IFNAME="eth1")
    network.delete(pod.space)
    assert (link(pod.ifb), link(answer["interfaces"][-1]["name"]) is not None) == (None, True)
    network.delete(pod.space, CNI_IFNAME="eth1")
    assert link(answer["interfaces"][-1]["name"]) is None


def test_what_the_reference_plugin_made_is_what_we_make_and_delete(ledger: Ledger, pod: Pod) -> None:
    network = bandwidth(ledger, **BOTH)
    config = {**network.config, "cniVersion": "1.0.0", "prevResult": {**pod.result, "cniVersion": "1.0.0"}}
    done = run(["/usr/lib/cni/bandwidth"], env=network.env("ADD", pod.space), stdin=json.dumps(config).encode())
    assert done.code == 0, done.text
    (theirs,) = (name for name in host_links() if name.startswith("bwp"))
    before, behind = tbf(pod.end), tbf(theirs)
    network.delete(pod.space)
    assert link(theirs) is None
    for parent in ("root", "ingress"):
        run(["tc", "qdisc", "delete", "dev", pod.end, parent]).ok()
    pod.add(network)
    assert before is not None and behind is not None
    for one, other in ((before, tbf(pod.end)), (behind, tbf(pod.ifb))):
        assert other is not None
        assert one["rate"] == other["rate"]
        assert one["burst"] == pytest.approx(other["burst"], rel=0.01)
        assert one["lat"] == pytest.approx(other["lat"], rel=0.05)


def test_gc_deletes_the_ifbs_of_its_network_whose_attachment_is_not_valid(ledger: Ledger, pod: Pod) -> None:
    dead, other = Pod(ledger, "10.78.0.2", "10.78.0.1"), Pod(ledger, "10.79.0.2", "10.79.0.1")
    network, elsewhere = bandwidth(ledger, **EGRESS), bandwidth(ledger, name="other", **EGRESS)
    pod.add(network)
    dead.add(network)
    theirs = ledger.link(other.add(elsewhere)["interfaces"][-1]["name"])
    run(["ip", "link", "add", ledger.link("ifb7"), "type", "ifb"]).ok()
    valid = {"cni.dev/valid-attachments": [{"containerID": pod.space.name, "ifname": "eth0"}]}
    assert network.ask("GC", None, valid) == (0, None)
    assert [link(name) is not None for name in (pod.ifb, dead.ifb, theirs, "ifb7")] == [True, False, True, True]


def sent(pod: Pod, *, seconds: float = 0.7, by_pod: bool = False) -> float:
    """Bytes a second that arrive, from the host in the pod or the other way."""
    sender, receiver = (pod.space, HERE) if by_pod else (HERE, pod.space)
    address = pod.gateway if by_pod else pod.address
    server = receiver.call(socket.socket)
    client = sender.call(socket.socket)
    with server, client:
        server.bind((address, 0))
        server.listen(1)
        client.settimeout(5)
        client.connect(server.getsockname())
        stream, _ = server.accept()
        stop = threading.Event()

        def pump() -> None:
            block = bytes(1 << 16)
            while not stop.is_set():
                try:
                    client.sendall(block)
                except OSError:
                    return

        thread = threading.Thread(target=pump)
        thread.start()
        total, begin = 0, time.monotonic()
        with stream:
            while (elapsed := time.monotonic() - begin) < seconds:
                total += len(stream.recv(1 << 20))
            stop.set()
        thread.join()
    return total / elapsed


@pytest.mark.parametrize("by_pod", [False, True], ids=["into the pod", "out of the pod"])
def test_a_limited_pod_moves_a_fraction_of_what_an_unlimited_one_does(ledger: Ledger, pod: Pod, by_pod: bool) -> None:
    free = Pod(ledger, "10.78.0.2", "10.78.0.1")
    rate = 5_000_000  # bytes a second
    way = "egress" if by_pod else "ingress"
    pod.add(bandwidth(ledger, **{f"{way}Rate": 8 * rate, f"{way}Burst": 8 * 100_000}))
    limited, unlimited, back = sent(pod, by_pod=by_pod), sent(free, by_pod=by_pod), sent(pod, by_pod=not by_pod)
    assert 0 < limited < unlimited / 3
    assert limited < back / 3, "the other direction is free"
    assert limited < 3 * rate


def test_every_key_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cni" / "bandwidth.md").read_text()
    assert document.reference(BandwidthConf).strip() in page


def test_the_example_of_its_page_runs_with_the_runtimes_limits(ledger: Ledger, netns: Space) -> None:
    chain = Chain.of_page(ledger, "cni/bandwidth.md", "limited.conflist")
    answer = chain.add(netns, bandwidth=BOTH)
    end, ifb = answer["interfaces"][1]["name"], answer["interfaces"][-1]["name"]
    assert tbf(end) is not None and tbf(ifb) is not None
    chain.check(netns, bandwidth=BOTH)
    chain.status()
    chain.delete(netns, bandwidth=BOTH)
    assert host_links() == {"cni0"}
