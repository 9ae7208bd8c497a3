"""What goes over the wire: messages, datagrams and the meaning of options, whatever a network sends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.ipam.dhcp import datagram, message, options
from nodeplug.cni.ipam.dhcp.message import Message
from nodeplug.core.errors import Malformed

address = st.binary(min_size=4, max_size=4)
codes = st.integers(1, 254).filter(lambda code: code != 52)
messages = st.builds(
    Message,
    reply=st.booleans(),
    xid=st.integers(0, 2**32 - 1),
    client=st.binary(max_size=16),
    hardware=st.integers(0, 255),
    seconds=st.integers(0, 65535),
    broadcast=st.booleans(),
    ciaddr=address,
    yiaddr=address,
    siaddr=address,
    giaddr=address,
    options=st.dictionaries(codes, st.binary(max_size=600), max_size=6),
)


def raw(options: bytes, *, sname: bytes = b"", file: bytes = b"", cookie: bytes = b"\x63\x82\x53\x63") -> bytes:
    """A reply by hand, as RFC 2131 draws it."""
    header = struct.pack("!BBBBIHH", 2, 1, 6, 0, 7, 0, 0) + bytes(16) + b"\2\0\0\0\0\1".ljust(16, b"\0")
    return header + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + cookie + options


@given(messages)
def test_what_is_built_is_parsed_as_it_was(given: Message) -> None:
    assert message.parse(message.build(given)) == given


@given(messages)
def test_no_message_is_shorter_than_relays_let_pass(given: Message) -> None:
    assert len(message.build(given)) >= 300


@given(st.binary(max_size=700) | st.binary(max_size=300).map(raw))
def test_whatever_comes_is_a_message_or_malformed(data: bytes) -> None:
    try:
        found = message.parse(data)
    except Malformed:
        return
    assert 0 <= found.type <= 255
    assert len(found.server) in (0, 4)


@given(messages, st.data())
def test_a_message_cut_anywhere_is_malformed_or_shorter(given: Message, data: st.DataObject) -> None:
    whole = message.build(given)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = message.parse(cut)
    except Malformed:
        return
    assert found.options.keys() <= given.options.keys()


def test_options_go_on_in_the_fields_of_names() -> None:
    found = message.parse(
        raw(b"\x35\x01\x02\x34\x01\x03\xff", file=b"\x33\x04\0\0\x0e\x10\xff", sname=b"\x03\x04\x0a\x05\0\1\xff")
    )
    assert dict(found.options) == {53: b"\2", 51: (3600).to_bytes(4, "big"), 3: b"\x0a\x05\0\1"}
    with pytest.raises(Malformed, match="no end"):
        message.parse(raw(b"\x34\x01\x01\xff", file=b"\x33\x7b".ljust(128, b"\1")))


def test_one_option_in_several_parts_is_one() -> None:
    found = message.parse(raw(b"\x79\x03\x08\x0a\x0a\x06\x04\1\1\1\1\x79\x03\x05\0\1\xff"))
    assert found.options[121] == b"\x08\x0a\x0a\x05\0\1"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (raw(b"", cookie=b"\0\0\0\0"), "BOOTP"),
        (raw(b"\x35\x05\x02"), "53 is cut off"),
        (raw(b"\x35"), "53 is cut off"),
        (b"\x03" + raw(b"")[1:], "op 3"),
        (raw(b"\xff")[:2] + b"\x11" + raw(b"\xff")[3:], "hardware address of 17 bytes"),
        (raw((b"\x05\xff" + bytes(255)) * 20), "more than 4096 bytes"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        message.parse(data)


@given(st.binary(max_size=1200), address, address)
def test_a_datagram_is_unwrapped_as_it_was_wrapped(data: bytes, source: bytes, destination: bytes) -> None:
    packet = bytearray(datagram.wrap(data, source=source, destination=destination))
    # What a server answers has the ports the other way round; the checksum is a sum, and does not mind.
    packet[20:24] = packet[22:24] + packet[20:22]
    assert datagram.unwrap(bytes(packet)) == data
    assert datagram.unwrap(bytes(packet) + b"padding of a short frame") == data


@given(st.binary(max_size=300))
def test_whatever_arrives_is_a_message_or_nothing(packet: bytes) -> None:
    assert datagram.unwrap(packet) is None or len(packet) > 28


@given(st.binary(min_size=20, max_size=200), st.data())
def test_a_damaged_datagram_is_nothing(data: bytes, draw: st.DataObject) -> None:
    packet = bytearray(datagram.wrap(data, source=b"\x0a\x05\0\1"))
    packet[20:24] = packet[22:24] + packet[20:22]
    at = draw.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= draw.draw(st.integers(1, 255))
    assert datagram.unwrap(bytes(packet)) in (None, data)  # data: its checksum was made to say that there is none


def test_a_packet_that_has_not_left_its_machine_has_no_checksum_yet() -> None:
    packet = bytearray(datagram.wrap(b"x" * 10, source=b"\x0a\x05\0\1"))
    packet[20:24] = packet[22:24] + packet[20:22]
    packet[26:28] = b"\x12\x34"
    assert datagram.unwrap(bytes(packet)) is None
    assert datagram.unwrap(bytes(packet), sealed=False) == b"x" * 10


def shown(found: dict[int, bytes]) -> list[tuple[str, str | None]]:
    return [(str(dst), None if gateway is None else str(gateway)) for dst, gateway in options.routes(found)]


ROUTER = b"\x0a\x05\0\1"
CLASSLESS = b"\x10\x0a\x09" + ROUTER + b"\0" + ROUTER + b"\x20\xa9\xfe\xa9\xfe" + bytes(4)
CLASSFUL = bytes((10, 1, 2, 3)) + ROUTER + bytes((172, 16, 0, 0)) + ROUTER + bytes((192, 168, 1, 0)) + ROUTER


def test_classless_routes_take_the_place_of_all_others() -> None:
    wanted = [("10.9.0.0/16", "10.5.0.1"), ("0.0.0.0/0", "10.5.0.1"), ("169.254.169.254/32", None)]
    assert shown({121: CLASSLESS, 33: CLASSFUL, 3: bytes((9, 9, 9, 9))}) == wanted


def test_static_routes_have_the_masks_of_their_classes_and_the_router_is_the_default() -> None:
    wanted = [("10.0.0.0/8", "10.5.0.1"), ("172.16.0.0/16", "10.5.0.1"), ("192.168.1.0/24", "10.5.0.1")]
    assert shown({33: CLASSFUL}) == wanted
    assert shown({33: CLASSFUL, 3: ROUTER + bytes((10, 5, 0, 2))}) == [*wanted, ("0.0.0.0/0", "10.5.0.1")]
    assert shown({33: bytes(4) + ROUTER}) == []  # a default route is none of these


@pytest.mark.parametrize(
    "broken", [{121: b"\x21\x0a"}, {121: b"\x18\x0a\x09"}, {33: b"\x0a\0\0\0"}, {3: b"\x0a"}, {3: bytes(4)}]
)
def test_routes_that_make_no_sense_count_as_not_sent(broken: dict[int, bytes]) -> None:
    assert shown(broken) == []


@pytest.mark.parametrize(
    ("mask", "length"),
    [(b"\xff\xff\xff\0", 24), (b"\xff\xff\xff\xff", 32), (bytes(4), 0), (b"\xff\0\xff\0", None), (b"\xff", None)],
)
def test_a_mask_is_a_length_unless_it_has_holes(mask: bytes, length: int | None) -> None:
    assert options.prefix({1: mask}) == length
    assert options.prefix({}) is None


def test_domains_to_search_come_with_pointers() -> None:
    value = b"\x04pods\x04test\0\x03web\xc0\x00\xc0\x05"
    assert options.search({119: value}) == ["pods.test", "web.pods.test", "test"]


@pytest.mark.parametrize(
    "value",
    [
        b"\x04pods",
        b"\xc0\x00",
        b"\xc0\x02\xc0\x00",
        b"\x01a\xc0\x02\0",
        b"\x01\n\0",
        b"\x06bad\nly\0",
        b"\0",
        b"\x40" + b"a" * 64 + b"\0",
    ],
)
def test_domains_that_make_no_sense_count_as_not_sent(value: bytes) -> None:
    assert options.search({119: value}) == []


@given(st.dictionaries(st.sampled_from([1, 3, 6, 15, 26, 33, 119, 121]), st.binary(max_size=300)))
def test_whatever_a_server_sends_means_something_or_nothing(found: dict[int, bytes]) -> None:
    options.routes(found)
    options.prefix(found)
    assert all(len(ip.packed) == 4 for ip in options.addresses(found, 6))
    assert options.mtu(found) == 0 or options.mtu(found) >= 68
    for name in (options.domain(found), *options.search(found)):
        assert name == name.strip() and not set(name) & set(" \n\r\t#;")


def test_dhcp_option_parsing() -> None:
    assert options.number("host-name") == options.number("12") == 12
    assert options.number("dhcp-client-identifier") == 61
    assert options.number("routers") == 3 and options.number("subnet-mask") == 1
    assert options.number("user-class") == 77 and options.number("vendor-class-identifier") == 60
    for wrong in ("doNotparseMe", "0", "255", "256", "-1", "", "1.5", "²"):
        with pytest.raises(ValueError, match="no DHCP option"):
            options.number(wrong)
    with pytest.raises(ValueError, match="did you mean host-name"):
        options.number("hostname")
