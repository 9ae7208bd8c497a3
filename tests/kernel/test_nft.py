"""What nodeplug.kernel.nft writes, nft reads, and the reverse."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel import netns as namespaces
from nodeplug.kernel.attributes import attr_text, nest
from nodeplug.kernel.listener import NFNLGRP_NFTABLES, Listener
from nodeplug.kernel.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError, netfilter
from nodeplug.kernel.netns import Netns
from nodeplug.kernel.nft import elements, expressions, messages, wire
from nodeplug.kernel.nft.elements import Element
from nodeplug.kernel.nft.expressions import R0
from nodeplug.kernel.nft.wire import INET, INET_PROTO, INET_SERVICE, IPV4_ADDR, IPV6_ADDR
from tests.child import until
from tests.kernel.rights import drop_this_threads_capabilities
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:nft")

TABLE = "nodeplug"
TCP = b"\x06"
POD = socket.inet_aton("10.1.0.2")
POD6 = socket.inet_pton(socket.AF_INET6, "fd00::2")


@pytest.fixture
def netlink(ledger: Ledger, netns: Space) -> Netlink:
    with Netns.open(netns.path) as opened:
        made = Netlink(NETLINK_NETFILTER, netns=opened)
    ledger.adopt("netlink", made.close)
    return made


def shown(netns: Space, kind: str) -> list[dict[str, Any]]:
    listed = netns.run("nft", "-j", "list", "ruleset").ok().json()["nftables"]
    return [{k: v for k, v in item[kind].items() if k != "handle"} for item in listed if kind in item]


def host_ports() -> list[Message]:
    """A table with one of everything: maps, sets, a verdict map, base chains, rules, comments, elements."""
    return [
        messages.add_table(INET, TABLE, exclusive=True),
        messages.add_set(
            INET,
            TABLE,
            "ports4",
            (INET_PROTO, INET_SERVICE),
            data=(IPV4_ADDR, INET_SERVICE),
            comment="hostPort to pod",
        ),
        messages.add_set(INET, TABLE, "ports6", (INET_PROTO, INET_SERVICE), data=(IPV6_ADDR, INET_SERVICE)),
        messages.add_set(INET, TABLE, "owner", (INET_PROTO, INET_SERVICE), data=(IPV4_ADDR,)),
        messages.add_set(INET, TABLE, "special", (INET_PROTO, INET_SERVICE), verdicts=True),
        messages.add_set(INET, TABLE, "pods", (IPV4_ADDR,), size=1000),
        messages.add_set(INET, TABLE, "pods6", (IPV6_ADDR,)),
        messages.add_set(INET, TABLE, "links", (wire.IFNAME,)),
        messages.add_set(INET, TABLE, "snat4", (IPV4_ADDR, INET_PROTO, INET_SERVICE, INET_SERVICE)),
        messages.add_chain(INET, TABLE, "hostports"),
        messages.add_base_chain(INET, TABLE, "prerouting", type="nat", hook=messages.PREROUTING, priority=-100),
        messages.add_base_chain(INET, TABLE, "postrouting", type="nat", hook=messages.POSTROUTING, priority=100),
        messages.add_base_chain(
            INET, TABLE, "raw", type="filter", hook=messages.PREROUTING, priority=-300, policy=messages.POLICY_DROP
        ),
        messages.add_rule(
            INET,
            TABLE,
            "prerouting",
            expressions.fib(expressions.FIB_DADDR, expressions.FIB_ADDRTYPE),
            expressions.cmp(expressions.EQ, struct.pack("=I", expressions.RTN_LOCAL)),
            expressions.verdict(expressions.JUMP, "hostports"),
            comment="never to other hosts",
        ),
        messages.add_rule(
            INET,
            TABLE,
            "hostports",
            expressions.meta(expressions.META_L4PROTO),
            expressions.payload(expressions.TRANSPORT, 2, 2, R0 + 1),
            expressions.lookup("ports4", into=R0),
            expressions.dnat(wire.IPV4, R0, R0 + 1),
        ),
        messages.add_rule(
            INET,
            TABLE,
            "hostports",
            expressions.meta(expressions.META_L4PROTO),
            expressions.payload(expressions.TRANSPORT, 2, 2, R0 + 1),
            expressions.lookup("special", into=0),
        ),
        messages.add_rule(
            INET,
            TABLE,
            "postrouting",
            expressions.ct(expressions.CT_STATUS),
            expressions.bitwise(struct.pack("=I", expressions.STATUS_DNAT)),
            expressions.cmp(expressions.NEQ, bytes(4)),
            expressions.meta(expressions.META_NFPROTO),
            expressions.cmp(expressions.EQ, bytes([socket.AF_INET])),
            expressions.meta(expressions.META_L4PROTO),
            expressions.cmp(expressions.EQ, TCP),
            expressions.payload(expressions.NETWORK, 16, 4),
            expressions.meta(expressions.META_L4PROTO, R0 + 1),
            expressions.payload(expressions.TRANSPORT, 2, 2, R0 + 2),
            expressions.ct(expressions.CT_PROTO_DST, R0 + 3, direction=expressions.DIR_ORIGINAL),
            expressions.lookup("snat4"),
            expressions.masquerade(),
        ),
        messages.add_rule(
            INET,
            TABLE,
            "postrouting",
            expressions.meta(expressions.META_NFPROTO),
            expressions.cmp(expressions.EQ, bytes([socket.AF_INET])),
            expressions.payload(expressions.NETWORK, 12, 4),
            expressions.lookup("pods"),
            expressions.payload(expressions.NETWORK, 16, 4),
            expressions.bitwise(bytes((255, 255, 240, 0))),
            expressions.cmp(expressions.NEQ, socket.inet_aton("10.1.0.0")),
            expressions.counter(),
            expressions.masquerade(),
        ),
        messages.add_rule(
            INET,
            TABLE,
            "raw",
            expressions.meta(expressions.META_IIF),
            expressions.cmp(expressions.NEQ, struct.pack("=I", 1)),
            expressions.meta(expressions.META_IIFNAME),
            expressions.lookup("links", inverted=True),
            expressions.verdict(expressions.DROP),
        ),
        *elements.add_elements(
            INET,
            TABLE,
            "ports4",
            [Element(key=wire.concat(TCP, wire.port(8080)), data=wire.concat(POD, wire.port(80)), comment="np web")],
        ),
        *elements.add_elements(
            INET,
            TABLE,
            "ports6",
            [Element(key=wire.concat(TCP, wire.port(8080)), data=wire.concat(POD6, wire.port(80)))],
        ),
        *elements.add_elements(
            INET, TABLE, "special", [Element(key=wire.concat(TCP, wire.port(1)), verdict=(expressions.RETURN, ""))]
        ),
        *elements.add_elements(
            INET,
            TABLE,
            "snat4",
            [Element(key=wire.concat(POD, TCP, wire.port(80), wire.port(8080)))],
        ),
        *elements.add_elements(INET, TABLE, "pods", [Element(key=POD, comment="np a/b/c")]),
        *elements.add_elements(INET, TABLE, "pods6", [Element(key=POD6)]),
        *elements.add_elements(INET, TABLE, "links", [Element(key=b"eth0".ljust(16, b"\0"))]),
    ]


EXPECTED = """\
table inet nodeplug {
	map ports4 {
		type inet_proto . inet_service : ipv4_addr . inet_service
		comment "hostPort to pod"
		elements = { tcp . 8080 comment "np web" : 10.1.0.2 . 80 }
	}

	map ports6 {
		type inet_proto . inet_service : ipv6_addr . inet_service
		elements = { tcp . 8080 : fd00::2 . 80 }
	}

	map owner {
		type inet_proto . inet_service : ipv4_addr
	}

	map special {
		type inet_proto . inet_service : verdict
		elements = { tcp . 1 : return }
	}

	set pods {
		type ipv4_addr
		size 1000
		elements = { 10.1.0.2 comment "np a/b/c" }
	}

	set pods6 {
		type ipv6_addr
		elements = { fd00::2 }
	}

	set links {
		type ifname
		elements = { "eth0" }
	}

	set snat4 {
		type ipv4_addr . inet_proto . inet_service . inet_service
		elements = { 10.1.0.2 . tcp . 80 . 8080 }
	}

	chain hostports {
		dnat ip to meta l4proto . th dport map @ports4
		meta l4proto . th dport vmap @special
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports comment "never to other hosts"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat ip daddr . meta l4proto . tcp dport . ct original proto-dst @snat4 masquerade
		ip saddr @pods ip daddr != 10.1.0.0/20 counter packets 0 bytes 0 masquerade
	}

	chain raw {
		type filter hook prerouting priority raw; policy drop;
		iif != "lo" iifname != @links drop
	}
}"""


def test_nft_lists_what_was_written_in_its_own_words(netlink: Netlink, netns: Space) -> None:
    messages.commit(netlink, host_ports())
    assert netns.run("nft", "list", "ruleset").ok().text == EXPECTED


def test_a_listed_ruleset_loads_again_and_lists_the_same(netlink: Netlink, netns: Space) -> None:
    messages.commit(netlink, host_ports())
    listed = netns.run("nft", "list", "ruleset").ok()
    netns.run("nft", "flush", "ruleset").ok()
    netns.run("nft", "-f", "-", stdin=listed.stdout).ok()
    assert netns.run("nft", "list", "ruleset").ok().text == listed.text


def test_a_reloaded_ruleset_reads_back_as_it_was_written(netlink: Netlink, netns: Space) -> None:
    messages.commit(netlink, host_ports())

    def all_of_it() -> object:
        found = messages.sets(netlink, INET, TABLE)
        return (
            messages.tables(netlink, INET),
            messages.chains(netlink, INET, TABLE),
            [(rule.chain, rule.comment, rule.expressions) for rule in messages.rules(netlink, INET, TABLE)],
            found,
            [elements.dump_elements(netlink, INET, TABLE, item.name) for item in found],
        )

    before = all_of_it()
    listed = netns.run("nft", "list", "ruleset").ok()
    netns.run("nft", "-f", "-", stdin=b"flush ruleset\n" + listed.stdout).ok()
    assert all_of_it() == before


def test_what_nft_wrote_is_read(netlink: Netlink, netns: Space) -> None:
    netns.run(
        "nft",
        "-f",
        "-",
        stdin=b"""
        table inet other {
          comment "of somebody else"
          map m { type inet_proto . inet_service : ipv4_addr . inet_service; comment "m's"
                  elements = { udp . 53 comment "dns" : 10.1.0.9 . 5353 } }
          map v { type inet_service : verdict; elements = { 80 : jump c } }
          chain c { tcp dport 80 counter drop comment "web"; }
          chain in { type filter hook input priority 5; policy drop; }
        }
        table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; }; }
        """,
    ).ok()
    assert messages.tables(netlink, INET) == [messages.Table(name="other", comment="of somebody else")]
    found = {item.name: item for item in messages.sets(netlink, INET, "other")}
    assert found["m"].is_map and found["m"].comment == "m's"
    assert found["m"].key_type == wire.packed_type((INET_PROTO, INET_SERVICE))
    assert found["m"].data_type == wire.packed_type((IPV4_ADDR, INET_SERVICE))
    assert found["v"].data_type == messages.VERDICT
    assert elements.dump_elements(netlink, INET, "other", "m") == [
        Element(
            key=wire.concat(b"\x11", wire.port(53)),
            data=wire.concat(socket.inet_aton("10.1.0.9"), wire.port(5353)),
            comment="dns",
        )
    ]
    assert elements.dump_elements(netlink, INET, "other", "v") == [
        Element(key=wire.port(80), verdict=(expressions.JUMP, "c"))
    ]
    (rule,) = messages.rules(netlink, INET, "other")
    assert (rule.chain, rule.comment) == ("c", "web")
    assert [part.name for part in rule.expressions] == ["meta", "cmp", "payload", "cmp", "counter", "immediate"]
    assert rule.expressions[0].number(2) == expressions.META_L4PROTO
    assert [item.name for item in messages.chains(netlink, INET, "other")] == ["c", "in"]
    assert messages.chain(netlink, wire.IPV4, "filter", "FORWARD") == messages.Chain(
        name="FORWARD", type="filter", hook=messages.FORWARD, priority=0, policy=messages.POLICY_DROP
    )


def test_one_named_chain_is_none_when_it_or_its_table_is_not_there(netlink: Netlink) -> None:
    assert messages.chain(netlink, wire.IPV4, "filter", "FORWARD") is None
    messages.commit(netlink, [messages.add_table(wire.IPV4, "filter")])
    assert messages.chain(netlink, wire.IPV4, "filter", "FORWARD") is None


def test_lists_of_a_missing_table_are_empty(netlink: Netlink) -> None:
    assert messages.rules(netlink, INET, TABLE) == []
    assert messages.chains(netlink, INET, TABLE) == []
    assert messages.sets(netlink, INET, TABLE) == []
    with pytest.raises(NetlinkError) as refused:
        elements.dump_elements(netlink, INET, TABLE, "pods")
    assert refused.value.errno == errno.ENOENT


def test_a_refused_message_takes_the_whole_transaction_back(netlink: Netlink, netns: Space) -> None:
    with pytest.raises(NetlinkError) as refused:
        messages.commit(netlink, [*host_ports(), messages.delete_set(INET, TABLE, "nowhere")])
    assert refused.value.errno == errno.ENOENT
    assert refused.value.index == len(host_ports())
    assert "delete set" in str(refused.value) and "inet nodeplug nowhere" in str(refused.value)
    assert netns.run("nft", "list", "ruleset").ok().text == ""


def test_an_exclusive_table_is_refused_where_there_is_one(netlink: Netlink) -> None:
    messages.commit(netlink, host_ports())
    with pytest.raises(NetlinkError) as refused:
        messages.commit(netlink, host_ports())
    assert (refused.value.errno, refused.value.index) == (errno.EEXIST, 0)
    messages.commit(netlink, [messages.add_table(INET, TABLE)])


def test_sets_and_chains_that_exist_are_left_alone(netlink: Netlink, netns: Space) -> None:
    again = [message for message in host_ports() if message.call in ("add set", "add chain")]
    messages.commit(netlink, host_ports())
    messages.commit(netlink, [messages.add_table(INET, TABLE), *again])
    assert netns.run("nft", "list", "ruleset").ok().text == EXPECTED


def test_every_refused_delete_is_named(netlink: Netlink) -> None:
    messages.commit(netlink, host_ports())
    keys = [socket.inet_aton(address) for address in ("10.1.0.3", "10.1.0.2", "10.1.0.4")]
    refused = messages.attempt(netlink, elements.delete_elements(INET, TABLE, "pods", keys))
    assert [(error.index, error.errno) for error in refused] == [(0, errno.ENOENT), (2, errno.ENOENT)]
    assert [item.key for item in elements.dump_elements(netlink, INET, TABLE, "pods")] == [POD]
    assert messages.attempt(netlink, elements.delete_elements(INET, TABLE, "pods", keys[1:2])) == []
    assert elements.dump_elements(netlink, INET, TABLE, "pods") == []


def test_an_element_is_exclusive_when_asked_and_idempotent_when_not(netlink: Netlink) -> None:
    messages.commit(netlink, host_ports())
    again = [Element(key=POD, comment="another")]
    messages.commit(netlink, elements.add_elements(INET, TABLE, "pods", again))
    assert elements.dump_elements(netlink, INET, TABLE, "pods")[0].comment == "np a/b/c"
    with pytest.raises(NetlinkError) as refused:
        messages.commit(netlink, elements.add_elements(INET, TABLE, "pods", again, exclusive=True))
    assert refused.value.errno == errno.EEXIST


def test_elements_are_looked_up_by_key(netlink: Netlink) -> None:
    messages.commit(netlink, host_ports())
    web = wire.concat(TCP, wire.port(8080))
    found = elements.get_elements(
        netlink,
        INET,
        [(TABLE, "pods", POD), (TABLE, "ports4", web), (TABLE, "pods", bytes(4)), (TABLE, "x", POD), ("x", "x", POD)],
    )
    assert found == [
        Element(key=POD, comment="np a/b/c"),
        Element(key=web, data=wire.concat(POD, wire.port(80)), comment="np web"),
        None,
        None,
        None,
    ]


def test_five_thousand_elements_go_in_and_out(netlink: Netlink, netns: Space) -> None:
    messages.commit(
        netlink, [messages.add_table(INET, TABLE), messages.add_set(INET, TABLE, "many", (INET_PROTO, INET_SERVICE))]
    )
    many = [Element(key=wire.concat(TCP, wire.port(n)), comment="x" * 127) for n in range(5000)]
    messages.commit(netlink, elements.add_elements(INET, TABLE, "many", many))
    # While the kernel still grows the hash table, a dump may miss an element or give one twice.
    until(lambda: set(elements.dump_elements(netlink, INET, TABLE, "many")) == set(many), "all are listed")
    found = elements.dump_elements(netlink, INET, TABLE, "many")
    assert sorted(found, key=lambda item: item.key) == many
    assert len(elements.get_elements(netlink, INET, [(TABLE, "many", item.key) for item in many[:500]])) == 500
    keys = [item.key for item in many]
    gone = [wire.concat(b"\x11", wire.port(n)) for n in range(1000)]
    refused = messages.attempt(netlink, elements.delete_elements(INET, TABLE, "many", [*keys, *gone]))
    assert len(refused) == 1000
    messages.commit(netlink, elements.delete_elements(INET, TABLE, "many", keys))
    assert elements.dump_elements(netlink, INET, TABLE, "many") == []


def test_a_transaction_may_depend_on_nothing_having_changed(netlink: Netlink, netns: Space) -> None:
    seen = messages.generation(netlink)
    messages.commit(netlink, host_ports(), generation=seen)
    with pytest.raises(NetlinkError) as refused:
        messages.commit(netlink, [messages.delete_table(INET, TABLE)], generation=seen)
    assert (refused.value.errno, refused.value.index) == (errno.ERESTART, -1)
    messages.commit(netlink, [messages.delete_table(INET, TABLE)], generation=messages.generation(netlink))
    assert messages.tables(netlink, INET) == []


def test_a_listener_may_pass_over_what_its_own_process_does(netns: Space) -> None:
    with Netns.open(netns.path) as opened, Listener(NETLINK_NETFILTER, NFNLGRP_NFTABLES, netns=opened) as listener:
        listener.pass_over_own()
        with namespaces.entered(opened):
            own, other = netfilter(), netfilter()
        with own, other:
            messages.commit(own, [messages.add_table(INET, TABLE)])
            messages.commit(other, [messages.delete_table(INET, TABLE)])
            assert listener.receive(0) == []
            netns.run("nft", "add table inet theirs").ok()
            messages.commit(own, [messages.add_table(INET, TABLE)])
        heard = b"".join(body for _, body in listener.receive(5))
        assert b"theirs" in heard
        assert TABLE.encode() not in heard


def test_rules_are_deleted_one_by_one_and_with_their_chain(netlink: Netlink, netns: Space) -> None:
    messages.commit(netlink, host_ports())
    first, second = messages.rules(netlink, INET, TABLE, "postrouting")
    messages.commit(netlink, [messages.delete_rule(INET, TABLE, "postrouting", first.handle)])
    assert [rule.handle for rule in messages.rules(netlink, INET, TABLE, "postrouting")] == [second.handle]
    with pytest.raises(NetlinkError) as refused:
        messages.commit(netlink, [messages.delete_set(INET, TABLE, "pods")])
    assert refused.value.errno == errno.EBUSY
    messages.commit(
        netlink,
        [
            messages.delete_rule(INET, TABLE, "postrouting"),
            messages.delete_set(INET, TABLE, "pods"),
            messages.delete_chain(INET, TABLE, "raw"),
        ],
    )
    assert "raw" not in [item["name"] for item in shown(netns, "chain")]
    assert "pods" not in [item["name"] for item in shown(netns, "set")]


def test_a_long_comment_is_cut_between_characters_to_what_nft_loads(netlink: Netlink, netns: Space) -> None:
    messages.commit(netlink, [messages.add_table(INET, TABLE), messages.add_set(INET, TABLE, "pods", (IPV4_ADDR,))])
    messages.commit(netlink, elements.add_elements(INET, TABLE, "pods", [Element(key=POD, comment="x" + "é" * 200)]))
    (found,) = elements.dump_elements(netlink, INET, TABLE, "pods")
    assert found.comment == "x" + "é" * 63
    listed = netns.run("nft", "list", "ruleset").ok()
    netns.run("nft", "-f", "-", stdin=b"flush ruleset\n" + listed.stdout).ok()
    assert elements.dump_elements(netlink, INET, TABLE, "pods") == [found]


def test_without_the_right_the_error_names_the_transaction(netns: Space) -> None:
    denied = netns.run(
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "/usr/bin/python3",
        "-c",
        "from nodeplug.kernel.netlink import *; from nodeplug.kernel.nft import messages\n"
        "messages.commit(Netlink(NETLINK_NETFILTER), [messages.add_table(1, 'x')])",
    )
    assert denied.code == 1
    assert b"[Errno 1] nft transaction: Operation not permitted" in denied.stderr


@given(st.binary(max_size=200))
def test_any_bytes_read_as_some_list_of_elements(data: bytes) -> None:
    for element in elements.read_elements(data):
        assert isinstance(element.key, bytes)
    for element in elements.read_elements(bytes(4) + nest(3, nest(1, data))):
        assert isinstance(element.comment, str)


@given(st.binary(max_size=200))
def test_any_bytes_read_as_some_rule_chain_and_set(data: bytes) -> None:
    assert isinstance(messages.read_rule(data).chain, str)
    assert isinstance(messages.read_chain(data).name, str)
    assert isinstance(messages.read_set(data).name, str)
    assert isinstance(messages.read_rule(bytes(4) + nest(4, nest(1, attr_text(1, "meta"), data))).handle, int)
    assert isinstance(messages.read_chain(bytes(4) + nest(4, data)).type, str)


@given(st.binary(max_size=64), st.integers(0, 255))
def test_any_bytes_read_as_some_comment(data: bytes, type: int) -> None:
    assert isinstance(wire.read_comment(data, type), str)


def test_without_the_right_every_message_of_a_send_is_refused_at_once(netns: Space) -> None:
    def attempt() -> list[Any]:
        with Netlink(NETLINK_NETFILTER, timeout=60) as netlink:
            drop_this_threads_capabilities()
            return [*netlink.attempt(*[wire.message(1, 0, INET, b"", "get table", "inet x")] * 3)]

    assert [answer.errno for answer in netns.call(attempt)] == [errno.EPERM] * 3


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_comment_reads_back_as_written_up_to_the_limit(comment: str) -> None:
    data = wire.user_data(wire.user_number(0, 2), wire.comment_data(7, comment))
    read = wire.read_comment(data, 7)
    if len(comment.encode()) < wire.COMMENT_LIMIT:
        assert read == comment
    else:
        assert comment.startswith(read)
        assert wire.COMMENT_LIMIT - 4 <= len(read.encode()) < wire.COMMENT_LIMIT


@given(st.lists(st.binary(min_size=1, max_size=16), max_size=5))
def test_a_concatenation_fills_whole_registers(values: list[bytes]) -> None:
    joined = wire.concat(*values)
    assert len(joined) % 4 == 0
    offset = 0
    for value in values:
        assert joined[offset : offset + len(value)] == value
        offset += (len(value) + 3) & ~3
