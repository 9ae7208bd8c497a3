"""Addresses agree with the ipaddress module wherever Go's net package does."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.inet import Ip, Net, default, host

v4 = st.integers(0, 2**32 - 1)
v6 = st.integers(0, 2**128 - 1).filter(lambda value: value >> 32 != 0xFFFF)


@given(v4 | v6.filter(lambda value: value >= 2**32))
def test_text_and_value_agree(value: int) -> None:
    wanted = ipaddress.ip_address(value)
    ip = Ip.parse(str(wanted))
    assert (ip.value, ip.family, ip.bits) == (value, wanted.version, wanted.max_prefixlen)
    assert Ip.of(value, ip.family) == ip
    assert ipaddress.ip_address(str(ip)) == wanted
    assert ip.is_multicast == wanted.is_multicast
    assert ip.is_loopback == wanted.is_loopback
    assert ip.is_unspecified == wanted.is_unspecified
    assert ip.is_link_local == wanted.is_link_local


@given(v4, st.integers(0, 32), v4)
def test_networks_agree(value: int, prefix: int, other: int) -> None:
    wanted = ipaddress.IPv4Interface((value, prefix))
    net = Net.parse(f"{wanted.ip}/{prefix}")
    assert str(net.network) == str(wanted.network)
    assert (net.first, net.last) == (int(wanted.network.network_address), int(wanted.network.broadcast_address))
    assert net.holds(Ip.of(other, 4)) == (ipaddress.IPv4Address(other) in wanted.network)
    assert not net.holds(Ip.parse("::1"))


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_value_error_with_the_text_in_it(text: str) -> None:
    for parse in (Ip.parse, Net.parse):
        try:
            parse(text)
        except ValueError as error:
            assert repr(text) in str(error)


@pytest.mark.parametrize(
    "text", ["01.2.3.4", "1.2.3", "1.2.3.4.5", "::1%eth0", "1.2.3.4 ", "", ":", "0x1.2.3.4", "1.2.3.256"]
)
def test_what_go_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        Ip.parse(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/٨", "::/129", "10.0.0.0/8/8"]
)
def test_a_prefix_length_is_needed_and_bounded(text: str) -> None:
    with pytest.raises(ValueError, match="prefix length"):
        Net.parse(text)


def test_ipv4_mapped_into_ipv6_is_ipv4() -> None:
    assert Ip.parse("::ffff:1.2.3.4") == Ip.parse("1.2.3.4")


def test_host_and_default_networks() -> None:
    assert str(host(Ip.parse("10.0.0.1"))) == "10.0.0.1/32"
    assert str(host(Ip.parse("fd::1"))) == "fd::1/128"
    assert (str(default(4)), str(default(6))) == ("0.0.0.0/0", "::/0")


def test_overlap_is_of_one_family() -> None:
    assert Net.parse("10.0.0.0/8").overlaps(Net.parse("10.1.0.0/16"))
    assert not Net.parse("10.0.0.0/16").overlaps(Net.parse("10.1.0.0/16"))
    assert not Net.parse("0.0.0.0/0").overlaps(Net.parse("::/0"))
