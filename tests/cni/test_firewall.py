"""firewall's keys, answers and errors, and firewalld; what its rules do is in test_firewall_traffic."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.filter.index import DIRECTORY
from nodeplug.cni.plugins.firewall import bus
from nodeplug.cni.plugins.firewall.config import FirewallConf
from nodeplug.core import document
from nodeplug.core.errors import Unavailable
from tests.child import run, until
from tests.cni.calls import VERSIONS, ask, environment
from tests.cni.chains import Chain
from tests.cni.hostports import BRIDGE, NETWORK, Host, Pod, to
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:nft", "program:conntrack")


@pytest.fixture
def host(ledger: Ledger) -> Iterator[Host]:
    yield Host.make(ledger)


def firewall(command: str, pod: Pod, *, bus: str = "", **keys: Any) -> tuple[int, Any, str]:
    version = keys.pop("version", "1.1.0")
    config = {"cniVersion": version, "name": NETWORK, "type": "firewall", "prevResult": pod.result(version), **keys}
    more = {"DBUS_SYSTEM_BUS_ADDRESS": bus} if bus else {}
    return ask(
        "firewall", environment(command, CNI_CONTAINERID=pod.container, CNI_NETNS=pod.space.path, **more), config
    )


def done(command: str, pod: Pod, **keys: Any) -> Any:
    code, answer, _ = firewall(command, pod, **keys)
    assert code == 0, answer
    return answer


def refused(command: str, pod: Pod, **keys: Any) -> Any:
    code, answer, _ = firewall(command, pod, **keys)
    assert code == 1, answer
    return answer


def elements(name: str) -> list[str]:
    listed = run(["nft", "-j", "list", "set", "inet", "nodeplug", name])
    if listed.code:
        return []
    found = next(item["set"] for item in listed.json()["nftables"] if "set" in item).get("elem", [])
    values = [item["elem"]["val"] for item in found]
    return sorted(" ".join(map(str, value["concat"])) if isinstance(value, dict) else value for value in values)


@pytest.mark.parametrize("version", VERSIONS[4:])
def test_the_result_before_passes_through_in_every_version(host: Host, version: str) -> None:
    pod = host.pod()
    before: dict[str, Any] = pod.result(version)
    if version < "1":
        before["dns"] = {}
        for ip in before["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    assert done("ADD", pod, version=version, prevResult=before) == before
    assert (elements("pods4"), elements("pods6")) == ([pod.address], [pod.address6])
    done("CHECK", pod, version=version, prevResult=before)
    done("DEL", pod, version=version, prevResult=None)
    assert (elements("pods4"), elements("pods6")) == ([], [])


def test_versions_before_0_4_0_are_refused(host: Host) -> None:
    for version in VERSIONS[:4]:
        assert refused("ADD", host.pod(), version=version)["code"] == 1


def test_it_must_be_chained(host: Host) -> None:
    error = refused("ADD", host.pod(), prevResult=None)
    assert (error["code"], error["msg"]) == (7, "missing prevResult from earlier plugin")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"backend": "ebtables"}, "$.backend"),
        ({"ingressPolicy": "closed"}, "$.ingressPolicy"),
        ({"iptablesAdminChainName": "a b"}, "$.iptablesAdminChainName"),
        ({"iptablesAdminChainName": "X\n-F"}, "$.iptablesAdminChainName"),
        ({"iptablesAdminChainName": "-F"}, "$.iptablesAdminChainName"),
        ({"iptablesAdminChainName": "A" * 29}, "longer than 28 bytes"),
        ({"firewalldZone": 7}, "$.firewalldZone"),
    ],
)
def test_wrong_keys_are_named(host: Host, keys: dict[str, Any], said: str) -> None:
    error = refused("ADD", host.pod(), **keys)
    assert (error["code"], said in error["details"]) == (7, True)


@pytest.mark.parametrize("keys", [{"backend": "iptables"}, {"backend": ""}, {"BACKEND": None, "IngressPolicy": "open"}])
def test_what_the_reference_takes_is_taken(host: Host, keys: dict[str, Any]) -> None:
    pod = host.pod()
    done("ADD", pod, **keys)
    done("CHECK", pod, **keys)
    done("STATUS", pod, **keys)


def test_policies_are_elements(host: Host) -> None:
    near, alone = host.pod(), host.pod()
    done("ADD", near, ingressPolicy="same-bridge")
    done("ADD", alone, ingressPolicy="isolated")
    assert elements("ingress4") == sorted([near.address, alone.address])
    assert elements("near4") == [f"{near.address} {BRIDGE}"]
    assert elements("near6") == [f"{near.address6} {BRIDGE}"]
    done("ADD", near)
    assert (elements("ingress4"), elements("near4")) == ([alone.address], [])
    run(["ip", "link", "set", alone.port, "type", "bridge_slave", "isolated", "off"]).ok()
    assert f"bridge port {alone.port} is not isolated" in refused("CHECK", alone, ingressPolicy="isolated")["msg"]


def test_a_policy_needs_an_interface_of_the_host(host: Host) -> None:
    pod = host.pod()
    bare = {"cniVersion": "1.1.0", "ips": [{"address": f"{pod.address}/16"}]}
    error = refused("ADD", pod, ingressPolicy="isolated", prevResult=bare)
    assert 'make sure to chain "firewall" plugin with "bridge"' in error["msg"]
    assert done("ADD", pod, prevResult=bare) == bare


def test_a_pod_without_addresses_needs_nothing(host: Host) -> None:
    bare = {"cniVersion": "1.1.0", "interfaces": [{"name": BRIDGE}]}
    assert done("ADD", host.pod(), prevResult=bare) == bare
    assert run(["nft", "list", "tables"]).text == ""


def test_delete_needs_nothing_but_the_names_and_may_be_repeated(host: Host) -> None:
    pod, other = host.pod(), host.pod()
    done("ADD", pod, ingressPolicy="same-bridge")
    done("ADD", other)
    pod.space.remove()
    for _ in range(2):
        done("DEL", pod, prevResult=None, backend="iptables")
        assert (elements("pods4"), elements("ingress4"), elements("near4")) == ([other.address], [], [])
    assert [path.name for path in Path(DIRECTORY, "filter").iterdir() if "passage" in path.name] != []


def test_parts_of_an_attachment_do_not_touch_each_other(host: Host) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80))
    done("ADD", pod)
    host.delete(pod)
    done("CHECK", pod)


def test_gc_leaves_valid_attachments_and_other_networks(host: Host) -> None:
    valid, dead, other = host.pod(), host.pod(), host.pod()
    done("ADD", valid)
    done("ADD", dead)
    done("ADD", other, name="other")
    keys = {"cni.dev/valid-attachments": [{"containerID": valid.container, "ifname": "eth0"}]}
    done("GC", dead, **keys)
    assert elements("pods4") == sorted([valid.address, other.address])
    done("CHECK", valid)


def test_check_names_what_is_missing(host: Host) -> None:
    pod = host.pod()
    assert "there is no record" in refused("CHECK", pod)["msg"]
    done("ADD", pod)
    run(["nft", "delete", "element", "inet", "nodeplug", "pods4", "{", pod.address, "}"]).ok()
    assert f"{pod.address} is not in pods4" in refused("CHECK", pod)["msg"]
    done("ADD", pod)
    run(["nft", "flush", "chain", "inet", "nodeplug", "forward"]).ok()
    assert "the rule 'from pods, IPv4' is not in chain forward" in refused("CHECK", pod)["msg"]


def test_the_table_is_restored_with_all_that_live_when_somebody_flushed_it(host: Host) -> None:
    pod, other = host.pod(), host.pod()
    done("ADD", pod, ingressPolicy="same-bridge")
    run(["nft", "flush", "ruleset"]).ok()
    done("ADD", other)
    assert elements("pods4") == sorted([pod.address, other.address])
    assert elements("near4") == [f"{pod.address} {BRIDGE}"]
    done("CHECK", pod, ingressPolicy="same-bridge")


def test_repair_opens_what_was_closed_again(ledger: Ledger, host: Host) -> None:
    for family in ("ip", "ip6"):
        ledger.table(family, "filter")
    pod = host.pod()
    done("ADD", pod)
    run(["iptables-nft", "-P", "FORWARD", "DROP"]).ok()
    assert "the nft chain ip filter FORWARD drops" in refused("CHECK", pod)["msg"]
    from nodeplug.cni.filter.table import filtering

    with filtering(warn=print) as table:
        table.repair()
    done("CHECK", pod)


def test_status_names_a_chain_that_drops_and_cannot_be_opened(ledger: Ledger, host: Host) -> None:
    pod = host.pod()
    done("STATUS", pod)
    ledger.table("inet", "early")
    early = "table inet early { chain first { type filter hook forward priority -400; policy drop; }; }"
    run(["nft", "-f", "-"], stdin=early.encode()).ok()
    error = refused("STATUS", pod)
    assert error["code"] == 50
    assert "the nft chain inet early first: its priority -400 is before ours" in error["msg"]
    code, _, stderr = firewall("ADD", pod)
    assert (code, "the nft chain inet early first drops what pods send and get" in stderr) == (0, True)
    run(["nft", "delete", "table", "inet", "early"]).ok()
    # One that iptables or nft can open is no obstacle.
    ledger.table("ip", "filter")
    run(["iptables-nft", "-P", "FORWARD", "DROP"]).ok()
    done("STATUS", pod)


def test_status_names_a_table_that_belongs_to_a_running_program(ledger: Ledger, host: Host) -> None:
    chain = "chain f { type filter hook forward priority 0; policy drop; };"
    script = f"(echo 'table inet mine {{ flags owner; {chain} }}'; sleep 60) | nft -i"
    owner = ledger.start(["sh", "-c", script])
    until(lambda: "mine" in run(["nft", "list", "tables"]).text or not owner.running(), "the owned table")
    if "mine" not in run(["nft", "list", "tables"]).text:
        pytest.fail(f"nft made no table: {owner.output()}")
    error = refused("STATUS", host.pod())
    assert "the nft chain inet mine f: its table belongs to a running program" in error["msg"]
    owner.end()
    until(lambda: "mine" not in run(["nft", "list", "tables"]).text, "the end of the owned table")


def test_every_key_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cni" / "firewall.md").read_text()
    assert document.reference(FirewallConf).strip() in page


def test_the_example_of_its_page_runs(ledger: Ledger, netns: Space) -> None:
    ledger.table("inet", "nodeplug")
    chain = Chain.of_page(ledger, "cni/firewall.md", "walled.conflist")
    chain.add(netns)
    assert elements("near4") == ["10.93.0.2 cni0"]
    chain.check(netns)
    chain.status()
    chain.delete(netns)
    assert (netns.links(), elements("pods4")) == ({"lo"}, [])


class Firewalld:
    """A system bus with firewalld on it, as far as this plugin sees either: one socket, answered from a thread.

    `zones` is what it holds; `refuse` the error that it answers with.
    """

    def __init__(self, path: Path, *, present: bool = True) -> None:
        self.address = f"unix:path={path}"
        self.zones: dict[str, set[str]] = {}
        self.refuse = ""
        self._present = present
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                assert stream.readline() == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
                client.sendall(b"OK 0123456789abcdef\r\n")
                assert stream.readline() == b"BEGIN\r\n"
                while head := stream.read(16):
                    size = int.from_bytes(head[4:8], "little"), int.from_bytes(head[12:16], "little")
                    rest = stream.read(size[1] + -size[1] % 8 + size[0])
                    client.sendall(self._answer(head + rest, int.from_bytes(head[8:12], "little")))

    def _answer(self, message: bytes, serial: int) -> bytes:
        kind, fields, body = bus.decode(message)
        assert kind == 1
        member, arguments = str(fields[3]), strings(body)
        reply: dict[int, tuple[str, str | int]] = {5: ("u", serial)}
        if self.refuse and "Source" in member:
            return bus.encode(3, 1, {**reply, 4: ("s", "org.fedoraproject.FirewallD1.Exception")}, (self.refuse,))
        if member == "Hello":
            return bus.encode(2, 1, reply, (":1.7",))
        if member == "NameHasOwner":
            assert arguments == ["org.fedoraproject.FirewallD1"]
            return truth(serial, self._present)
        assert (fields[1], fields[2]) == ("/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone")
        zone = self.zones.setdefault(arguments[0], set())
        if member == "querySource":
            return truth(serial, arguments[1] in zone)
        there = arguments[1] in zone
        if there == (member == "addSource"):
            word = "ZONE_ALREADY_SET" if there else "UNKNOWN_SOURCE"
            return bus.encode(3, 1, {**reply, 4: ("s", "org.fedoraproject.FirewallD1.Exception")}, (word,))
        (zone.add if member == "addSource" else zone.remove)(arguments[1])
        return bus.encode(2, 1, reply, (arguments[0],))


def strings(body: bytes) -> list[str]:
    found, at = [], 0
    while at < len(body):
        at += -at % 4
        size = int.from_bytes(body[at : at + 4], "little")
        found.append(body[at + 4 : at + 4 + size].decode())
        at += 5 + size
    return found


def truth(serial: int, value: bool) -> bytes:
    """A reply of one boolean, written by hand."""
    fields = b"\x05\x01u\0" + serial.to_bytes(4, "little") + b"\x08\x01g\0\x01b\0"
    head = b"l\x02\0\x01" + (4).to_bytes(4, "little") + b"\x01\0\0\0" + len(fields).to_bytes(4, "little")
    return head + fields + bytes(-len(fields) % 8) + int(value).to_bytes(4, "little")


@pytest.fixture
def firewalld(ledger: Ledger) -> Firewalld:
    found = Firewalld(ledger.socket_path())
    ledger.adopt("firewalld", found.close)
    return found


@pytest.mark.parametrize("backend", ["", "firewalld"])
def test_with_firewalld_the_addresses_are_sources_of_a_zone(host: Host, firewalld: Firewalld, backend: str) -> None:
    pod, keys = host.pod(), {"bus": firewalld.address, "backend": backend}
    for _ in range(2):
        done("ADD", pod, **keys)
    assert firewalld.zones == {"trusted": {f"{pod.address}/32", f"{pod.address6}/128"}}
    done("CHECK", pod, **keys)
    firewalld.zones["trusted"].remove(f"{pod.address}/32")
    assert f"{pod.address} is not in the zone trusted of firewalld" in refused("CHECK", pod, **keys)["msg"]
    for _ in range(2):
        done("DEL", pod, prevResult=None, **keys)
    assert firewalld.zones == {"trusted": set()}


def test_the_zone_is_the_configured_one_and_gc_empties_it(host: Host, firewalld: Firewalld) -> None:
    pod, keys = host.pod(), {"bus": firewalld.address, "firewalldZone": "pods"}
    done("ADD", pod, **keys)
    assert set(firewalld.zones) == {"pods"}
    done("GC", pod, **{**keys, "cni.dev/valid-attachments": []})
    assert firewalld.zones == {"pods": set()}


def test_with_backend_iptables_firewalld_is_left_alone(host: Host, firewalld: Firewalld) -> None:
    done("ADD", host.pod(), bus=firewalld.address, backend="iptables")
    assert firewalld.zones == {}


def test_what_firewalld_refuses_undoes_the_add(host: Host, firewalld: Firewalld) -> None:
    firewalld.refuse = "ZONE_CONFLICT: '10.0.0.1/32' already bound to 'public'"
    pod = host.pod()
    error = refused("ADD", pod, bus=firewalld.address)
    assert (error["code"], "ZONE_CONFLICT" in error["msg"], elements("pods4")) == (100, True, [])
    firewalld.refuse = "ZONE_ALREADY_SET"
    done("ADD", pod, bus=firewalld.address)


def test_firewalld_that_is_asked_for_and_not_there_is_an_error_and_no_hindrance_for_delete(
    ledger: Ledger, host: Host
) -> None:
    empty = Firewalld(ledger.socket_path(), present=False)
    ledger.adopt("bus", empty.close)
    pod = host.pod()
    for where in (empty.address, "unix:path=/nonexistent", "tcp:host=localhost"):
        for command in ("ADD", "STATUS"):
            error = refused(command, pod, bus=where, backend="firewalld")
            assert "firewalld, which is not on the system bus" in error["msg"]
        done("ADD", pod, bus=where)
        done("DEL", pod, bus=where, backend="firewalld")


@needs("program:dbus-daemon")
def test_a_real_bus_understands_us(ledger: Ledger, directory: Path) -> None:
    config = directory / "bus.conf"
    config.write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"'
        ' "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">\n'
        f"<busconfig><type>system</type><listen>unix:path={directory}/s</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow send_destination="*"/><allow own="*"/><allow user="*"/>'
        '<allow receive_type="method_return"/><allow receive_type="error"/></policy></busconfig>'
    )
    ledger.start(["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={config}"])
    until(lambda: (directory / "s").exists(), "the bus")
    found = bus.Bus(str(directory / "s"))
    try:
        assert found.has("org.freedesktop.DBus") and not found.has("org.fedoraproject.FirewallD1")
        with pytest.raises(bus.CallFailed) as caught:
            found.call("org.nowhere", "/", "org.nowhere", "Nothing", "x", "long enough to be padded")
        assert caught.value.name == "org.freedesktop.DBus.Error.ServiceUnknown"
    finally:
        found.close()


def test_a_bus_that_never_answers_is_given_up(ledger: Ledger) -> None:
    server = ledger.listener()
    with pytest.raises(Exception, match="cannot reach the system bus"):
        bus.Bus(server.getsockname(), timeout=0.2)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        bus.decode(data)
    except Unavailable:
        pass


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40), max_size=4))
def test_what_is_written_is_read(arguments: list[str]) -> None:
    kind, fields, body = bus.decode(bus.encode(1, 9, {1: ("o", "/a"), 3: ("s", "Do"), 5: ("u", 7)}, tuple(arguments)))
    assert (kind, fields[1], fields[3], fields[5], strings(body)) == (1, "/a", "Do", 7, arguments)
    assert not arguments or bus.first(str(fields[8]), body) == arguments[0]
