"""The rules of ranges: what a configuration may say, with a sentence for each fault, and the order of giving."""

from __future__ import annotations

import ipaddress
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.ipam.ranges import RangeConf, RangeSet, resolve
from nodeplug.core.errors import ConfigInvalid
from nodeplug.core.inet import Ip, Net
from tests.cni.leases import NET, Implementation, addresses, conf, ours, reference, refusal
from tests.needs import needs

BOTH = [ours, pytest.param(reference, marks=needs("file:/usr/lib/cni/host-local"))]
SUBNET = "10.1.0.0/24"


def ranges(*members: dict[str, str]) -> dict[str, Any]:
    return {"ranges": [list(members)]}


REFUSED = [
    ({}, "no IP ranges specified"),
    ({"ranges": []}, "no IP ranges specified"),
    ({"ranges": [[]]}, "$.ipam.ranges[0]: a range set without ranges gives no address"),
    ({"ranges": [[{"gateway": "10.1.0.1"}]]}, "$.ipam.ranges[0][0].subnet: required, but missing"),
    ({"subnet": "10.1.0.0"}, "$.ipam.subnet: '10.1.0.0' is not an address with a prefix length"),
    ({"subnet": "10.1.0.0/33"}, "$.ipam.subnet: '10.1.0.0/33' is not"),
    ({"subnet": ""}, "$.ipam.subnet: '' is not an address with a prefix length"),
    ({"subnet": 5}, "$.ipam.subnet: expected a string, got a whole number"),
    ({"subnet": "10.1.0.1/24"}, "network 10.1.0.1/24 has host bits set; of that length the network is 10.1.0.0/24"),
    ({"subnet": "fd00::1/64"}, "network fd00::1/64 has host bits set; of that length the network is fd00::/64"),
    ({"subnet": "10.1.0.0/31"}, "network 10.1.0.0/31 is too small to allocate from; it must be /30 or larger"),
    ({"subnet": "10.1.0.0/32"}, "network 10.1.0.0/32 is too small"),
    ({"subnet": "fd00::/127"}, "network fd00::/127 is too small to allocate from; it must be /126 or larger"),
    ({"subnet": SUBNET, "rangeStart": "10.2.0.1"}, "$.ipam.rangeStart: 10.2.0.1 is not in network 10.1.0.0/24"),
    ({"subnet": SUBNET, "rangeEnd": "10.2.0.1"}, "$.ipam.rangeEnd: 10.2.0.1 is not in network 10.1.0.0/24"),
    ({"subnet": SUBNET, "rangeStart": "fd00::5"}, "$.ipam.rangeStart: fd00::5 is not of the same family"),
    ({"subnet": SUBNET, "rangeEnd": "fd00::5"}, "$.ipam.rangeEnd: fd00::5 is not of the same family"),
    ({"subnet": SUBNET, "rangeStart": "x"}, "$.ipam.rangeStart: 'x' is not an IP address"),
    (
        {"subnet": SUBNET, "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"},
        "$.ipam: the range begins at 10.1.0.9, after its end 10.1.0.8",
    ),
    (
        ranges({"subnet": SUBNET}, {"subnet": "fd00::/64"}),
        "$.ipam.ranges[0]: mixed address families: put IPv4 and IPv6 into range sets of their own",
    ),
    (
        ranges({"subnet": SUBNET}, {"subnet": "10.1.0.0/25"}),
        "ranges[0][1]: range 10.1.0.1-10.1.0.126 overlaps with 10.1.0.1-10.1.0.254 of $.ipam.ranges[0][0]",
    ),
    (
        {"subnet": SUBNET, "rangeEnd": "10.1.0.20", "ranges": [[{"subnet": SUBNET, "rangeStart": "10.1.0.20"}]]},
        "$.ipam.ranges[0][0]: range 10.1.0.20-10.1.0.254 overlaps with 10.1.0.1-10.1.0.20 of $.ipam",
    ),
]


@pytest.mark.parametrize("plugin", BOTH)
@pytest.mark.parametrize(("ipam", "says"), REFUSED)
def test_each_fault_has_its_sentence(plugin: Implementation, ipam: dict[str, Any], says: str, directory: Path) -> None:
    said = refusal(plugin("ADD", conf(directory, **ipam)))
    if plugin is ours:
        assert said.count(says) == 1
        assert plugin("ADD", conf(directory, **ipam))[1]["code"] == 7
        assert not (directory / NET).exists()


