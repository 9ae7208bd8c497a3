"""One attempt at a lease, message by message: what is said when, and what is believed."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.ipam.dhcp import message
from nodeplug.cni.ipam.dhcp.exchange import REBINDING, RENEWING, SELECTING, Exchange, release
from nodeplug.cni.ipam.dhcp.lease import BOUND, FOREVER, REQUESTING, Client, Lease
from nodeplug.cni.ipam.dhcp.message import ACK, DISCOVER, NAK, OFFER, REQUEST, Message
from nodeplug.cni.ipam.dhcp.sandbox import Sandbox
from nodeplug.core.inet import Ip

CLIENT = Client(mac=b"\2\0\0\0\0\1", broadcast=False, id=b"\0c/n/i", provide={12: b"web"}, request=(1, 3, 121))
HELD, OTHER, SERVER, SECOND = (Ip.parse(text) for text in ("10.5.0.50", "10.5.0.51", "10.5.0.1", "10.5.0.2"))
STATION = b"\2\0\0\0\0\x99"


def exchange(state: str = SELECTING, **more: Any) -> Exchange:
    if state != SELECTING:
        more = {"address": HELD, "server": SERVER, **more}
    return Exchange(CLIENT, state=state, begin=100.0, end=120.0, **more)


def says(one: Exchange, now: float = 100.0) -> Message:
    return message.parse(one.say(now))


def answer(asked: Message, kind: int, address: Ip = HELD, *, server: Ip | None = SERVER, **more: Any) -> Message:
    found = {53: bytes((kind,)), 51: (600).to_bytes(4, "big")}
    if server is not None:
        found[54] = server.packed
    found.update(more.pop("options", {}))
    return Message(
        **{"reply": True, "xid": asked.xid, "client": asked.client, "yiaddr": address.packed, "options": found, **more}
    )


def test_discover_offer_request_ack() -> None:
    offers: list[tuple[Ip, Ip, bytes]] = []
    one = exchange(offered=lambda *offer: offers.append(offer))
    discover = says(one)
    assert discover.type == DISCOVER and not discover.reply and not discover.broadcast
    assert discover.options[61] == b"\0c/n/i" and discover.options[12] == b"web"
    assert discover.options[55] == b"\1\3\x79"
    assert 50 not in discover.options and 54 not in discover.options
    one.hear(answer(discover, OFFER), STATION, 100.5)
    assert offers == [(HELD, SERVER, STATION)] and one.due == 100.5
    request = says(one, 100.6)
    assert request.type == REQUEST and request.xid == discover.xid
    assert request.options[50] == HELD.packed and request.options[54] == SERVER.packed
    assert not any(request.ciaddr)
    one.hear(answer(request, ACK), STATION, 100.7)
    assert one.over and one.granted is not None and one.granted.asked == 100.6


def test_an_address_that_was_held_once_is_asked_for() -> None:
    assert says(exchange(address=OTHER)).options[50] == OTHER.packed


@pytest.mark.parametrize("state", [RENEWING, REBINDING])
def test_who_holds_an_address_asks_from_it_and_names_no_server(state: str) -> None:
    request = says(exchange(state))
    assert request.type == REQUEST and request.ciaddr == HELD.packed
    assert not {50, 54} & request.options.keys()


@pytest.mark.parametrize("state", [SELECTING, RENEWING, REBINDING])
def test_what_is_no_answer_to_this_very_question_is_passed_over(state: str) -> None:
    one = exchange(state)
    asked = says(one)
    kind = OFFER if state == SELECTING else ACK
    for wrong in (
        answer(asked, kind, xid=asked.xid ^ 1),
        answer(asked, kind, client=b"\2\0\0\0\0\2"),
        answer(asked, kind, reply=False),
        answer(asked, kind, Ip.parse("0.0.0.0")),
        answer(asked, kind, Ip.parse("127.0.0.1")),
        answer(asked, kind, Ip.parse("255.255.255.255")),
        answer(asked, 0),
        answer(asked, DISCOVER),
        answer(asked, ACK if state == SELECTING else OFFER),
        answer(asked, kind, options={53: b""}),
    ):
        one.hear(wrong, STATION, 101.0)
        assert one.granted is None and not one.over and one.heard == 0 and not one.refused


def test_an_offer_without_a_server_cannot_be_taken() -> None:
    one = exchange()
    one.hear(answer(says(one), OFFER, server=None), STATION, 101.0)
    assert one.heard == 0


def test_an_acknowledgement_of_another_address_or_server_or_of_no_time_is_none() -> None:
    for state, wrong in (
        (RENEWING, {"address": OTHER}),
        (REBINDING, {"address": OTHER}),
        (RENEWING, {"server": SECOND}),
        (RENEWING, {"options": {51: bytes(4)}}),
    ):
        one = exchange(state)
        one.hear(answer(says(one), ACK, **wrong), STATION, 101.0)  # type: ignore[arg-type]  # one of the parameters
        assert one.granted is None, wrong


def test_any_server_may_rebind() -> None:
    one = exchange(REBINDING)
    one.hear(answer(says(one), ACK, server=SECOND), STATION, 101.0)
    assert one.granted is not None and one.granted.ack.server == SECOND.packed


@pytest.mark.parametrize(
    ("state", "server", "lost"), [(RENEWING, SERVER, True), (RENEWING, SECOND, False), (REBINDING, SECOND, True)]
)
def test_a_refusal_ends_a_lease_where_the_server_may_refuse(state: str, server: Ip, lost: bool) -> None:
    one = exchange(state)
    one.hear(answer(says(one), NAK, server=server, options={56: b"gone\x1b[31m"}), STATION, 101.0)
    assert one.over == lost
    assert one.refused == ("gone?[31m" if lost else "")


def test_a_refused_offer_is_not_asked_for_again() -> None:
    one = exchange()
    discover = says(one)
    one.hear(answer(discover, OFFER), STATION, 100.1)
    one.hear(answer(says(one, 100.1), NAK), STATION, 100.2)
    assert not one.over and one.due > 100.2
    again = says(one, one.due)
    assert again.type == DISCOVER and 50 not in again.options and again.xid != discover.xid


def test_an_offer_whose_server_falls_silent_is_given_up_for_others() -> None:
    one = Exchange(CLIENT, state=SELECTING, begin=0.0, end=1000.0)
    one.hear(answer(says(one, 0.0), OFFER), STATION, 0.1)
    sent = [says(one, now := 0.2)]
    while sent[-1].type == REQUEST:
        now = one.due
        sent.append(says(one, now))
    assert len(sent) == 5 and sent[-1].type == DISCOVER
    one.hear(answer(sent[-1], OFFER, OTHER, server=SECOND), STATION, now + 1)
    assert says(one, now + 1).options[54] == SECOND.packed


def test_messages_are_repeated_ever_less_often_and_say_for_how_long() -> None:
    one = Exchange(CLIENT, state=SELECTING, begin=0.0, end=60.0)
    times = []
    while one.due < one.end:
        times.append(one.due)
        assert says(one, one.due).seconds == int(times[-1])
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] < 0.15 and all(6 <= pause <= 10 for pause in pauses[5:])
    assert pauses[0] < pauses[1] < pauses[2] < pauses[4]
    assert 10 <= len(times) <= 15
    assert one.due == 60.0


def test_a_release_names_the_lease_and_nothing_else() -> None:
    found = message.parse(release(CLIENT, HELD, SERVER))
    assert found.ciaddr == HELD.packed and found.client == CLIENT.mac
    assert dict(found.options) == {53: b"\7", 54: SERVER.packed, 61: CLIENT.id}
    # What is provided as identifier is the one that the server knows.
    other = release(CLIENT.replace(provide={61: b"chosen"}), HELD, SERVER)
    assert message.parse(other).options[61] == b"chosen"


@given(st.lists(st.tuples(st.sampled_from([OFFER, ACK, NAK, 0, 9]), st.binary(min_size=4, max_size=4)), max_size=12))
def test_whatever_servers_say_an_exchange_ends_with_an_address_or_without(said: list[tuple[int, bytes]]) -> None:
    one = exchange()
    now = 100.0
    for kind, address in said:
        asked = says(one, now)
        now += 0.5
        one.hear(answer(asked, kind, Ip(packed=address)), STATION, now)
        if one.granted is not None:
            assert one.granted.ack.yiaddr == asked.options[50]
            break


def lease(**more: Any) -> Lease:
    sandbox = Sandbox(path="/x", boot="b", device=1, inode=2, cookie=3, index=4)
    given: dict[str, Any] = {
        "network": "n",
        "container": "c",
        "ifname": "i",
        "sandbox": sandbox,
        "client": CLIENT,
        "options": {},
        "state": REQUESTING,
        "address": HELD,
        "server": SERVER,
        "station": b"",
        **more,
    }
    return Lease(**given)


def seconds(**options: int) -> Message:
    codes = {"lasts": 51, "t1": 58, "t2": 59}
    found = {codes[name]: struct.pack("!I", value) for name, value in options.items()}
    return answer(says(exchange()), ACK, options=found)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"lasts": 1000}, (500, 875, 1000)),
        ({"lasts": 1000, "t1": 100, "t2": 900}, (100, 900, 1000)),
        ({"lasts": 1000, "t1": 950, "t2": 900}, (500, 875, 1000)),
        ({"lasts": 1000, "t2": 2000}, (500, 875, 1000)),
        ({"lasts": 0xFFFFFFFF}, (FOREVER, FOREVER, FOREVER)),
        ({"lasts": 0xFFFFFFFF, "t1": 5}, (FOREVER, FOREVER, FOREVER)),
    ],
)
def test_times_are_the_servers_where_they_make_sense(options: dict[str, int], wanted: tuple[float, ...]) -> None:
    found = lease().bound(seconds(**options), STATION, asked=7000.0, fuzz=0.0)
    times = (found.renew, found.rebind, found.expires)
    assert times == tuple(7000 + moment for moment in wanted)
    assert found.next == found.renew and found.state == BOUND and found.station == STATION


@given(st.floats(0, 1), st.integers(1, 2**32 - 2))
def test_clients_of_one_moment_come_back_at_several_never_late(fuzz: float, lasts: int) -> None:
    found = lease().bound(seconds(lasts=lasts), STATION, asked=0.0, fuzz=fuzz)
    assert lasts * 0.45 <= found.renew <= lasts * 0.5 <= found.rebind <= lasts * 0.875 < found.expires == lasts


def test_a_server_that_says_no_time_means_an_hour() -> None:
    ack = answer(says(exchange()), ACK)
    found = lease().bound(ack.replace(options={54: SERVER.packed}), STATION, asked=0.0, fuzz=0.0)
    assert found.expires == 3600


def test_what_a_renewal_does_not_repeat_stays() -> None:
    first = lease().bound(
        answer(says(exchange()), ACK, options={1: b"\xff\xff\0\0", 3: b"\x0a\5\0\1"}), STATION, asked=0.0, fuzz=0.0
    )
    again = first.bound(answer(says(exchange()), ACK, options={3: b"\x0a\5\0\2"}), b"", asked=9.0, fuzz=0.0)
    assert str(again.net) == "10.5.0.50/16" and str(again.gateway) == "10.5.0.2"
    assert again.station == STATION
