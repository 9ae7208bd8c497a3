"""host-local as its users know it. What the reference does as well is asked of both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core.jsontext import dumps
from tests.cni.calls import VERSIONS, ask, environment
from tests.cni.leases import (
    NET,
    Implementation,
    addresses,
    conf,
    expect_truth,
    fill,
    holders,
    leases,
    ours,
    reference,
    refusal,
)
from tests.needs import needs

BOTH = [ours, pytest.param(reference, marks=needs("file:/usr/lib/cni/host-local"))]
V4, V6 = "10.1.0.0/24", "fd00:1::/64"
DUAL = [[{"subnet": V4}], [{"subnet": V6}]]


@pytest.fixture(params=BOTH, ids=["ours", "reference"])
def plugin(request: pytest.FixtureRequest) -> Implementation:
    found: Implementation = request.param
    return found


# Allocation


def test_add_gives_an_address_of_each_range_set_and_writes_both_down(plugin: Implementation, directory: Path) -> None:
    code, result = plugin("ADD", conf(directory, ranges=DUAL, routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]))
    assert (code, result["ips"], result["routes"]) == (
        0,
        [
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"address": "fd00:1::2/64", "gateway": "fd00:1::1"},
        ],
        [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    )
    assert leases(directory) == {"10.1.0.2": b"a\r\neth0", "fd00:1::2": b"a\r\neth0"}
    assert (directory / NET / "last_reserved_ip.0").read_bytes() == b"10.1.0.2"
    assert (directory / NET / "last_reserved_ip.1").read_bytes() == b"fd00:1::2"
    assert plugin("DEL", conf(directory, ranges=DUAL)) == (0, None)
    assert leases(directory) == {}
    assert (directory / NET / "last_reserved_ip.0").read_bytes() == b"10.1.0.2"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gets_its_addresses_and_gives_them_back(version: str, directory: Path) -> None:
    code, result = ours("ADD", conf(directory, version=version, ranges=DUAL))
    assert code == 0
    if version < "0.3.0":
        assert (result["ip4"]["ip"], result["ip6"]["gateway"]) == ("10.1.0.2/24", "fd00:1::1")
    else:
        assert [ip["address"] for ip in result["ips"]] == ["10.1.0.2/24", "fd00:1::2/64"]
    if version >= "0.4.0":
        assert ours("CHECK", conf(directory, version=version, ranges=DUAL, prevResult=result)) == (0, None)
    assert ours("DEL", conf(directory, version=version, ranges=DUAL, prevResult=result)) == (0, None)
    assert leases(directory) == {}


def test_files_have_the_modes_that_only_root_reads(directory: Path) -> None:
    ours("ADD", conf(directory, subnet=V4))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory / NET).iterdir()}
    assert modes == {"10.1.0.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o750}
    assert (directory / NET).stat().st_mode & 0o777 == 0o755


@pytest.mark.needs("sandbox")
def test_leases_are_kept_under_var_lib_cni_by_default() -> None:
    config = conf("", subnet=V4)
    assert addresses(ours("ADD", config)) == ["10.1.0.2/24"]
    assert Path("/var/lib/cni/networks/pods/10.1.0.2").exists()
    del config["ipam"]["dataDir"]
    assert ours("DEL", config) == (0, None)
    assert not Path("/var/lib/cni/networks/pods/10.1.0.2").exists()


def test_two_interfaces_of_a_container_have_an_address_each(plugin: Implementation, directory: Path) -> None:
    assert addresses(plugin("ADD", conf(directory, subnet=V4), "a", "eth0")) == ["10.1.0.2/24"]
    assert addresses(plugin("ADD", conf(directory, subnet=V4), "a", "eth1")) == ["10.1.0.3/24"]
    plugin("DEL", conf(directory, subnet=V4), "a", "eth0")
    assert holders(directory) == {"10.1.0.3": "a eth1"}


def test_networks_share_nothing(plugin: Implementation, directory: Path) -> None:
    assert addresses(plugin("ADD", conf(directory, subnet=V4))) == ["10.1.0.2/24"]
    assert addresses(plugin("ADD", conf(directory, "other", subnet=V4))) == ["10.1.0.2/24"]
    plugin("DEL", conf(directory, subnet=V4))
    assert (holders(directory), holders(directory, "other")) == ({}, {"10.1.0.2": "a eth0"})


def test_a_second_add_of_an_attachment_is_refused(plugin: Implementation, directory: Path) -> None:
    plugin("ADD", conf(directory, subnet=V4))
    said = refusal(plugin("ADD", conf(directory, subnet=V4)))
    assert "10.1.0.2 has been allocated to a, duplicate allocation is not allowed" in said
    assert holders(directory) == {"10.1.0.2": "a eth0"}


def test_a_second_add_is_refused_for_a_lease_that_names_the_container_alone(
    plugin: Implementation, directory: Path
) -> None:
    fill(directory, {"10.1.0.9": "a"})
    assert "10.1.0.9 has been allocated to a, duplicate" in refusal(plugin("ADD", conf(directory, subnet=V4)))


def test_an_address_is_given_again_only_after_all_others(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, subnet="10.1.0.0/29")
    given = []
    for number in range(12):
        given += addresses(plugin("ADD", config, f"c{number}"))
        plugin("DEL", config, f"c{number}")
    turn = [f"10.1.0.{host}/29" for host in range(2, 7)]
    assert given == (turn * 3)[:12]


def test_the_turn_goes_on_in_the_next_range_and_comes_round(plugin: Implementation, directory: Path) -> None:
    ranges = [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29", "rangeStart": "10.2.0.5", "rangeEnd": "10.2.0.6"}]]
    config = conf(directory, ranges=ranges)
    given = []
    for number in range(5):
        given += addresses(plugin("ADD", config, f"c{number}"))
        if number % 2:
            plugin("DEL", config, f"c{number - 1}")
    assert given == ["10.1.0.2/30", "10.2.0.5/29", "10.2.0.6/29", "10.1.0.2/30", "10.2.0.6/29"]


def test_without_the_last_address_the_turn_begins_anew(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, subnet=V4)
    for text in ("", "nonsense", "10.9.0.9", "10.1.0.7\n"):
        (directory / NET).mkdir(exist_ok=True)
        (directory / NET / "last_reserved_ip.0").write_text(text)
        assert addresses(plugin("ADD", config)) == ["10.1.0.2/24"]
        plugin("DEL", config)


def test_neither_gateway_nor_network_nor_broadcast_is_given(directory: Path) -> None:
    ends = {"rangeStart": "10.1.0.0", "rangeEnd": "10.1.0.7"}
    config = conf(directory, subnet="10.1.0.0/29", gateway="10.1.0.3", **ends)
    given = [addresses(ours("ADD", config, f"c{number}"))[0] for number in range(5)]
    assert given == [f"10.1.0.{host}/29" for host in (1, 2, 4, 5, 6)]
    assert ours("ADD", config, "more")[1]["code"] == 11


def test_the_gateway_of_one_range_is_not_given_by_another(directory: Path) -> None:
    low = {"subnet": V4, "rangeEnd": "10.1.0.3", "gateway": "10.1.0.5"}
    high = {"subnet": V4, "rangeStart": "10.1.0.4", "rangeEnd": "10.1.0.6", "gateway": "10.1.0.254"}
    config = conf(directory, ranges=[[low], [high]])
    assert addresses(ours("ADD", config, "c1")) == ["10.1.0.1/24", "10.1.0.4/24"]
    assert addresses(ours("ADD", config, "c2")) == ["10.1.0.2/24", "10.1.0.6/24"]


def test_ipv6_is_given_up_to_its_last_address(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, subnet="fd00::/126")
    assert [addresses(plugin("ADD", config, f"c{n}"))[0] for n in range(2)] == ["fd00::2/126", "fd00::3/126"]
    assert "fd00::1-fd00::3" in refusal(plugin("ADD", config, "more"))


def test_exhaustion_names_the_ranges_and_is_to_be_tried_again(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, ranges=[[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30"}]])
    for number in range(2):
        addresses(plugin("ADD", config, f"c{number}"))
    said = refusal(plugin("ADD", config, "more"))
    wanted = "range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.2,10.2.0.1-10.2.0.2"
    assert f"failed to allocate for {wanted}" in said
    if plugin is ours:
        assert ours("ADD", config, "more")[1]["code"] == 11
        assert str(directory / NET) in said
    plugin("DEL", config, "c0")
    assert addresses(plugin("ADD", config, "more")) == ["10.1.0.2/30"]


def test_an_address_of_one_set_is_given_back_when_the_next_has_none(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, ranges=[[{"subnet": V4}], [{"subnet": "fd00::/126", "rangeEnd": "fd00::2"}]])
    addresses(plugin("ADD", config, "a"))
    assert "failed to allocate for range 1" in refusal(plugin("ADD", config, "b"))
    assert holders(directory) == {"10.1.0.2": "a eth0", "fd00::2": "a eth0"}


def test_a_long_run_of_taken_addresses_is_passed(directory: Path) -> None:
    """More than are looked at one by one; the directory is listed then."""
    fill(directory, [f"10.1.{n // 256}.{n % 256}" for n in range(2, 900)])
    config = conf(directory, subnet="10.1.0.0/16")
    assert addresses(ours("ADD", config, "a")) == ["10.1.3.132/16"]
    assert addresses(ours("ADD", config, "b")) == ["10.1.3.133/16"]
    small = conf(directory, subnet="10.1.0.0/16", rangeStart="10.1.0.2", rangeEnd="10.1.3.133")
    assert "no IP addresses available" in refusal(ours("ADD", small, "c"))
    (directory / NET / "10.1.2.2").unlink()
    assert addresses(ours("ADD", small, "c")) == ["10.1.2.2/16"]


# Addresses that are asked for


@pytest.mark.parametrize(
    ("top", "args"),
    [
        ({}, "IP=10.1.0.77"),
        ({}, "IP=10.1.0.77/16;IgnoreUnknown=1;K8S_POD_NAME=x"),
        ({"args": {"cni": {"ips": ["10.1.0.77"]}}}, ""),
        ({"args": {"cni": {"ips": ["10.1.0.77/24"]}}}, ""),
        ({"runtimeConfig": {"ips": ["10.1.0.77"]}}, ""),
        ({"runtimeConfig": {"ips": ["10.1.0.77/31"]}}, ""),
        ({"args": {"cni": {"ips": ["10.1.0.77"]}}, "runtimeConfig": {"ips": ["10.1.0.77"]}}, "IP=10.1.0.77"),
    ],
)
def test_an_address_is_asked_for_in_three_places(
    plugin: Implementation, directory: Path, top: dict[str, Any], args: str
) -> None:
    config = conf(directory, subnet=V4, **top)
    assert addresses(plugin("ADD", config, args=args)) == ["10.1.0.77/24"]
    assert (directory / NET / "last_reserved_ip.0").read_bytes() == b"10.1.0.77"


def test_each_address_asked_for_comes_from_the_set_it_lies_in(plugin: Implementation, directory: Path) -> None:
    ranges = [*DUAL, [{"subnet": "10.3.0.0/24"}]]
    config = conf(directory, ranges=ranges, runtimeConfig={"ips": ["10.3.0.9", "fd00:1::9"]})
    assert addresses(plugin("ADD", config)) == ["10.1.0.2/24", "fd00:1::9/64", "10.3.0.9/24"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["10.2.0.5"], "failed to allocate all requested IPs: 10.2.0.5"),
        (["10.1.0.5", "10.1.0.6"], "failed to allocate all requested IPs: 10.1.0.6"),
        (["10.1.0.0"], "failed to allocate all requested IPs: 10.1.0.0"),
        (["10.1.0.255"], "failed to allocate all requested IPs: 10.1.0.255"),
        (["10.1.0.1"], "gateway"),
        (["10.1.0.4"], "requested IP address 10.1.0.4 is not available in range set 10.1.0.1-10.1.0.254"),
    ],
)
def test_an_address_that_cannot_be_given_as_asked_fails_the_whole(
    plugin: Implementation, directory: Path, asked: list[str], says: str
) -> None:
    if asked == ["10.1.0.5", "10.1.0.6"] and plugin is reference:
        says = "failed to allocate all requested IPs: 10.1.0."  # which of the two is up to Go's map
    fill(directory, {"10.1.0.4": "other\r\neth0"})
    config = conf(directory, ranges=[[{"subnet": V6}], [{"subnet": V4}]], runtimeConfig={"ips": asked})
    assert says in refusal(plugin("ADD", config))
    assert holders(directory) == {"10.1.0.4": "other eth0"}


def test_who_asks_for_a_held_address_is_told_the_holder(directory: Path) -> None:
    ours("ADD", conf(directory, subnet=V4), "holder", "net7", args="IP=10.1.0.9")
    assert "held by holder net7" in refusal(ours("ADD", conf(directory, subnet=V4), "a", args="IP=10.1.0.9"))


def test_the_broadcast_address_is_refused_even_within_the_range(directory: Path) -> None:
    config = conf(directory, subnet=V4, rangeStart="10.1.0.0", rangeEnd="10.1.0.255")
    assert "is the broadcast address of 10.1.0.0/24" in refusal(ours("ADD", config, args="IP=10.1.0.255"))
    assert "is the address of the network 10.1.0.0/24 itself" in refusal(ours("ADD", config, args="IP=10.1.0.0"))


# Ranges of a runtime, and old ones before new ones


def test_ranges_of_the_runtime_come_first_then_the_old_keys_then_the_list(
    plugin: Implementation, directory: Path
) -> None:
    config = conf(
        directory,
        subnet="10.2.0.0/24",
        rangeStart="10.2.0.20",
        rangeEnd="10.2.0.30",
        gateway="10.2.0.254",
        ranges=[[{"subnet": "10.3.0.0/24"}]],
        runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24"}]]},
    )
    assert addresses(plugin("ADD", config)) == ["10.1.0.2/24", "10.2.0.20/24", "10.3.0.2/24"]


def test_keys_are_found_whatever_their_case(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, Subnet=V4, RANGESTART="10.1.0.40", unknown=1)
    assert addresses(plugin("ADD", config)) == ["10.1.0.40/24"]


def test_empty_strings_and_null_say_nothing(plugin: Implementation, directory: Path) -> None:
    config = conf(directory, subnet=V4, rangeStart="", rangeEnd=None, gateway="", resolvConf="")
    assert addresses(plugin("ADD", config)) == ["10.1.0.2/24"]


def test_a_gateway_without_a_subnet_is_ignored_with_a_warning(directory: Path) -> None:
    config = conf(directory, gateway="10.1.0.9", ranges=[[{"subnet": V4}]])
    code, result, stderr = ask("host-local", environment("ADD"), config)
    assert (code, result["ips"][0]["gateway"]) == (0, "10.1.0.1")
    assert "belong to ipam.subnet, which is not set" in stderr


# DEL


def test_delete_of_what_never_was_is_success(plugin: Implementation, directory: Path) -> None:
    addresses(plugin("ADD", conf(directory, subnet=V4), "other"))
    for _ in range(2):
        assert plugin("DEL", conf(directory, subnet=V4), "unknown") == (0, None)
    assert holders(directory) == {"10.1.0.2": "other eth0"}


def test_delete_frees_a_lease_that_names_the_container_alone(plugin: Implementation, directory: Path) -> None:
    fill(directory, {"10.1.0.5": "a", "10.1.0.6": "b"})
    assert plugin("DEL", conf(directory, subnet=V4)) == (0, None)
    assert holders(directory) == {"10.1.0.6": "b"}


def test_delete_prefers_the_lease_of_the_interface(plugin: Implementation, directory: Path) -> None:
    fill(directory, {"10.1.0.5": "a", "10.1.0.6": "a\r\neth0"})
    plugin("DEL", conf(directory, subnet=V4))
    assert holders(directory) == {"10.1.0.5": "a"}


def test_delete_minds_no_white_space_around_a_lease(plugin: Implementation, directory: Path) -> None:
    fill(directory, {"10.1.0.5": " a\r\neth0\r\n", "10.1.0.6": "b\r\neth0"})
    plugin("DEL", conf(directory, subnet=V4))
    assert holders(directory) == {"10.1.0.6": "b eth0"}


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"subnet": "10.1.0.0/33"},
        {"subnet": 7},
        {"ranges": "none"},
        {"ranges": [[{"subnet": V4}], [{"subnet": V4}]]},
        {"subnet": V4, "resolvConf": "/nowhere"},
        {"subnet": "10.99.0.0/24"},
    ],
)
def test_delete_needs_no_ranges(directory: Path, ipam: dict[str, Any]) -> None:
    addresses(ours("ADD", conf(directory, runtimeConfig={"ipRanges": [[{"subnet": V4}]]})))
    assert ours("DEL", conf(directory, **ipam), args="nonsense") == (0, None)
    assert holders(directory) == {}


def test_delete_makes_no_directory(directory: Path) -> None:
    assert ours("DEL", conf(directory / "not" / "there", subnet=V4)) == (0, None)
    assert ours("GC", {**conf(directory / "not", subnet=V4, version="1.1.0"), "cni.dev/valid-attachments": []})[0] == 0
    assert list(directory.iterdir()) == []


# CHECK


def checked(directory: Path, *ips: str) -> dict[str, Any]:
    return conf(directory, subnet=V4, prevResult={"cniVersion": "1.0.0", "ips": [{"address": ip} for ip in ips]})


def test_check_is_content_after_add_and_not_after_delete(plugin: Implementation, directory: Path) -> None:
    plugin("ADD", conf(directory, subnet=V4))
    assert plugin("CHECK", checked(directory, "10.1.0.2/24")) == (0, None)
    assert plugin("CHECK", checked(directory, "10.1.0.2/24"), "a", "eth1")[0] == 1
    plugin("DEL", conf(directory, subnet=V4))
    said = refusal(plugin("CHECK", checked(directory, "10.1.0.2/24")))
    assert "Failed to find address added by container a" in said


def test_check_is_content_with_a_lease_that_names_the_container_alone(plugin: Implementation, directory: Path) -> None:
    fill(directory, {"10.1.0.5": "a"})
    assert plugin("CHECK", checked(directory, "10.1.0.5/24")) == (0, None)


def test_check_notices_that_another_holds_the_address(directory: Path) -> None:
    fill(directory, {"10.1.0.5": "other\r\neth0", "10.1.0.6": "a\r\neth0"})
    assert ours("CHECK", checked(directory, "10.1.0.6/24", "10.9.0.1/24")) == (0, None)
    said = refusal(ours("CHECK", checked(directory, "10.1.0.5/24")))
    assert "the result has 10.1.0.5, whose lease is of other eth0" in said


def test_check_makes_no_directory(directory: Path) -> None:
    assert ours("CHECK", {**checked(directory / "not"), "name": "gone"})[0] == 1
    assert list(directory.iterdir()) == []


# GC and STATUS


def collect(directory: Path, *valid: tuple[str, str], network: str = NET) -> tuple[int, Any]:
    listed = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    # Neither ranges nor what a capability sends reaches a GC for certain.
    return ours("GC", {**conf(directory, network, version="1.1.0"), "cni.dev/valid-attachments": listed})


def test_gc_keeps_valid_attachments_and_nothing_else(directory: Path) -> None:
    for network in (NET, "other"):
        for container in "abc":
            for ifname in ("eth0", "eth1"):
                addresses(ours("ADD", conf(directory, network, ranges=DUAL), container, ifname))
    assert collect(directory, ("a", "eth0"), ("b", "eth1"), ("gone", "eth0")) == (0, None)
    assert sorted(holders(directory).values()) == ["a eth0"] * 2 + ["b eth1"] * 2
    assert len(holders(directory, "other")) == 12
    assert expect_truth(directory)
    assert collect(directory) == (0, None)
    assert holders(directory) == {}
    assert sorted(path.name for path in (directory / NET).iterdir()) == [
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    ]


def test_gc_keeps_a_lease_that_names_a_valid_container_alone(directory: Path) -> None:
    fill(directory, {"10.1.0.5": "a", "10.1.0.6": "b"})
    collect(directory, ("a", "eth7"))
    assert holders(directory) == {"10.1.0.5": "a"}


def test_gc_clears_away_what_killed_plugins_left(directory: Path) -> None:
    fill(directory, {"10.1.0.5": "", "10.1.0.6": bytes(8), ".10.1.0.7.1a-2b~": "a\r\neth0"})
    fill(directory, {"notes": "a\r\neth0", ".keep": "", "10.1.0.8": "# the printer"})
    collect(directory, ("a", "eth0"))
    assert sorted(leases(directory)) == [".keep", "10.1.0.8", "notes"]


def test_gc_without_a_list_removes_nothing(directory: Path) -> None:
    addresses(ours("ADD", conf(directory, subnet=V4)))
    assert ours("GC", conf(directory, version="1.1.0"))[0] == 0
    assert holders(directory) == {"10.1.0.2": "a eth0"}


def test_an_address_held_by_hand_is_never_given_nor_freed(directory: Path) -> None:
    config = conf(directory, subnet="10.1.0.0/29")
    fill(directory, {"10.1.0.3": "# the printer"})
    given = [addresses(ours("ADD", config, f"c{n}"))[0] for n in range(4)]
    assert given == ["10.1.0.2/29", "10.1.0.4/29", "10.1.0.5/29", "10.1.0.6/29"]
    collect(directory)
    assert leases(directory) == {"10.1.0.3": b"# the printer"}


def status(directory: Path | str, **keys: Any) -> tuple[int, Any]:
    return ours("STATUS", conf(directory, version="1.1.0", **keys))


def test_status_is_content_where_an_add_can_succeed(directory: Path) -> None:
    assert status(directory / "made" / "by" / "add", subnet=V4) == (0, None)
    # A runtime sends what belongs to a capability with an ADD only.
    assert status(directory) == (0, None)
    assert list(directory.iterdir()) == []


def test_status_fails_with_the_nodes_faults(directory: Path) -> None:
    (directory / "file").write_text("")
    for keys, says in (
        ({"dataDir": str(directory / "file" / "below")}, f"{directory}/file is no directory"),
        ({"resolvConf": str(directory / "none")}, "cannot read the resolvConf"),
    ):
        code, error = status(directory, subnet=V4, **keys)
        assert (code, error["code"]) == (1, 50)
        assert says in error["msg"]


def test_status_fails_with_a_configuration_that_no_add_can_use(directory: Path) -> None:
    code, error = status(directory, subnet="10.1.0.0/31")
    assert (code, error["code"]) == (1, 7)


def test_status_tells_exhaustion_only_when_asked(directory: Path) -> None:
    ranges = [[{"subnet": V4}], [{"subnet": "10.2.0.0/30"}, {"subnet": "10.3.0.0/30"}]]
    assert status(directory, ranges=ranges, statusOnExhaustion=True) == (0, None)
    fill(directory, ["10.2.0.2"])
    assert status(directory, ranges=ranges, statusOnExhaustion=True) == (0, None)
    fill(directory, ["10.3.0.2"])
    assert status(directory, ranges=ranges) == (0, None)
    code, error = status(directory, ranges=ranges, statusOnExhaustion=True)
    assert (code, error["code"]) == (1, 50)
    assert "no IP addresses available in range set: 10.2.0.1-10.2.0.2,10.3.0.1-10.3.0.2" in error["msg"]


# resolvConf


def test_name_service_comes_from_the_file_named(plugin: Implementation, directory: Path) -> None:
    path = directory / "resolv.conf"
    path.write_text("# c\n; c\nnameserver 192.0.2.0\n\nsearch a.test\ndomain b.test\noptions x\tndots:5\nnonsense\n")
    code, result = plugin("ADD", conf(directory, subnet=V4, resolvConf=str(path)))
    wanted = {"nameservers": ["192.0.2.0"], "domain": "b.test", "search": ["a.test"], "options": ["x", "ndots:5"]}
    assert (code, result["dns"]) == (0, wanted)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"nameserver 1.1.1.1\n" * 10000])
def test_a_file_that_is_no_resolv_conf_fails_before_anything_is_given(directory: Path, content: bytes | None) -> None:
    path = directory / "resolv.conf"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refusal(ours("ADD", conf(directory, subnet=V4, resolvConf=str(path))))
    assert not (directory / NET).exists()


# Strange names and leases


def test_a_container_id_of_any_length_and_an_interface_of_any_letters_are_freed_again(directory: Path) -> None:
    config = conf(directory, subnet=V4)
    for container, ifname in (("c" * 100_000, "eth0"), ("a", "äöü€"), ("a", "-_#")):
        assert addresses(ours("ADD", config, container, ifname))
        expect_truth(directory)
        assert ours("DEL", config, container, ifname) == (0, None)
        assert holders(directory) == {}


@pytest.mark.parametrize("network", ["..", "../x", "a/b", ".nodeplug", "", "a b"])
def test_no_name_leads_out_of_the_data_directory(network: str, directory: Path) -> None:
    config = conf(directory / "data", network, subnet=V4)
    assert ours("ADD", config)[0] == 1
    assert ours("ADD", conf(directory / "data", subnet=V4), f"../{network}")[0] == 1
    assert ours("ADD", conf(directory / "data", subnet=V4), "a", "../x")[0] == 1
    assert list(directory.iterdir()) == []


def test_a_lease_without_content_is_a_free_address(directory: Path) -> None:
    """Their makers died before they wrote them; some file systems fill in zeros after a power cut."""
    config = conf(directory, subnet="10.1.0.0/28")
    fill(directory, {f"10.1.0.{n}": b"" if n < 8 else bytes(20) for n in range(2, 15)})
    given = [addresses(ours("ADD", config, f"c{number}"))[0] for number in range(13)]
    assert sorted(given) == sorted(f"10.1.0.{n}/28" for n in range(2, 15))
    assert ours("ADD", config, "more")[1]["code"] == 11
    assert expect_truth(directory)


def test_a_lease_without_content_is_found_among_many(directory: Path) -> None:
    fill(directory, [f"10.1.{n // 256}.{n % 256}" for n in range(2, 1000)])
    fill(directory, {"10.1.2.2": "", "10.1.3.231": ""})
    config = conf(directory, subnet="10.1.0.0/16", rangeEnd="10.1.3.231")
    assert {addresses(ours("ADD", config, f"c{n}"))[0] for n in range(2)} == {"10.1.2.2/16", "10.1.3.231/16"}
    assert ours("ADD", config, "more")[1]["code"] == 11
    assert expect_truth(directory)


def test_what_is_named_by_an_address_and_is_no_lease_is_left_alone(directory: Path) -> None:
    config = conf(directory, subnet="10.1.0.0/29")
    (directory / NET / "10.1.0.2").mkdir(parents=True)
    os.mkfifo(directory / NET / "10.1.0.3")
    (directory / NET / "10.1.0.4").symlink_to("/etc/passwd")
    (directory / NET / "10.1.0.5").symlink_to("nowhere")
    assert addresses(ours("ADD", config)) == ["10.1.0.6/29"]
    assert ours("ADD", config, "b")[1]["code"] == 11
    collect(directory)
    assert sorted(p.name for p in (directory / NET).glob("10.*")) == [f"10.1.0.{n}" for n in range(2, 6)]


def test_the_plugin_is_content_with_the_configuration_as_any_writer_spells_it(directory: Path) -> None:
    raw = dumps(conf(directory, subnet=V4), indent=2).encode() + b"\n"
    assert ask("host-local", environment("ADD"), raw)[0] == 0
