"""What the reference plugins made is removed by ours: by DEL, by GC, and before its address serves another pod.

In each layout: iptables-nft, iptables-legacy, and nft tables of their own; both families.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.reference import census
from nodeplug.core import paths
from tests.child import run, until
from tests.cni import faults
from tests.cni.calls import ask, environment
from tests.cni.hostports import to
from tests.cni.pods import REFERENCE
from tests.cni.references import (
    KINDS,
    LEGACY,
    NFT,
    OWN,
    References,
    about,
    addresses,
    make,
    named,
    rules,
)
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space
from tests.traffic import Echo, exchange, reaches

pytestmark = needs("sandbox", f"file:{REFERENCE}/bridge", "program:iptables-legacy", "program:nft", "program:conntrack")
PORTS = (to(8080, 80), to(8081, 81, "udp"), to(8082, 82, "tcp", "192.0.2.1"))
OTHERS = (to(9080, 80), to(9081, 81, "udp"))
STAYS = ("CNI-HOSTPORT-", "CNI-FORWARD", "CNI-ADMIN")


@pytest.fixture(params=KINDS)
def references(request: pytest.FixtureRequest, ledger: Ledger) -> References:
    return make(ledger, request.param)


def delete_chain(references: References, pod: Space, result: Any, *mappings: dict[str, Any], **more: Any) -> None:
    """The chain's DEL, from its end to its begin."""
    extra = {"prevResult": result} if result is not None else {}
    references.delete(pod, references.firewall, **extra, **more)
    ports = {"runtimeConfig": {"portMappings": list(mappings)}} if mappings else {}
    references.delete(pod, references.portmap, **extra, **ports, **more)
    references.delete(pod, references.bridge, **extra, **more)
    references.forget(pod)


def traces(pod: Space, result: Any) -> list[str]:
    return about(*named(pod), *addresses(result))


def pods_chains() -> list[str]:
    """What is there of any pod of theirs, the chains that they keep apart."""
    found = [line for line in about("CNI-", "cni-br", "10.88.", "fd88:") if not any(name in line for name in STAYS)]
    return [line for line in found if not line.startswith("#")]