@pytest.mark.parametrize(
    ("ipam", "says"),
    [
        ({"subnet": SUBNET, "gateway": "10.2.0.1"}, "$.ipam.gateway: gateway 10.2.0.1 is not in network 10.1.0.0/24"),
        ({"subnet": SUBNET, "gateway": "fd00::1"}, "$.ipam.gateway: gateway fd00::1 is not in network 10.1.0.0/24"),
        (
            {"subnet": SUBNET, "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"},
            "$.ipam: range set 10.1.0.1-10.1.0.1 holds no address that may be given",
        ),
        ({"subnet": SUBNET, "dataDir": "relative"}, "$.ipam.dataDir: expected an absolute path"),
        ({"subnet": SUBNET, "dataDir": 1}, "$.ipam.dataDir: expected a string"),
        ({"subnet": SUBNET, "resolvConf": "relative"}, "$.ipam.resolvConf: expected an absolute path"),
        ({"subnet": SUBNET, "statusOnExhaustion": 1}, "$.ipam.statusOnExhaustion: expected true or false"),
    ],
)
def test_what_the_reference_takes_and_nobody_can_use_is_refused(
    ipam: dict[str, Any], says: str, directory: Path
) -> None:
    answer = ours("ADD", conf(directory, **ipam))
    assert says in refusal(answer)
    assert answer[1]["code"] == 7


def test_all_faults_are_told_at_once(directory: Path) -> None:
    config = conf(
        directory,
        ranges=[[{"subnet": "10.1.0.0/31"}, {"subnet": "10.2.0.1/24"}], []],
        runtimeConfig={"ipRanges": [[{"subnet": SUBNET, "gateway": "10.9.0.1"}]]},
    )
    said = refusal(ours("ADD", config))
    for path in ("$.runtimeConfig.ipRanges[0][0].gateway", "$.ipam.ranges[0][0]", "[0][1]", "$.ipam.ranges[1]"):
        assert f"{path}: " in said


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@pytest.mark.parametrize("plugin", BOTH)
def test_the_first_versions_have_room_for_one_address_of_a_family(
    plugin: Implementation, version: str, directory: Path
) -> None:
    two = [[{"subnet": SUBNET}], [{"subnet": "10.2.0.0/24"}]]
    said = refusal(plugin("ADD", conf(directory, version=version, ranges=two)))
    assert f"CNI version {version} does not support more than 1 address per family" in said


@pytest.mark.parametrize("gateway", ["169.254.1.1", "10.1.0.0", "10.1.0.255", "10.1.0.200"])
@pytest.mark.parametrize("plugin", BOTH)
def test_a_gateway_may_be_anywhere_in_the_network_or_link_local(
    plugin: Implementation, gateway: str, directory: Path
) -> None:
    code, result = plugin("ADD", conf(directory, subnet=SUBNET, rangeStart="10.1.0.9", gateway=gateway))
    assert (code, result["ips"]) == (0, [{"address": "10.1.0.9/24", "gateway": gateway}])


def test_a_link_local_gateway_of_ipv6_may_serve_any_network(directory: Path) -> None:
    assert addresses(ours("ADD", conf(directory, subnet="fd00::/64", gateway="fe80::1"))) == ["fd00::1/64"]


@pytest.mark.parametrize(
    ("subnet", "first", "last", "gateway"),
    [
        ("10.1.0.0/24", "10.1.0.1", "10.1.0.254", "10.1.0.1"),
        ("10.1.0.128/25", "10.1.0.129", "10.1.0.254", "10.1.0.129"),
        ("10.1.0.0/30", "10.1.0.1", "10.1.0.2", "10.1.0.1"),
        ("fd00:1::/64", "fd00:1::1", "fd00:1::ffff:ffff:ffff:ffff", "fd00:1::1"),
    ],
    ids=["v4", "v4 masked", "v4 smallest", "v6"],
)
def test_a_range_without_ends_and_gateway_is_the_whole_network(
    subnet: str, first: str, last: str, gateway: str
) -> None:
    (found,) = resolve([("$", [("$", RangeConf(subnet=Net.parse(subnet)))])], "1.0.0")[0].ranges
    assert [found.first, found.last] == [Ip.parse(text).value for text in (first, last)]
    assert found.gateway == Ip.parse(gateway)


@pytest.mark.parametrize("asked", ["10.1.0.9", "10.1.0.21"], ids=["before the start", "after the end"])
@pytest.mark.parametrize("plugin", BOTH)
def test_an_address_of_the_network_outside_the_range_is_not_given(
    plugin: Implementation, asked: str, directory: Path
) -> None:
    config = conf(directory, subnet=SUBNET, rangeStart="10.1.0.10", rangeEnd="10.1.0.20")
    said = refusal(plugin("ADD", config, args=f"IP={asked}"))
    assert f"failed to allocate all requested IPs: {asked}" in said
    assert [addresses(plugin("ADD", config, end, args=f"IP={end}")) for end in ("10.1.0.10", "10.1.0.20")] == [
        ["10.1.0.10/24"],
        ["10.1.0.20/24"],
    ]


TURNS = {
    "nowhere": (None, [2, 3, 4, 10, 11]),
    "the start": (2, [3, 4, 10, 11, 2]),
    "the middle": (3, [4, 10, 11, 2, 3]),
    "a range's end": (4, [10, 11, 2, 3, 4]),
    "the end": (11, [2, 3, 4, 10, 11]),
}


