"""The netlink socket: attributes, batches, dumps, transactions, and what can go wrong between us and the kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg

from nodeplug.kernel.attributes import (
    attr,
    attr_text,
)
from nodeplug.kernel.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Netlink,
    NetlinkError,
    split,
)
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.rtnl import bridges, links
from tests.child import run
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox")

SILENT = 1  # a control message (NLMSG_NOOP), which the kernel passes over
NEWTABLE = 10 << 8
DELTABLE = 10 << 8 | 2


@given(type=st.integers(0, 0xFFFF), sequence=st.integers(0, 2**40), payload=st.binary(max_size=60))
def test_a_message_reads_the_same_to_pyroute2_and_to_us(type: int, sequence: int, payload: bytes) -> None:
    data = Message(type, NLM_F_CREATE, payload).encode(sequence, NLM_F_ACK)
    theirs = nlmsg(data)
    theirs.decode()
    header = theirs["header"]
    assert (header["type"], header["sequence_number"]) == (type, sequence % 2**32)
    ((read_type, flags, read_sequence, body),) = split(data)
    assert (read_type, flags, read_sequence, body) == (type, header["flags"], sequence % 2**32, payload)


@given(st.binary(max_size=200))
def test_any_datagram_is_read_without_going_past_its_end(data: bytes) -> None:
    assert sum(16 + len(body) for _type, _flags, _sequence, body in split(data)) <= len(data)


# Batches


def test_nothing_to_send_is_nothing_done(route: Netlink) -> None:
    assert route.request() == []
    assert route.attempt() == []


def test_a_thousand_refusals_all_come_back(route: Netlink) -> None:
    outcome = route.attempt(*[links.delete(f"absent{n}") for n in range(1000)])
    assert [(item.errno, item.index, item.subject) for item in outcome if isinstance(item, NetlinkError)] == [
        (errno.ENODEV, n, f"absent{n}") for n in range(1000)
    ]


def test_five_hundred_answers_all_come_back(route: Netlink) -> None:
    answers = route.request(*[links.query("lo") for _ in range(500)])
    assert {links.parse(answer or b"").name for answer in answers} == {"lo"}


def test_the_sequence_number_wraps_around(route: Netlink) -> None:
    route._sequence = 2**32 - 3
    answers = route.request(*[links.query("lo") for _ in range(6)])
    assert all(answers)
    assert len(links.dump(route)) == 1


def test_an_error_without_a_call_is_still_a_sentence(route: Netlink) -> None:
    with pytest.raises(NetlinkError) as caught:
        route.request(Message(0xFFF0, 0, b""))
    assert str(caught.value) == "[Errno 95] Operation not supported"


# What can go wrong


def test_no_answer_in_time_names_the_call_and_what_it_was_about(opened: Netns) -> None:
    with Netlink(NETLINK_ROUTE, netns=opened, timeout=0.05) as route:
        for _ in range(2):
            with pytest.raises(
                TimeoutError, match=r"silence: .*no answer from the kernel in 0.05 s.*'nowhere'"
            ) as caught:
                route.dump(Message(SILENT, 0, b"", "silence", "nowhere"))
            assert caught.value.errno == errno.ETIMEDOUT


class Hasty(Netlink):
    """It gives up before it has looked for an answer."""

    hasty = True

    def _receive(self, deadline: float, message: Message) -> list[tuple[int, int, int, bytes]]:
        if self.hasty:
            raise TimeoutError
        return super()._receive(deadline, message)


def test_a_late_answer_is_passed_over_by_the_next_call(opened: Netns) -> None:
    with Hasty(NETLINK_ROUTE, netns=opened) as route:
        for request in (bridges.add("late"), links.query("late")):
            with pytest.raises(TimeoutError):
                route.request(request)
        route.hasty = False  # the answers to both are waiting now
        link = links.find(route, "lo")
        assert link is not None
        assert link.name == "lo"
        assert links.find(route, "absent") is None
        assert {found.name for found in links.dump(route)} == {"lo", "late"}


def test_only_the_kernel_is_believed(netns: Space, route: Netlink) -> None:
    port = socket.socket(fileno=os.dup(route.fileno()))
    address = port.getsockname()
    port.close()

    def forge() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as pod:
            acknowledgement = struct.pack("=IHHIIi", 36, 2, 0x100, 1, address[0], 0) + bytes(16)
            with pytest.raises(ConnectionRefusedError):
                pod.sendto(acknowledgement, (address[0], 0))

    netns.call(forge)
    with pytest.raises(NetlinkError, match="link delete: No such device"):
        route.request(links.delete("absent"))


def test_an_answer_larger_than_the_buffer_is_an_error_not_half_an_answer(route: Netlink) -> None:
    route._largest = 512
    with pytest.raises(OSError, match=r"link get: .*an answer of \d+ bytes.*'lo'") as caught:
        links.find(route, "lo")
    assert caught.value.errno == errno.EMSGSIZE


def test_a_closed_socket_names_the_call(opened: Netns) -> None:
    route = Netlink(NETLINK_ROUTE, netns=opened)
    route.close()
    with pytest.raises(OSError, match=r"link get: Bad file descriptor"):
        links.find(route, "lo")


class Disturbed(Netlink):
    """Its namespace gets another link after the first part of each of the next dumps."""

    disturbances = 0

    def _receive(self, deadline: float, message: Message) -> list[tuple[int, int, int, bytes]]:
        received = super()._receive(deadline, message)
        if message.call == "link dump" and self.disturbances:
            self.disturbances -= 1
            with Netlink(NETLINK_ROUTE, netns=self.netns) as other:
                other.request(bridges.add(f"new{self.disturbances}"))
        return received


def test_an_interrupted_dump_is_started_again_until_it_is_whole(opened: Netns) -> None:
    with Disturbed(NETLINK_ROUTE, netns=opened) as route:
        route.request(*[bridges.add(f"cni{n}") for n in range(60)])  # more than one datagram
        route.disturbances = 3
        found = links.dump(route)
        assert route.disturbances == 0
        assert len(found) == len({link.index for link in found}) == 1 + 60 + 3


def test_a_dump_that_never_comes_whole_ends(opened: Netns) -> None:
    with Disturbed(NETLINK_ROUTE, netns=opened) as route:
        route.request(*[bridges.add(f"cni{n}") for n in range(60)])
        route.disturbances = 1000
        with pytest.raises(OSError, match=r"link dump: .*interrupted 8 times by changes") as caught:
            links.dump(route)
        assert caught.value.errno == errno.EAGAIN
        route.disturbances = 0
        assert len(links.dump(route)) > 60


# Transactions


BEGIN = Message(0x10, 0, struct.pack(">BBH", 0, 0, 10), "nft begin")
END = Message(0x11, 0, struct.pack(">BBH", 0, 0, 10), "nft end")


def table(type: int, name: str, flags: int = 0) -> Message:
    return Message(type, flags, struct.pack(">BBH", 1, 0, 0) + attr_text(1, name), "table", name)


def tables(netns: Space) -> set[str]:
    listed = netns.run("nft", "-j", "list", "tables").ok().json()["nftables"]
    return {entry["table"]["name"] for entry in listed if "table" in entry}


@needs("program:nft")
def test_a_transaction_takes_effect_whole_or_not_at_all(netns: Space, opened: Netns) -> None:
    with Netlink(NETLINK_NETFILTER, netns=opened) as filters:
        filters.transaction(BEGIN, [table(NEWTABLE, name, NLM_F_CREATE | NLM_F_EXCL) for name in "abc"], END)
        assert tables(netns) == {"a", "b", "c"}
        with pytest.raises(NetlinkError, match="table: No such file or directory: 'x'") as caught:
            filters.transaction(BEGIN, [table(DELTABLE, name) for name in "axb"], END)
        assert (caught.value.index, caught.value.offset) == (1, 4)  # behind the family's header
        assert tables(netns) == {"a", "b", "c"}
        filters.transaction(BEGIN, [], END)
        filters.transaction(BEGIN, [table(DELTABLE, name) for name in "abc"], END)
        assert tables(netns) == set()


def test_a_large_transaction_tells_every_refusal(opened: Netns) -> None:
    with Netlink(NETLINK_NETFILTER, netns=opened) as filters:
        messages = [table(NEWTABLE, f"t{n}", NLM_F_CREATE) for n in range(1000)]
        assert filters.attempt_transaction(BEGIN, messages, END) == []
        messages = [table(DELTABLE, f"t{n}" if n % 2 else f"absent-{n}") for n in range(1000)]
        failed = filters.attempt_transaction(BEGIN, messages, END)
        assert [error.index for error in failed] == list(range(0, 1000, 2))
        assert {error.errno for error in failed} == {errno.ENOENT}
        filters.transaction(BEGIN, [table(DELTABLE, f"t{n}") for n in range(1000)], END)


def test_a_large_transaction_needs_no_right_in_the_first_user_namespace() -> None:
    script = (
        "from tests.kernel.test_netlink import *\n"
        "with Netlink(NETLINK_NETFILTER) as filters:\n"
        "    filters.transaction(BEGIN, [table(NEWTABLE, f't{n}', NLM_F_CREATE) for n in range(1000)], END)\n"
        "    filters.transaction(BEGIN, [table(DELTABLE, f't{n}') for n in range(1000)], END)\n"
    )
    run(["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", script], timeout=60).ok()


def test_a_batch_refused_as_a_whole_says_so(opened: Netns) -> None:
    lost_race = Message(0x10, 0, struct.pack(">BBH", 0, 0, 10) + attr(1, struct.pack(">I", 4711)), "nft begin")
    with Netlink(NETLINK_NETFILTER, netns=opened) as filters:
        with pytest.raises(NetlinkError, match="nft begin") as caught:
            filters.transaction(lost_race, [table(NEWTABLE, "a", NLM_F_CREATE)], END)
        assert (caught.value.errno, caught.value.index) == (errno.ERESTART, -1)
        filters.transaction(BEGIN, [table(NEWTABLE, "a", NLM_F_CREATE), table(DELTABLE, "a")], END)
