"""Routing rules by netlink, with ip(8) as the second opinion."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from nodeplug.kernel.rtnl import rules
from nodeplug.kernel.rtnl.rules import Rule
from tests.needs import needs
from tests.space import Space

T = TypeVar("T")
pytestmark = needs("sandbox")


def ask(space: Space, function: Callable[[Netlink], T]) -> T:
    def body() -> T:
        with Netlink(NETLINK_ROUTE) as route:
            return function(route)

    return space.call(body)


def source(text: str, table: int, **more: int) -> Rule:
    packed = ip_address(text).packed
    return Rule(family=rules.family_of(packed), src=packed, prefix=8 * len(packed), table=table, **more)


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_a_rule_is_what_ip_and_dump_say_until_it_is_deleted(netns: Space, address: str) -> None:
    wanted = source(address, 70_000, priority=1000, protocol=110)
    ask(netns, lambda route: route.request(rules.add(wanted)))
    shown = netns.ip("-6" if ":" in address else "-4", "rule", "show")
    (found,) = (item for item in shown if item["priority"] == 1000)
    assert (found["src"], found["table"], found["protocol"]) == (address, "70000", "110")
    assert wanted in ask(netns, lambda route: rules.dump(route, wanted.family))
    with pytest.raises(NetlinkError) as caught:
        ask(netns, lambda route: route.request(rules.add(wanted)))
    assert caught.value.errno == errno.EEXIST
    ask(netns, lambda route: route.request(rules.delete(wanted.replace(priority=None))))
    assert wanted not in ask(netns, lambda route: rules.dump(route, wanted.family))
    with pytest.raises(NetlinkError) as caught:
        ask(netns, lambda route: route.request(rules.delete(wanted)))
    assert (caught.value.errno, f"from {address}" in str(caught.value)) == (errno.ENOENT, True)


def test_without_a_priority_it_comes_before_the_main_table(netns: Space) -> None:
    ask(netns, lambda route: route.request(rules.add(source("10.0.0.2", 100)), rules.add(source("10.0.0.3", 101))))
    found = ask(netns, lambda route: rules.dump(route, rules.family_of(bytes(4))))
    assert [rule.table for rule in found] == [255, 101, 100, 254, 253]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_rule_or_a_value_error(data: bytes) -> None:
    try:
        rules.parse(data)
    except ValueError:
        assert len(data) < 12
