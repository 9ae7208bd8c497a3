"""bridge asked for what cannot be: each with its own code and words, and nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeplug.cni.plugins.keys import read_mac
from nodeplug.core import paths
from tests.child import run
from tests.cni.calls import ask, environment
from tests.cni.pods import Network, host_links, host_local, static
from tests.ledger import Ledger
from tests.needs import missing
from tests.space import Space

pytestmark = pytest.mark.needs("sandbox")
V4 = static("10.5.0.2/24,10.5.0.1")


@pytest.mark.parametrize(
    ("config", "path", "says"),
    [
        ({"bridge": ""}, "$.bridge", "it is empty"),
        ({"bridge": "a-name-that-is-too-long"}, "$.bridge", "longer than 15 bytes"),
        ({"bridge": "a/b"}, "$.bridge", "it holds /"),
        ({"bridge": 7}, "$.bridge", "expected a string"),
        ({"mtu": 67}, "$.mtu", "from 68 to 65535, got 67"),
        ({"mtu": 65536}, "$.mtu", "from 68 to 65535, got 65536"),
        ({"mtu": -1}, "$.mtu", "got -1"),
        ({"mtu": "1500"}, "$.mtu", "got a string"),
        ({"MTU": True}, "$.MTU", "got true"),
        ({"isgateway": "yes"}, "$.isgateway", "expected true or false"),
        ({"ipMasqBackend": "ebtables"}, "$.ipMasqBackend", '"iptables", "nftables"'),
        ({"vlan": -1}, "$.vlan", "from 0 to 4094, got -1"),
        ({"vlan": 4095}, "$.vlan", "from 0 to 4094, got 4095"),
        ({"vlanTrunk": {}}, "$.vlanTrunk", "expected a list"),
        ({"vlanTrunk": [{"id": 0}]}, "$.vlanTrunk[0].id", "from 1 to 4094, got 0"),
        ({"vlanTrunk": [{"id": 4095}]}, "$.vlanTrunk[0].id", "from 1 to 4094, got 4095"),
        ({"vlanTrunk": [{"minID": 0, "maxID": 5}]}, "$.vlanTrunk[0].minID", "got 0"),
        ({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}, "$.vlanTrunk[0].maxID", "got 4095"),
        ({"vlanTrunk": [{"id": 1}, {"minID": 5}]}, "$.vlanTrunk[1]", "maxID is missing"),
        ({"vlanTrunk": [{"maxID": 5}]}, "$.vlanTrunk[0]", "minID is missing"),
        ({"vlanTrunk": [{"minID": 9, "maxID": 5}]}, "$.vlanTrunk[0]", "minID is greater than maxID"),
        ({"hairpinMode": True, "promiscMode": True}, "$.promiscMode", "at the same time"),
        ({"disableContainerInterface": True, "ipam": V4}, "$.disableContainerInterface", "cannot use IPAM"),
        ({"bridge": "a-long-name", "vlan": 1000, "isGateway": True}, "$.bridge", "longer than 15 bytes"),
        ({"runtimeConfig": {"mac": "nonsense"}}, "$.runtimeConfig.mac", "is not the MAC address"),
        ({"args": {"cni": {"mac": "01:00:5e:00:00:01"}}}, "$.args.cni.mac", "of one station"),
        ({"args": {"cni": {"mac": "00:00:00:00:00:00"}}}, "$.args.cni.mac", "of one station"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "$.dns.nameservers", "expected a list"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_by_its_key(
    ledger: Ledger, netns: Space, config: dict[str, Any], path: str, says: str
) -> None:
    network = Network(ledger, type="bridge", **config)
    error = network.refused("ADD", netns)
    assert error["code"] == 7
    assert f"{path}: " in error["details"]
    assert says in error["details"]
    assert (host_links(), netns.links()) == (set(), {"lo"})


def test_all_contradictions_are_told_at_once(ledger: Ledger, netns: Space) -> None:
    network = Network(
        ledger, type="bridge", hairpinMode=True, promiscMode=True, disableContainerInterface=True, ipam=V4
    )
    details = network.refused("ADD", netns)["details"]
    assert "hairpin" in details
    assert "DisableContainerInterface" in details


@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        ({"isGateway": True, "ipam": static("10.5.0.2/24,10.6.0.1")}, 7, "10.6.0.1 cannot be the gateway of"),
        ({"isGateway": True, "ipam": static("10.5.0.2/24,10.5.0.2")}, 7, "it is the pod's own address"),
        ({"isGateway": True, "ipam": static("10.5.0.2/32")}, 7, "10.5.0.3 cannot be the gateway of"),
        ({"isGateway": True, "ipam": static("10.5.0.1/24")}, 7, "it is the pod's own address"),
        ({"mtu": 1279, "ipam": static("fd05::2/64")}, 7, "IPv6 needs an MTU of 1280"),
        ({"ipam": static("10.5.0.2/24", routes=[{"dst": "10.9.0.0/16", "gw": "10.6.0.1"}])}, 5, "route add"),
        ({"ipam": {"type": "no-such-manager"}}, 5, "failed to find plugin 'no-such-manager'"),
        ({"ipam": {"type": "../bridge"}}, 7, "is not a plugin's name"),
        ({"ipam": {"type": "static", "addresses": []}}, None, ""),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_leaves_nothing(
    ledger: Ledger, netns: Space, config: dict[str, Any], code: int | None, says: str
) -> None:
    network = Network(ledger, type="bridge", **config)
    error = network.refused("ADD", netns)
    assert code in (None, error["code"]), error
    assert says in error["msg"]
    assert (host_links(), netns.links()) == ({"cni0"}, {"lo"})


@pytest.mark.parametrize("step", ["routes", "gateway", "masquerade"])
def test_the_address_is_released_when_a_later_step_fails(ledger: Ledger, netns: Space, step: str) -> None:
    ipam = host_local(4, 6, routes=[{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}] if step == "routes" else [])
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, ipam=ipam)
    if step == "gateway":
        run(["ip", "link", "add", "cni0", "type", "bridge"]).ok()
        run(["ip", "address", "add", "10.88.0.9/24", "dev", "cni0"]).ok()
    if step == "masquerade":
        ledger.adopt("file in the way", lambda: Path(paths.RUN, "cni").unlink(missing_ok=True))
        shutil.rmtree(Path(paths.RUN, "cni"), ignore_errors=True)
        Path(paths.RUN).mkdir(exist_ok=True)
        Path(paths.RUN, "cni").write_text("")
    network.refused("ADD", netns)
    assert (network.leases(), host_links(), netns.links()) == (set(), {"cni0"}, {"lo"})


def test_a_container_id_of_any_length_is_taken(ledger: Ledger, netns: Space) -> None:
    """An alias holds 255 bytes and a comment of nft 127; names and files go by the identity."""
    ledger.table("inet", "nodeplug")
    ledger.table("bridge", "nodeplug")
    network = Network(ledger, type="bridge", isGateway=True, ipMasq=True, macspoofchk=True, ipam=host_local())
    container = "c" * 1000
    result = network.add(netns, CNI_CONTAINERID=container)
    network.check(netns, result, CNI_CONTAINERID=container)
    assert network.refused("ADD", netns, CNI_CONTAINERID=container)["code"] == 100
    assert (
        network.ask("GC", None, {"cni.dev/valid-attachments": [{"containerID": container, "ifname": "eth0"}]})[0] == 0
    )
    network.check(netns, result, CNI_CONTAINERID=container)
    network.delete(netns, CNI_CONTAINERID=container)
    assert (network.leases(), host_links(), netns.links()) == (set(), {"cni0"}, {"lo"})


def test_an_exhausted_range_is_to_be_tried_again_and_leaves_nothing(ledger: Ledger, netns: Space) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/30"}]]}
    network = Network(ledger, type="bridge", isGateway=True, ipam=ipam)
    network.add(netns)
    other = ledger.netns()
    error = network.refused("ADD", other)
    assert (error["code"], "no IP addresses available" in error["msg"]) == (11, True)
    assert other.links() == {"lo"}
    assert network.leases() == {"10.5.0.2"}


@pytest.mark.parametrize("kind", [["veth", "peer", "name", "x"], ["macvlan"], ["ifb"]])
def test_a_bridge_name_that_is_no_bridge_is_refused(ledger: Ledger, netns: Space, kind: list[str]) -> None:
    network = Network(ledger, type="bridge")
    lower = []
    if kind == ["macvlan"]:
        run(["ip", "link", "add", ledger.link("lower"), "type", "bridge"]).ok()
        lower = ["link", "lower"]
    run(["ip", "link", "add", "cni0", *lower, "type", *kind]).ok()
    error = network.refused("ADD", netns)
    assert error["code"] == 100
    assert f"'cni0' already exists but is not a bridge: it is of kind '{kind[0]}'" in error["msg"]
    assert netns.links() == {"lo"}
    network.delete(netns)
    assert "cni0" in host_links()


def test_a_namespace_that_is_the_hosts_is_refused_before_anything_is_made(ledger: Ledger) -> None:
    network = Network(ledger, type="bridge")
    error = network.refused("ADD", None, CNI_NETNS="/proc/self/ns/net")
    assert error["code"] == 8
    assert host_links() == set()


def test_a_namespace_that_is_gone_is_refused_before_anything_is_made(ledger: Ledger) -> None:
    network = Network(ledger, type="bridge")
    error = network.refused("ADD", None, CNI_NETNS="/run/netns/gone")
    assert (error["code"], "/run/netns/gone" in error["msg"]) == (8, True)
    assert host_links() == set()


def test_without_the_right_the_error_names_it(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", isGateway=True, ipam=host_local())
    command = ["setpriv", "--bounding-set=-net_admin", str(network.plugins / "bridge")]
    done = run(command, env=network.env("ADD", netns), stdin=network.stdin())
    error = done.json()
    assert (done.code, error["code"]) == (1, 5)
    assert "cannot make bridge cni0" in error["msg"]
    assert "CAP_NET_ADMIN" in error["details"]
    assert (host_links(), network.leases()) == (set(), set())


def test_a_namespace_that_may_not_be_entered_is_told(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge")
    command = ["setpriv", "--bounding-set=-sys_admin", str(network.plugins / "bridge")]
    done = run(command, env=network.env("ADD", netns), stdin=network.stdin())
    assert (done.code, done.json()["code"]) == (1, 5)
    assert f"cannot enter {netns.path}" in done.json()["msg"]
    assert host_links() == set()


@pytest.mark.parametrize("args", ["MAC=nonsense", "MAC=01:00:00:00:00:00", "K8S_POD_NAME=x", "MAC=02:00:00:00:00:01;X"])
def test_cni_args_that_cannot_be_taken_are_refused(ledger: Ledger, netns: Space, args: str) -> None:
    error = Network(ledger, type="bridge").refused("ADD", netns, CNI_ARGS=args)
    assert (error["code"], "CNI_ARGS" in error["msg"]) == (4, True)
    assert netns.links() == {"lo"}


def test_a_version_that_cannot_say_that_there_is_no_address_refuses_a_pod_without(ledger: Ledger, netns: Space) -> None:
    network = Network(ledger, type="bridge", cniVersion="0.2.0")
    assert "no valid IP addresses" in network.refused("ADD", netns)["msg"]
    assert (host_links(), netns.links()) == ({"cni0"}, {"lo"})


@pytest.mark.skipif(not missing("vlan-filtering"), reason="this kernel filters VLANs")
@pytest.mark.parametrize("config", [{"vlan": 100}, {"vlanTrunk": [{"id": 5}]}, {"vlanTrunk": []}])
def test_a_kernel_without_vlans_says_so(ledger: Ledger, netns: Space, config: dict[str, Any]) -> None:
    network = Network(ledger, type="bridge", **config)
    error = network.refused("ADD", netns)
    assert error["code"] == 5
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in error["details"]
    assert (host_links(), netns.links()) == (set(), {"lo"})
    run(["ip", "link", "add", "cni0", "type", "bridge"]).ok()
    assert network.ask("STATUS")[1]["code"] == 50
    if config != {"vlanTrunk": []}:
        assert "CONFIG_BRIDGE_VLAN_FILTERING" in network.refused("ADD", netns)["details"]
        assert (host_links(), netns.links()) == ({"cni0"}, {"lo"})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 20), 1 << 20)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    *("bridge", "isGateway", "isDefaultGateway", "forceAddress", "ipMasq", "ipMasqBackend", "mtu", "hairpinMode"),
    *("promiscMode", "vlan", "vlanTrunk", "preserveDefaultVlan", "macspoofchk", "enabledad", "portIsolation"),
    *("disableContainerInterface", "args", "runtimeConfig", "dns", "ipam"),
]


@given(config=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4), ifname=st.text(max_size=16))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_configured_an_add_without_a_namespace_answers(config: dict[str, Any], ifname: str) -> None:
    document = {"cniVersion": "1.0.0", "name": "pods", **config}
    env = environment("ADD", CNI_NETNS="/run/netns/gone", CNI_IFNAME=ifname)
    code, answer, _ = ask("bridge", env, document)
    assert code == 1
    assert answer["code"] in (4, 7, 8)


@given(st.text(max_size=20))
def test_any_text_is_a_mac_address_or_none(text: str) -> None:
    found = read_mac(text)
    assert found is None or (len(found) == 6 and any(found) and not found[0] & 1)


@given(st.binary(min_size=6, max_size=6), st.sampled_from([":", "-"]))
def test_a_mac_address_of_one_station_is_read_in_each_form(mac: bytes, separator: str) -> None:
    mac = bytes((mac[0] & 0xFE | 0x02,)) + mac[1:]
    assert read_mac(mac.hex(separator)) == mac
    assert read_mac(mac.hex(separator).upper()) == mac
    digits = mac.hex()
    assert read_mac(f"{digits[:4]}.{digits[4:8]}.{digits[8:]}") == mac
