"""portmap's keys, answers and errors; what its rules do is in test_portmap_traffic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nodeplug.cni.filter.index import DIRECTORY
from nodeplug.cni.plugins.portmap import PortmapConf
from nodeplug.core import document
from tests.child import run
from tests.cni.calls import VERSIONS, ask, environment
from tests.cni.hostports import GATEWAY, NETWORK, Host, to
from tests.examples import ROOT, examples
from tests.ledger import Ledger
from tests.needs import needs

pytestmark = needs("sandbox", "program:nft", "program:conntrack")


@pytest.fixture
def host(ledger: Ledger) -> Iterator[Host]:
    yield Host.make(ledger)


def table() -> str:
    return run(["nft", "list", "table", "inet", "nodeplug"]).text


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_before_passes_through_in_every_version(host: Host, version: str) -> None:
    pod = host.pod()
    before: dict[str, Any] = pod.result(version)
    if version in ("0.1.0", "0.2.0"):
        before = {"cniVersion": version, "ip4": {"ip": f"{pod.address}/16", "gateway": GATEWAY}, "dns": {}}
    elif version < "1":
        before["dns"] = {}
        for ip in before["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    code, answer, _ = host.portmap("ADD", pod, to(8080, 80), version=version, prevResult=before)
    assert (code, answer) == (0, before)
    assert "tcp . 8080 comment" in table() and f"{pod.address} . 80" in table()
    host.delete(pod, version=version)
    assert pod.address not in table()


def test_without_ports_nothing_is_touched(host: Host) -> None:
    pod = host.pod()
    assert host.portmap("ADD", pod)[:2] == (0, pod.result())
    assert host.portmap("CHECK", pod)[0] == 0
    host.delete(pod)
    assert table() == ""


def test_an_add_without_ports_takes_back_an_earlier_ones(host: Host) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80))
    host.add(pod)
    assert pod.address not in table()


def test_it_must_be_chained(host: Host) -> None:
    error = host.wrong("ADD", host.pod(), to(8080, 80), prevResult=None)
    assert (error["code"], error["msg"]) == (7, "must be called as chained plugin")


def test_an_address_of_another_interface_is_not_the_pods(host: Host) -> None:
    pod = host.pod()
    before = pod.result()
    before["interfaces"].append({"name": "eth1", "sandbox": pod.space.path})
    before["ips"].insert(0, {"address": "10.77.0.7/16", "interface": 3})
    before["ips"].insert(0, {"address": "10.78.0.7/16", "interface": 0})
    before["ips"].append({"address": "10.79.0.7/16", "interface": 2})
    host.add(pod, to(8080, 80), prevResult=before)
    assert f"{pod.address} . 80" in table()
    assert "10.77" not in table() and "10.78" not in table() and "10.79" not in table()


def test_addresses_without_an_interface_are_the_pods(host: Host) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80), prevResult={"cniVersion": "1.0.0", "ips": [{"address": f"{pod.address}/16"}]})
    assert f"{pod.address} . 80" in table()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"hostPort": 0, "containerPort": 80}, "portMappings[0].hostPort: 0 is not a port"),
        ({"hostPort": 80}, "portMappings[0].containerPort: 0 is not a port"),
        ({"hostPort": -1, "containerPort": 65536}, "portMappings[0].containerPort: 65536 is not a port"),
        ({"hostPort": 70000, "containerPort": 1}, "portMappings[0].hostPort: 70000 is not a port"),
        ({"hostPort": "80", "containerPort": 80}, "portMappings[0].hostPort: expected a whole number, got a string"),
        ({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}, 'protocol: "icmp" is not one of tcp, udp, sctp'),
        ({"hostPort": 80, "containerPort": 80, "hostIP": "10.1"}, "hostIP: '10.1' is not an IP address"),
    ],
)
def test_a_wrong_mapping_is_named(host: Host, entry: dict[str, Any], said: str) -> None:
    error = host.wrong("ADD", host.pod(), entry)
    assert error["code"] == 7
    assert said in error["details"]
    assert table() == ""


def test_one_port_cannot_lead_to_two(host: Host) -> None:
    error = host.wrong("ADD", host.pod(), to(8080, 80), to(8080, 80), to(8080, 81))
    assert "portMappings[2].hostPort: 8080/tcp is mapped twice" in error["details"]


def test_all_problems_are_told_at_once(host: Host) -> None:
    error = host.wrong("ADD", host.pod(), to(0, 80), to(80, 0))
    assert "[0].hostPort" in error["details"] and "[1].containerPort" in error["details"]


def test_protocols_are_read_in_any_case_and_tcp_is_the_default(host: Host) -> None:
    host.add(host.pod(), to(1, 2, "UDP"), {"hostPort": 3, "containerPort": 4})
    assert "udp . 1" in table() and "tcp . 3" in table()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"markMasqBit": 5, "externalSetMarkChain": "KUBE-MARK-MASQ"}, "cannot be together with externalSetMarkChain"),
        ({"markMasqBit": 32}, "must be between 0 and 31, not 32"),
        ({"markMasqBit": -1}, "must be between 0 and 31, not -1"),
        ({"backend": "ebtables"}, 'unrecognized backend "ebtables"'),
        ({"backend": "nftables", "externalSetMarkChain": "X"}, "options of iptables: externalSetMarkChain"),
        ({"backend": "nftables", "conditionsV4": ["-s", "10.0.0.1"]}, "options of iptables: conditionsV4"),
        ({"backend": "nftables", "conditionsV6": ["!", "-s", "fd00::1"]}, "options of iptables: conditionsV6"),
        ({"backend": "iptables", "conditionsV4": ["ip", "saddr", "10.0.0.1"]}, "options of nftables: conditionsV4"),
        (
            {"conditionsV4": ["-s", "10.0.0.1"], "conditionsV6": ["ip6", "saddr", "fd00::1"]},
            "conditionsV6 in nft's words",
        ),
        ({"snat": "true"}, "$.snat: expected true or false, got a string"),
        ({"markMasqBit": "13"}, "$.markMasqBit: expected a whole number"),
        ({"conditionsV4": "-s"}, "$.conditionsV4: expected a list"),
    ],
)
def test_keys_that_exclude_each_other_are_told(host: Host, keys: dict[str, Any], said: str) -> None:
    pod = host.pod()
    error = host.wrong("ADD", pod, to(8080, 80), **keys)
    assert error["code"] == 7
    assert said in error["details"]
    assert said in host.wrong("STATUS", pod, version="1.1.0", **keys)["details"]


@pytest.mark.parametrize(
    "keys",
    [
        {"backend": "iptables", "markMasqBit": 0},
        {"backend": "iptables", "externalSetMarkChain": "KUBE-MARK-MASQ"},
        {"backend": "nftables", "markMasqBit": 31},
        {"backend": None, "snat": None, "conditionsV4": None, "conditionsV6": []},
        {"conditionsV4": [""]},
        {"backend": "iptables", "conditionsV4": ["-s", "10.0.0.0/8", "--sport", "1024:65535"]},
        {"backend": "nftables", "conditionsV4": ["ip", "saddr", "10.0.0.0/8"], "conditionsV6": ["ip6 saddr fd00::/8"]},
        {"conditionsV4": ["ip saddr { 10.0.0.0/8, 192.168.0.0/16 }", 'iifname "eth0"']},
        {"MASQALL": True, "Snat": True},
    ],
)
def test_what_the_reference_takes_is_taken(host: Host, keys: dict[str, Any]) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80), **keys)
    assert host.portmap("CHECK", pod, to(8080, 80), **keys)[0] == 0
    assert host.portmap("STATUS", pod, version="1.1.0", **keys)[0] == 0
    host.delete(pod)
    assert pod.address not in table() and "chain np" not in table()


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (["-m", "recent", "--set"], "iptables-translate has no nft form for '-m recent --set'"),
        (["-m", "nonsense"], "has no nft form for '-m nonsense'"),
        (["ip", "saddr", "10.0.0.0/8;", "drop"], "holds ';'"),
        (["ip", "saddr", "10.0.0.1\nadd", "table", "x"], "holds '\\n'"),
        (["ip", "saddr", "{", "10.0.0.1"], "unmatched brace"),
        (['iifname "eth0'], "unmatched brace or quote"),
        (["ip", "no_such_field", "1"], "nft does not take the conditions"),
    ],
)
def test_a_condition_that_cannot_be_used_is_refused_and_leaves_nothing(
    host: Host, condition: list[str], said: str
) -> None:
    error = host.wrong("ADD", host.pod(), to(8080, 80), conditionsV4=condition)
    assert error["code"] == 7
    assert said in error["msg"] + error.get("details", "")
    assert "8080" not in table() and "chain np" not in table()
    assert run(["find", DIRECTORY, "-name", "np*"]).text == ""


def test_conditions_of_a_family_leave_the_other_alone(host: Host) -> None:
    host.add(host.pod(), to(8080, 80), conditionsV6=["ip6", "saddr", "fd00::/8"])
    listed = table()
    assert "tcp . 8080 comment" in listed and "10.99.0.2 . 80" in listed
    assert "tcp dport 8080 ip6 saddr fd00::/8 dnat ip6 to [fd99::2]:80" in listed


def test_a_taken_port_is_refused_naming_the_holder_and_leaves_nothing(host: Host) -> None:
    first, second = host.pod(), host.pod()
    host.add(first, to(8080, 80))
    before = table()
    error = host.wrong("ADD", second, to(8081, 81), to(8080, 80))
    assert f"hostPort 8080/tcp is taken by {NETWORK}/{first.container}/eth0" in error["msg"]
    assert table() == before


def test_delete_needs_nothing_but_the_names_and_may_be_repeated(host: Host) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80))
    pod.space.remove()
    for _ in range(2):
        env = environment("DEL", CNI_CONTAINERID=pod.container, CNI_NETNS=None)
        code, answer, _ = ask("portmap", env, {"cniVersion": "1.0.0", "name": NETWORK, "type": "portmap"})
        assert (code, answer) == (0, None)
        assert "8080" not in table()


def test_delete_succeeds_where_no_table_ever_was(host: Host) -> None:
    host.delete(host.pod())
    assert table() == ""


def test_check_names_what_is_missing(host: Host) -> None:
    pod = host.pod()
    host.add(pod, to(8080, 80))
    run(["nft", "delete", "element", "inet", "nodeplug", "snat4", "{", f"{pod.address} . tcp . 80 . 8080", "}"]).ok()
    error = host.wrong("CHECK", pod, to(8080, 80))
    assert f"{pod.address} . tcp . 80 . 8080 is not in snat4" in error["msg"]
    assert "repair" in error["details"]
    run(["sysctl", "-w", "net.ipv4.conf.br-test.route_localnet=0"]).ok()
    assert "route_localnet of br-test is off" in host.wrong("CHECK", pod, to(8080, 80))["msg"]


def test_check_of_a_pod_that_was_never_added_fails(host: Host) -> None:
    assert "there is no record" in host.wrong("CHECK", host.pod(), to(8080, 80))["msg"]


def test_gc_leaves_valid_attachments_and_other_networks(host: Host) -> None:
    valid, dead = host.pod(), host.pod()
    host.add(valid, to(8080, 80))
    host.add(dead, to(8081, 80))
    host.add(host.pod(), to(8082, 80), name="other")
    attachments = [{"containerID": valid.container, "ifname": "eth0"}]
    assert host.portmap("GC", dead, version="1.1.0")[0] == 0
    assert "tcp . 8081" in table(), "a GC without a list removes nothing"
    keys = {"cni.dev/valid-attachments": attachments}
    assert host.portmap("GC", dead, version="1.1.0", **keys)[:2] == (0, None)
    listed = table()
    assert "tcp . 8080" in listed and "tcp . 8082" in listed and "tcp . 8081" not in listed
    assert host.portmap("CHECK", valid, to(8080, 80))[0] == 0


def test_status_changes_nothing(host: Host) -> None:
    assert host.portmap("STATUS", host.pod(), version="1.1.0")[:2] == (0, None)
    assert table() == ""


def test_the_example_of_the_page_works(host: Host) -> None:
    conflist = json.loads(examples("cni/portmap.md")["portmap.conflist"])
    pod = host.pod()
    host.add(pod, to(8080, 80), **conflist["plugins"][1])
    assert f"{pod.address} . 80" in table()


@pytest.mark.parametrize("page", ["by --help", "in docs"])
def test_every_key_is_on_the_reference_page(page: str) -> None:
    text = document.reference(PortmapConf) if page == "by --help" else (ROOT / "docs/cni/portmap.md").read_text()
    for name in ("backend", "snat", "masqAll", "markMasqBit", "externalSetMarkChain", "conditionsV4", "conditionsV6"):
        assert f"`{name}`" in text