@pytest.mark.parametrize("after", TURNS)
def test_a_turn_goes_round_from_after(after: str) -> None:
    """Two ranges, of which one has the gateway that is passed over; a model has all others below."""
    last, wanted = TURNS[after]
    ends = (("10.1.0.1", "10.1.0.4"), ("10.1.0.10", "10.1.0.11"))
    members = [
        RangeConf(subnet=Net.parse(SUBNET), range_start=Ip.parse(low), range_end=Ip.parse(high)) for low, high in ends
    ]
    made = resolve([("$", [("$", member) for member in members])], "1.0.0")[0]
    turn = [value - START for _, value in made.turn(None if last is None else Ip.of(START + last, 4))]
    assert turn == wanted


# Against a model, with networks small enough to look at all of it

START = int(ipaddress.IPv4Address("10.1.0.0"))


@st.composite
def small_sets(draw: st.DrawFn) -> RangeSet:
    """Up to three ranges side by side, cut out of networks of 8 or 16 addresses."""
    members = []
    for number in range(draw(st.integers(1, 3))):
        prefix = draw(st.sampled_from((28, 29)))
        first = START + 16 * number
        low, high = sorted((draw(st.integers(0, 7)), draw(st.integers(0, (1 << (32 - prefix)) - 1))))
        members.append(
            RangeConf(
                subnet=Net(ip=Ip.of(first, 4), prefix=prefix),
                range_start=Ip.of(first + low, 4),
                range_end=Ip.of(first + high, 4),
                gateway=draw(st.none() | st.integers(0, 7).map(lambda host, first=first: Ip.of(first + host, 4))),
            )
        )
    try:
        return resolve([("$", [("$", member) for member in members])], "1.0.0")[0]
    except ConfigInvalid:
        # Cut down to nothing but a gateway: any other will do.
        return resolve([("$", [("$", RangeConf(subnet=Net.parse("10.1.0.0/29")))])], "1.0.0")[0]


def usable(members: RangeSet) -> list[int]:
    """The addresses that may be given, in their order, by the ipaddress module."""
    gateways = {found.gateway.value for found in members.ranges}
    order = []
    for found in members.ranges:
        network = ipaddress.ip_network(str(found.subnet))
        hosts = {int(host) for host in network.hosts()} - gateways
        order += [value for value in range(found.first, found.last + 1) if value in hosts]
    return order


@given(small_sets(), st.none() | st.integers(START - 2, START + 50))
def test_a_turn_is_every_usable_address_once_beginning_after_the_last(members: RangeSet, last: int | None) -> None:
    turn = [value for _, value in members.turn(None if last is None else Ip.of(last, 4))]
    wanted = usable(members)
    assert sorted(turn) == sorted(wanted)
    assert members.capacity == len(wanted)
    if last in wanted:
        at = wanted.index(last)
        assert turn == wanted[at + 1 :] + wanted[: at + 1]
    elif last is None or not any(found.first <= last <= found.last for found in members.ranges):
        assert turn == wanted
    for found, value in members.turn(None):
        assert found.holds(Ip.of(value, 4))
        assert members.range_of(Ip.of(value, 4)) == found


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), min_size=1, max_size=6))
def test_overlaps_are_found_wherever_they_are(spans: list[list[int]]) -> None:
    base = START + 1
    given = [
        RangeConf(subnet=Net.parse("10.1.0.0/24"), range_start=Ip.of(base + low, 4), range_end=Ip.of(base + high, 4))
        for low, high in spans
    ]
    overlapping = any(one[1] >= other[0] for one, other in pairwise(sorted(spans)))
    # Each in a set of its own or all in one: the rule is the same. The gateway is none of them.
    gateway = Ip.parse("10.1.0.254")
    for sets in ([("$", [("$", c.replace(gateway=gateway)) for c in given])], [("$", [("$", c)]) for c in given]):
        try:
            resolve(sets, "1.0.0")
        except ConfigInvalid as invalid:
            assert overlapping == any("overlaps" in sentence for _, sentence in invalid.problems)
        else:
            assert not overlapping


address_text = st.one_of(
    st.ip_addresses().map(str), st.sampled_from(["", "10.1.0.5", "10.1.0.1", "fd00::5", "::ffff:10.1.0.9", "x"])
)
range_text = st.fixed_dictionaries(
    {},
    optional={
        "subnet": st.sampled_from(["10.1.0.0/29", "10.1.0.8/29", "10.1.0.3/29", "fd00::/125", "10.0.0.0/8", "1/2", ""]),
        "rangeStart": address_text,
        "rangeEnd": address_text,
        "gateway": address_text,
    },
)


@given(st.lists(st.lists(range_text, max_size=3), max_size=3), range_text)
def test_whatever_is_configured_the_answer_is_addresses_or_a_sentence(sets: list[Any], old: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="np-") as path:
        code, answer = ours("ADD", conf(path, ranges=sets, **old))
        assert code in (0, 1)
        if code == 1:
            assert answer["code"] in (7, 11)
        else:
            assert len(answer["ips"]) == len(sets) + ("subnet" in old)
