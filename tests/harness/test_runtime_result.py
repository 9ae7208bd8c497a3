"""Results of every version: read to one shape, written in any version, as the specification's upgrade notes say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid, VersionUnsupported
from nodeplug.harness.runtime.result import VERSIONS, Address, Dns, Interface, Result, Route, decode, encode

FULL = Result(
    "1.1.0",
    interfaces=(
        Interface("cni0", mac="02:00:00:00:00:01"),
        Interface("eth0", mac="02:00:00:00:00:02", sandbox="/run/netns/a", mtu=1400, socket_path="/s", pci_id="0:1"),
    ),
    ips=(Address("10.1.0.5/24", "10.1.0.1", 1), Address("fd00::5/64", "fd00::1", 1), Address("10.2.0.5/24")),
    routes=(
        Route("0.0.0.0/0", "10.1.0.1", mtu=1300, table=0, scope=0),
        Route("::/0"),
        Route("10.9.0.0/16", "10.1.0.2"),
    ),
    dns=Dns(("10.1.0.1",), "example", ("a", "b"), ("ndots:1",)),
)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_new_versions_keep_every_field(version: str) -> None:
    document = encode(FULL, version)
    assert document["cniVersion"] == version
    assert document["routes"][0] == {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "table": 0, "scope": 0}
    assert document["ips"][0] == {"interface": 1, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}
    assert decode(document).ips == FULL.ips
    assert decode(document).interfaces == FULL.interfaces


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_middle_versions_tell_the_family_and_lack_the_new_interface_fields(version: str) -> None:
    document = encode(FULL, version)
    assert [ip["version"] for ip in document["ips"]] == ["4", "6", "4"]
    assert document["interfaces"][1] == {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"}
    assert encode(Result("1.0.0"), version) == {"cniVersion": version, "dns": {}}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_hold_the_first_address_of_each_family(version: str) -> None:
    document = encode(FULL, version)
    assert document["ip4"] == {
        "ip": "10.1.0.5/24",
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.2"}],
    }
    assert document["ip6"] == {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]}
    found = decode(document)
    assert [ip.address for ip in found.ips] == ["10.1.0.5/24", "fd00::5/64"]
    assert found.dns == FULL.dns
    with pytest.raises(ConfigInvalid, match="without addresses cannot be written in version"):
        encode(Result("1.0.0"), version)


def test_version_of_the_configuration_stands_where_the_result_has_none() -> None:
    assert decode({}, "1.0.0").cni_version == "1.0.0"
    assert decode({}).cni_version == "0.1.0"
    with pytest.raises(VersionUnsupported, match=r"'1\.2\.3'"):
        decode({"cniVersion": "1.2.3"})


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"ips": [{"address": "10.0.0.1"}]}, r"\$\.ips\[0\]\.address: '10\.0\.0\.1' has no prefix length"),
        ({"ips": [{}]}, r"\$\.ips\[0\]\.address"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, r"\$\.ips\[0\]\.address"),
        ({"ips": [{"address": "10.0.0.1/3", "gateway": "here"}]}, r"\$\.ips\[0\]\.gateway"),
        ({"ips": [{"address": "10.0.0.1/3", "interface": "0"}]}, r"interface: expected a whole number, found a string"),
        ({"ips": [{"address": "10.0.0.1/3", "interface": 0.0}]}, "expected a whole number"),
        ({"ips": {}}, r"\$\.ips: expected a list"),
        ({"interfaces": [3]}, r"\$\.interfaces\[0\]: expected an object, found a number"),
        ({"interfaces": [{"name": True}]}, r"name: expected a string, found a boolean"),
        ({"routes": [{"dst": "away"}]}, r"\$\.routes\[0\]\.dst"),
        ({"dns": {"nameservers": [1]}}, r"\$\.dns\.nameservers\[0\]: expected a string"),
    ],
)
def test_every_fault_names_its_place(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigInvalid, match=problem):
        decode({"cniVersion": "1.0.0", **document})


def test_keys_are_read_in_any_case_and_null_is_absent() -> None:
    found = decode({"CNIVersion": "1.0.0", "IPS": [{"Address": "FD00::1/64", "gateway": None}], "routes": None})
    assert found.ips == (Address("fd00::1/64"),)


def test_addresses_of_the_pods_own_interface_are_told_from_others() -> None:
    assert FULL.addresses("eth0") == ("10.1.0.5", "fd00::5", "10.2.0.5")
    assert FULL.addresses("cni0") == ("10.2.0.5",)


small = st.integers(min_value=0, max_value=2**32 - 1)
names = st.text(min_size=1, max_size=8)
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
addresses = st.builds(
    lambda ip, bits, gateway, index: Address(f"{ip}/{bits}", gateway, index),
    v4 | v6,
    st.integers(0, 32),
    st.just("") | v4 | v6,
    st.none() | st.integers(0, 9),
)
routes = st.builds(
    lambda ip, gw, table: Route(f"{ip}/0", gw, table=table), v4 | v6, st.just("") | v4 | v6, st.none() | small
)
links = st.builds(Interface, name=names, mac=st.text(max_size=5), sandbox=st.text(max_size=5), mtu=small)
texts = st.lists(names, max_size=3).map(tuple)
results = st.builds(
    Result,
    st.sampled_from(VERSIONS[-2:]),
    interfaces=st.lists(links, max_size=3).map(tuple),
    ips=st.lists(addresses, max_size=4).map(tuple),
    routes=st.lists(routes, max_size=3).map(tuple),
    dns=st.builds(Dns, texts, st.text(max_size=5), texts, texts),
)


@given(results)
def test_a_result_survives_being_written_and_read(result: Result) -> None:
    assert decode(encode(result)) == result


@given(results, st.sampled_from(VERSIONS))
def test_writing_in_an_older_version_twice_changes_nothing_more(result: Result, version: str) -> None:
    try:
        once = encode(result, version)
    except ConfigInvalid:
        assert version in VERSIONS[:2] and not result.ips
    else:
        assert encode(decode(once)) == once
