"""bridge: what its ports let pass, `macspoofchk` and `ipMasq`, shown by frames and bytes."""

from __future__ import annotations

import json
import socket

import pytest

from nodeplug.core.naming import identity
from tests.child import run
from tests.cni.pods import Network, host_links, host_local
from tests.ledger import Ledger
from tests.space import HERE, Space
from tests.traffic import exchange

pytestmark = pytest.mark.needs("sandbox")


def send_frame(pod: Space, source: bytes) -> None:
    """A broadcast frame with that sender's address."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(b"\xff" * 6 + source + b"\x88\xb5" + b"nodeplug" * 6)

    pod.call(send)


def hears(pod: Space) -> socket.socket:
    def listen() -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        raw.bind(("eth0", 0x88B5))
        raw.settimeout(0.3)
        return raw

    return pod.call(listen)


def guards() -> set[str]:
    """What the nft table lists, as `set: element`."""
    found: set[str] = set()
    for entry in json.loads(run(["nft", "-j", "list", "ruleset", "bridge"]).ok().stdout)["nftables"]:
        if "set" in entry:
            for element in entry["set"].get("elem", []):
                found.add(f"{entry['set']['name']}: {json.dumps(element['elem']['val'])}")
    return found


def test_a_guarded_pod_sends_only_from_its_own_mac_address(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network = Network(ledger, type="bridge", macspoofchk=True, isGateway=True, ipam=host_local())
    free, other = Network(ledger, type="bridge", name="free"), ledger.netns()
    result = network.add(netns)
    free.add(other)
    mine, name = bytes.fromhex(result["interfaces"][2]["mac"].replace(":", "")), result["interfaces"][1]["name"]
    assert exchange("10.88.0.1", ledger.echo().port, space=netns) == "10.88.0.2"
    with hears(other) as ears:
        send_frame(netns, mine)
        assert ears.recv(2048)[6:12] == mine
        send_frame(netns, b"\x02\x00\x00\x00\x00\x66")
        with pytest.raises(TimeoutError):
            ears.recv(2048)
    with hears(netns) as ears:
        send_frame(other, b"\x02\x00\x00\x00\x00\x77")
        assert ears.recv(2048), "a pod that is not guarded may"
    network.check(netns, result)
    assert guards() == {f'guarded: "{name}"', f'allowed: {{"concat": ["{name}", "{mine.hex(":")}"]}}'}
    network.delete(netns)
    assert guards() == set()


def test_guards_are_made_again_with_the_next_pod_when_somebody_flushed_the_rules(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network = Network(ledger, type="bridge", macspoofchk=True)
    result = network.add(netns)
    before = guards()
    run(["nft", "flush", "ruleset"]).ok()
    assert "may send from any MAC address" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
    network.add(ledger.netns())
    assert guards() > before
    network.check(netns, result)
    run(["nft", "flush", "ruleset"]).ok()
    network.delete(netns)


def test_a_guard_goes_with_gc_and_with_a_delete_that_says_nothing_of_it(ledger: Ledger, netns: Space) -> None:
    ledger.table("bridge", "nodeplug")
    network, other = Network(ledger, type="bridge", macspoofchk=True), ledger.netns()
    network.add(netns)
    network.add(other)
    network.delete(netns, {"macspoofchk": False}, CNI_NETNS="")
    assert not any(identity("pods", netns.name, "eth0") in found for found in guards())
    assert len(guards()) == 2
    network.ask("GC", None, {"name": "another", "cni.dev/valid-attachments": []})
    assert len(guards()) == 2
    assert network.ask("GC", None, {"cni.dev/valid-attachments": []}) == (0, None)
    assert guards() == set()
    assert host_links() == {"cni0"}


def test_what_a_pod_sends_beyond_its_subnet_is_masqueraded(ledger: Ledger, netns: Space) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isDefaultGateway=True, ipMasq=True, ipam=host_local(4, 6))
    far = ledger.netns()
    run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", far.path]).ok()
    ledger.link("up0")
    for space, ifname, host in ((HERE, "up0", "1"), (far, "eth0", "2")):
        for address in (f"192.0.2.{host}/24", f"2001:db8::{host}/64"):
            space.run("ip", "address", "add", address, "dev", ifname, *(["nodad"] if ":" in address else [])).ok()
        space.run("ip", "link", "set", ifname, "up").ok()
    result, other = network.add(netns), ledger.netns()
    network.add(other)
    for anywhere, outside, inside, source in (
        ("0.0.0.0", "192.0.2.2", "10.88.0.3", "192.0.2.1"),
        ("::", "2001:db8::2", "fd88::3", "2001:db8::1"),
    ):
        assert exchange(outside, ledger.echo(far, address=anywhere).port, space=netns) == source
        seen = exchange(inside, ledger.echo(other, address=anywhere).port, space=netns)
        assert seen in {"10.88.0.2", "fd88::2"}, "neighbours see the pod's own address"
    network.check(netns, result)
    network.delete(netns)
    network.delete(other)
    shown = run(["nft", "list", "ruleset"]).ok().text
    assert "10.88.0.2" not in shown
    assert "fd88::2" not in shown


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_either_backend_may_be_named(ledger: Ledger, netns: Space, backend: str) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=host_local())
    network.check(netns, network.add(netns))
    network.delete(netns)


def test_lost_masquerade_fails_check(ledger: Ledger, netns: Space) -> None:
    ledger.table("inet", "nodeplug")
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipam=host_local())
    result = network.add(netns)
    run(["nft", "flush", "ruleset"]).ok()
    assert "is not masqueraded" in network.refused("CHECK", netns, {"prevResult": result})["msg"]