WAYS: dict[str, dict[str, Any]] = {
    "with all": {},
    "without result": {"result": False},
    "without port mappings": {"ports": False},
    "without anything": {"result": False, "ports": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_del_removes_all_of_one_pod_and_nothing_of_another(references: References, ledger: Ledger, way: str) -> None:
    how = WAYS[way]
    first, second = ledger.netns(), ledger.netns()
    kept = references.add(second, *OTHERS, firewall=True)
    before = rules()
    result = references.add(first, *PORTS, firewall=True)
    assert len(traces(first, result)) > 8
    mappings = PORTS if how.get("ports", True) else ()
    delete_chain(references, first, result if how.get("result", True) else None, *mappings)
    assert traces(first, result) == []
    assert rules() == before
    assert first.links() == {"lo"}
    delete_chain(references, first, result, *PORTS)
    assert rules() == before
    delete_chain(references, second, kept, *OTHERS)
    assert pods_chains() == []


def test_del_without_a_namespace_removes_by_the_result(references: References, ledger: Ledger) -> None:
    pod = ledger.netns()
    result = references.add(pod, *PORTS, firewall=True)
    pod.remove()
    delete_chain(references, pod, result, *PORTS, netns="")
    assert pods_chains() == []
    assert list(references.leases.glob("*/*.*.*.*")) == []


def test_gc_removes_what_is_in_no_list_and_keeps_what_is(references: References, ledger: Ledger) -> None:
    lost, valid, elsewhere = ledger.netns(), ledger.netns(), ledger.netns()
    other = References(ledger, references.kind, name="other", subnets=("10.77.0.0/24",))
    kept = references.add(valid, *OTHERS, firewall=True), other.add(elsewhere, to(7070, 70), firewall=True)
    before = rules()
    result = references.add(lost, *PORTS, firewall=True)
    lost.remove()
    for plugin in (references.bridge, references.portmap, references.firewall):
        references.gc(plugin, lost, valid)
    assert len(traces(lost, result)) > 8
    references.forget(lost)
    for plugin in (references.bridge, references.portmap, references.firewall):
        references.gc(plugin, valid)
    assert traces(lost, result) == []
    assert rules() == before
    for pod, found in zip((valid, elsewhere), kept, strict=True):
        assert about(*named(pod, "pods" if pod is valid else "other"), *addresses(found))


def test_gc_leaves_what_it_cannot_attribute_where_runtimes_results_cannot_be_read(
    references: References, ledger: Ledger
) -> None:
    """Rules of the firewall, and host ports in nft's tables, name no network; one network's list is not enough."""
    pod = ledger.netns()
    result = references.add(pod, *PORTS, firewall=True)
    (file,) = Path("/var/lib/cni/results").iterdir()
    file.write_text("cut off in the mid")
    before = about("dnat", "ACCEPT", "accept") if references.kind == OWN else about("CNI-FORWARD")
    references.gc(references.portmap)
    references.gc(references.firewall)
    assert (about("dnat", "ACCEPT", "accept") if references.kind == OWN else about("CNI-FORWARD")) == before
    delete_chain(references, pod, result, *PORTS)


def test_a_chain_of_two_interfaces_of_a_container_loses_one_by_one(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    pod = ledger.netns()
    results = [references.add(pod, ifname=name) for name in ("eth0", "net1")]
    four = [addresses(result)[0] for result in results]
    references.delete(pod, references.bridge, prevResult=results[0])
    assert (bool(about(f"saddr {four[0]} ")), bool(about(f"saddr {four[1]} "))) == (False, True)
    references.delete(pod, references.bridge, prevResult=results[1], ifname="net1")
    assert pods_chains() == []


def test_policies_of_bridges_go_with_the_last_pod_that_has_rules(ledger: Ledger) -> None:
    for kind in (NFT, LEGACY):
        references = make(ledger, kind)
        one, two = ledger.netns(), ledger.netns()
        results = [references.add(pod, firewall=True) for pod in (one, two)]
        delete_chain(references, one, results[0])
        assert about("CNI-ISOLATION-STAGE-2")
        delete_chain(references, two, results[1])
        assert about("CNI-ISOLATION") == []
        assert about("CNI-FORWARD")  # which ours share


def test_a_late_del_leaves_the_rules_of_whoever_has_the_address_now(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    before, now = ledger.netns(), ledger.netns()
    result = references.add(before, firewall=True)
    delete_chain(references, before, result)
    (references.leases / "pods" / "last_reserved_ip.0").unlink()
    (references.leases / "pods" / "last_reserved_ip.1").unlink()
    again = references.add(now, firewall=True)
    assert addresses(again) == addresses(result)
    references.delete(before, references.firewall, prevResult=result, netns="")
    assert len(about(f"addr {addresses(again)[0]} ")) >= 2
    delete_chain(references, now, again)


def check(references: References, plugin: dict[str, Any], pod: Space, result: Any, **more: Any) -> tuple[int, Any]:
    env = environment("CHECK", CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path)
    return ask(plugin["type"], env, references.config(plugin, prevResult=result, **more))[:2]


def test_check_of_a_pod_of_theirs_tells_whether_all_is_as_they_left_it(references: References, ledger: Ledger) -> None:
    pod = ledger.netns()
    result = references.add(pod, *PORTS, firewall=True)
    ports = {"runtimeConfig": {"portMappings": list(PORTS)}}
    assert check(references, references.bridge, pod, result) == (0, None)
    assert check(references, references.portmap, pod, result, **ports) == (0, None)
    assert check(references, references.firewall, pod, result) == (0, None)
    more = {"runtimeConfig": {"portMappings": [*PORTS, to(8085, 80)]}}
    code, answer = check(references, references.portmap, pod, result, **more)
    assert (code, "no rule leads from host port 8085/tcp to 10.88.0.2:80" in answer["msg"]) == (1, True)
    program = "iptables-legacy" if references.kind == LEGACY else "iptables-nft"
    run([program, "-D", "CNI-FORWARD", "-s", "10.88.0.2/32", "-j", "ACCEPT"]).ok()
    code, answer = check(references, references.firewall, pod, result)
    assert (code, "accepts nothing from 10.88.0.2" in answer["msg"]) == (1, True)
    delete_chain(references, pod, result, *PORTS)
    assert check(references, references.portmap, pod, result, **ports)[0] == 1


def add_ours(references: References, pod: Space, *mappings: dict[str, Any]) -> tuple[int, Any, str]:
    """bridge and portmap of ours: what the last of them answered, and all they warned of."""
    env = environment("ADD", CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path)
    references.ledger.adopt("ours", lambda: delete_ours(references, pod))
    code, result, warned = ask("bridge", env, references.config(references.bridge))
    if code == 0 and mappings:
        more = {"prevResult": result, "runtimeConfig": {"portMappings": list(mappings)}}
        code, result, further = ask("portmap", env, references.config(references.portmap, **more))
        warned += further
    return code, result, warned


def delete_ours(references: References, pod: Space) -> None:
    for plugin in (references.portmap, references.bridge):
        references.delete(pod, plugin)


def give_again(references: References) -> None:
    """The next address that is given is the first again, as after many pods, or a restart."""
    for path in (references.leases / "pods").iterdir():
        path.unlink()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_an_old_host_port_never_reaches_a_new_pod_with_a_reused_address(
    references: References, ledger: Ledger, proto: str
) -> None:
    """The old pod's DEL never came; its lease was given back all the same, as after a reboot of the runtime's state."""
    old, new = ledger.netns(), ledger.netns()
    result = references.add(old, to(8080, 80, proto), firewall=True)
    (gateway,) = (ip["gateway"] for ip in result["ips"] if "." in ip["gateway"])
    client = ledger.netns()
    run(["ip", "link", "add", ledger.link("out"), "type", "veth", "peer", "name", "eth0", "netns", client.name]).ok()
    for space, name, address in ((HERE, "out", "192.0.2.1/24"), (client, "eth0", "192.0.2.2/24")):
        space.run("ip", "address", "add", address, "dev", name).ok()
        space.run("ip", "link", "set", name, "up").ok()
    echo = Echo(old, proto=proto, port=80)
    assert exchange("192.0.2.1", 8080, proto=proto, space=client, source=("192.0.2.2", 5555)) == "192.0.2.2"
    echo.close()
    old.remove()
    give_again(references)
    code, answer, _ = add_ours(references, new)
    assert code == 0, answer
    assert addresses(answer) == addresses(result)
    ledger.echo(new, proto=proto, port=80)
    assert not reaches("192.0.2.1", 8080, proto=proto, space=client, timeout=0.5)
    with pytest.raises(OSError):
        exchange("192.0.2.1", 8080, proto=proto, space=client, source=("192.0.2.2", 5555), timeout=0.5)
    assert not reaches(gateway, 8080, proto=proto, timeout=0.5)
    assert exchange(addresses(answer)[0], 80, proto=proto) == gateway
    assert traces(old, {"ips": []}) == []
    assert [line for line in about("CNI-FORWARD") if addresses(answer)[0] in line] == []


def test_a_host_port_that_a_living_pod_of_theirs_has_is_refused(references: References, ledger: Ledger) -> None:
    old, new = ledger.netns(), ledger.netns()
    result = references.add(old, *PORTS)
    before = rules()
    code, answer, _ = add_ours(references, new, to(8080, 80))
    assert (code, answer["code"]) == (1, 100)
    assert f"hostPort 8080/tcp is taken by container {old.name}" in answer["msg"]
    assert [line for line in before if line not in rules()] == []
    delete_chain(references, old, result, *PORTS)
    code, answer, _ = add_ours(references, ledger.netns(), to(8080, 80))
    assert code == 0, answer


def test_a_host_port_of_a_pod_of_theirs_that_is_gone_is_taken_over(references: References, ledger: Ledger) -> None:
    old, new, other = ledger.netns(), ledger.netns(), ledger.netns()
    references.add(old, *PORTS)
    references.add(other, *OTHERS)
    old.remove()
    ledger.echo(new, port=80)
    code, answer, warned = add_ours(references, new, to(8080, 80))
    assert code == 0, answer
    assert f"for container {old.name}, which is gone; it was removed" in warned
    assert exchange("10.88.0.1", 8080) == "10.88.0.1"
    assert about(named(other)[0], named(other)[2])


def test_addresses_and_ports_of_others_are_not_touched_by_an_add(references: References, ledger: Ledger) -> None:
    old, new = ledger.netns(), ledger.netns()
    references.add(old, to(8080, 80, "tcp", "192.0.2.7"), to(8083, 80))
    before = [line for line in rules() if "10.88.0.2" in line or old.name in line]
    ledger.echo(old, port=80)
    code, answer, _ = add_ours(references, new, to(8084, 80), to(8080, 80, "tcp", "192.0.2.8"))
    assert code == 0, answer
    assert [line for line in before if line not in rules()] == []
    assert exchange("10.88.0.1", 8083) == "10.88.0.1"


def noted() -> bool:
    return os.path.exists(paths.NO_REFERENCE)


def age(path: str) -> None:
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_a_node_without_anything_is_looked_at_once(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    env = environment("ADD", CNI_COMMAND="ADD")
    for expected in (True, False):
        pod = ledger.netns()
        ledger.adopt("ours", lambda pod=pod: references.delete(pod, references.bridge))  # type: ignore[misc]  # bound now
        env |= {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path}
        command = faults.program(0, "count", "bridge")
        done = run(command, env=env, stdin=json.dumps(references.config(references.bridge)).encode()).ok()
        assert ("reference." in done.stderr.decode()) is expected
        assert b"Popen" not in done.stderr
        assert noted()


@pytest.mark.parametrize("kind", [NFT, LEGACY])
def test_a_node_with_something_is_looked_at_until_it_has_nothing(ledger: Ledger, kind: str) -> None:
    references = make(ledger, kind)
    old, new = ledger.netns(), ledger.netns()
    result = references.add(old, *PORTS)
    assert add_ours(references, new)[0] == 0
    assert not noted()
    delete_chain(references, old, result)
    references.gc(references.bridge, new)
    assert noted()


def test_what_was_noted_counts_no_more_once_plugins_are_put_in_place(ledger: Ledger) -> None:
    make(ledger, NFT)
    census.conclude(now=True)
    assert noted()
    census.announce()
    assert not noted()
    census.conclude(now=True)  # one of theirs may still be at work
    assert not noted()
    age(census.ANNOUNCED)
    census.conclude()  # somebody has just looked
    assert not noted()
    age(census.LOOKED)
    census.conclude()
    assert noted()


def test_an_ifb_that_nothing_leads_to_is_collected_and_one_in_use_is_not(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
    bandwidth = {"type": "bandwidth", **limits}
    pods = lost, elsewhere, valid = ledger.netns(), ledger.netns(), ledger.netns()
    for pod in pods:
        result = references.add(pod)
        result = references.execute("ADD", references.config(bandwidth, prevResult=result), pod)
    ends = len(HERE.links())
    lost.remove()
    until(lambda: len(HERE.links()) < ends, "the kernel has ended the namespace, and the pod's link with it")
    assert len([name for name in HERE.links() if name.startswith("bwp")]) == 3
    assert check(references, bandwidth, valid, result) == (0, None)
    references.gc(bandwidth, valid)  # `elsewhere` is of another network, for all its name says
    assert len([name for name in HERE.links() if name.startswith("bwp")]) == 2
    for pod in (elsewhere, valid):
        references.delete(pod, bandwidth)
        references.delete(pod, references.bridge)
    assert not [name for name in HERE.links() if name.startswith("bwp")]


def test_backups_of_tuning_are_collected_when_no_runtime_knows_the_container(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    tuning = {"type": "tuning", "mtu": 1400}
    pods = lost, known, valid = ledger.netns(), ledger.netns(), ledger.netns()
    for pod in pods:
        result = references.add(pod)
        references.execute("ADD", references.config(tuning, prevResult=result), pod)
    references.forget(lost)
    references.forget(valid)
    references.gc(tuning, valid)
    kept = {path.name for path in Path("/run/cni/tuning").iterdir()}
    assert kept == {f"{known.name}_eth0.json", f"{valid.name}_eth0.json"}
    for pod in pods:
        references.delete(pod, references.bridge)


def test_a_mac_guard_is_collected_when_its_port_is_gone(ledger: Ledger) -> None:
    references = make(ledger, NFT)
    references.bridge["macspoofchk"] = True
    lost, there = ledger.netns(), ledger.netns()
    for pod in (lost, there):
        references.add(pod)
    run(["ip", "link", "delete", "eth0"], netns=lost.path).ok()
    references.gc(references.bridge)
    assert (about(lost.name), bool(about(there.name))) == ([], True)
    references.delete(there, references.bridge)
    assert about("cni-br-iface") == []


EACH_STEP = [
    pytest.param(plugin, kind, 1, marks=(pytest.mark.stress, pytest.mark.timeout(600)))
    for plugin in ("bridge", "portmap", "firewall")
    for kind in KINDS
]
SOME_STEPS = [("bridge", NFT, 5), ("portmap", LEGACY, 5), ("portmap", OWN, 4), ("firewall", LEGACY, 4)]


@pytest.mark.parametrize(("plugin", "kind", "stride"), [*SOME_STEPS, *EACH_STEP])
def test_a_del_that_is_killed_at_any_step_is_finished_by_the_next(
    ledger: Ledger, plugin: str, kind: str, stride: int
) -> None:
    references = make(ledger, kind)
    config = {"bridge": references.bridge, "portmap": references.portmap, "firewall": references.firewall}[plugin]
    step = 1
    while True:
        pod = ledger.netns()
        result = references.add(pod, *PORTS, firewall=True)
        env = environment("DEL", CNI_CONTAINERID=pod.name, CNI_NETNS=pod.path)
        stdin = json.dumps(references.config(config, prevResult=result)).encode()
        killed = run(faults.program(step, "kill", plugin), env=env, stdin=stdin).code == -9
        delete_chain(references, pod, result, *PORTS)
        assert pods_chains() == []
        if not killed:
            break
        step += stride
    assert step > stride


def test_the_command_tells_what_is_there_of_which_pod(references: References, ledger: Ledger) -> None:
    command = [CHECKOUT / "bin" / "nodeplug", "cni", "takeover"]
    assert "nothing of the reference plugins" in run(command).ok().text
    pod = ledger.netns()
    result = references.add(pod, *PORTS, firewall=True)
    told = run([*command, "--json"]).ok().json()
    four, six = addresses(result)
    network = "" if references.kind == OWN else "pods"  # whose rules for host ports name none
    wanted = {("masquerade", "pods", four), ("masquerade", "pods", six), ("firewall", "", four), ("firewall", "", six)}
    wanted |= {("host port", network, f"{port} to {four}:{to}") for port, to in (("8080/tcp", 80), ("8081/udp", 81))}
    assert wanted <= {(each["what"], each["network"], each["detail"]) for each in told}
    assert {each["container"] for each in told} == {pod.name}
    assert pod.name[:12] in run(command).ok().text
    delete_chain(references, pod, result, *PORTS)
    assert "nothing of the reference plugins" in run(command).ok().text
