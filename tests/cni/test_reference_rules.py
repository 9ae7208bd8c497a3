"""Rules of iptables as read from nf_tables and as printed by iptables-legacy: both say the same of the same rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.cni.reference import legacy, names, rules
from nodeplug.cni.reference.legacy import LegacyTable
from nodeplug.cni.reference.rules import Rule
from nodeplug.core.errors import Unavailable
from nodeplug.core.inet import Ip
from nodeplug.kernel.netlink import netfilter
from nodeplug.kernel.nft.wire import IPV4, IPV6
from tests.ledger import Ledger
from tests.needs import needs
from tests.space import HERE, Space

WRITTEN = {
    4: {
        '-s 10.0.0.2/32 -m comment --comment "name: \\"pods\\" id: \\"c\\"" -j ours': Rule(
            chain="x", key=0, target="ours", comment='name: "pods" id: "c"', source=Ip.parse("10.0.0.2").packed
        ),
        "-d 10.0.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": Rule(
            chain="x", key=0, target="ACCEPT", destination=Ip.parse("10.0.0.2").packed
        ),
        "-s 10.0.0.0/24 ! -d 10.0.0.7/32 -j ACCEPT": Rule(chain="x", key=0, target="ACCEPT"),
        "-d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.2:5353": Rule(
            chain="x",
            key=0,
            destination=Ip.parse("192.0.2.1").packed,
            protocol="udp",
            port=53,
            to=Ip.parse("10.0.0.2").packed,
            to_port=5353,
        ),
        '-p tcp -m comment --comment "dnat" -m multiport --dports 80,81 -j ours': Rule(
            chain="x", key=0, target="ours", comment="dnat", protocol="tcp"
        ),
    },
    6: {
        "-s fd00::2/128 -j ACCEPT": Rule(chain="x", key=0, target="ACCEPT", source=Ip.parse("fd00::2").packed),
        "-s fd00::/64 -j ours": Rule(chain="x", key=0, target="ours"),
        "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80": Rule(
            chain="x", key=0, protocol="tcp", port=8080, to=Ip.parse("fd00::2").packed, to_port=80
        ),
    },
}
MARKED = "-s 10.0.0.2/32 -j ours"


def restored(space: Space, kind: str, family: int) -> None:
    lines = "".join(f"-A x {line}\n" for line in WRITTEN[family])
    program = f"{'ip6' if family == 6 else 'ip'}tables-{kind}-restore"
    script = f"*nat\n:x - [0:0]\n:ours - [0:0]\n-A OUTPUT -j x\n{lines}COMMIT\n"
    space.run(program, stdin=script.encode()).ok()


def without_target(rule: Rule) -> Rule:
    """iptables prints the names of its targets, of which nf_tables knows only those that lead to a chain."""
    return rule.replace(key=0, target="" if rule.target == "DNAT" else rule.target)


@needs("sandbox", "program:iptables-nft")
@pytest.mark.parametrize("family", [4, 6])
def test_a_rule_of_iptables_nft_is_read_from_the_kernel(ledger: Ledger, family: int) -> None:
    space = ledger.netns()
    restored(space, "nft", family)

    def read() -> list[Rule]:
        with netfilter() as netlink:
            return rules.listed(netlink, IPV4 if family == 4 else IPV6, "nat", "x")

    found = space.call(read)
    assert [without_target(rule) for rule in found] == list(WRITTEN[family].values())
    assert len({rule.key for rule in found}) == len(found)


@needs("sandbox", "program:iptables-legacy")
@pytest.mark.parametrize("family", [4, 6])
def test_a_rule_of_iptables_legacy_is_read_as_it_is_printed(ledger: Ledger, family: int) -> None:
    space = ledger.netns()
    restored(space, "legacy", family)
    stem = "ip6tables" if family == 6 else "iptables"
    lines = space.run(f"{stem}-legacy-save", "-t", "nat").ok().text.splitlines()
    table = LegacyTable(family, "nat", lines)
    found = table.rules("x")
    assert [without_target(rule) for rule in found] == list(WRITTEN[family].values())
    assert [f"-A x {rule.key}" for rule in found] == [line for line in lines if line.startswith("-A x ")]
    assert table.has("ours") and not table.has("other")


@needs("sandbox", "program:iptables-legacy")
def test_a_table_that_was_changed_meanwhile_is_looked_at_again(ledger: Ledger) -> None:
    """One that was not, and does not take the change, is an error with the program's own words."""
    ledger.adopt("chains", lambda: [HERE.run("iptables-legacy", "-t", "nat", flag) for flag in ("-F", "-X")])
    HERE.run("iptables-legacy-restore", stdin=f"*nat\n:x - [0:0]\n:ours - [0:0]\n-A x {MARKED}\nCOMMIT\n".encode()).ok()
    table = LegacyTable.look(4, "nat", [b"ours"])
    assert table is not None and LegacyTable.look(4, "nat", [b"theirs"]) is None
    with pytest.raises(Unavailable, match="iptables-legacy-restore ended with"):
        table.remove([], ["ours"])  # which the other one leads to
    HERE.run("iptables-legacy", "-t", "nat", "-F", "x").ok()
    assert table.remove(table.rules("x"), ["ours"]) is False
    again = LegacyTable.look(4, "nat", [b"ours"])
    assert again is not None and again.remove([], ["ours", "x"])
    assert LegacyTable.look(4, "nat", [b"ours"]) is None


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_words_in_quotes_are_read_as_they_were_written(words: list[str]) -> None:
    escaped = [word.replace("\\", "\\\\").replace('"', '\\"') for word in words]
    assert legacy.split(" ".join(f'"{word}"' for word in escaped)) == words


@given(st.text(max_size=80))
def test_any_line_is_a_rule(text: str) -> None:
    found = legacy.parse(f"-A x {text}")
    assert (found.chain, found.key) == ("x", text)


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(["", *names.ENTRIES]))
def test_a_chains_name_has_28_characters_whatever_it_is_derived_from(network: str, container: str, kind: str) -> None:
    name = names.chain(network, container, kind)
    assert name == names.chain(network, container, kind)
    assert (len(name), name.startswith(f"CNI-{kind}")) == (28, True)
    assert names.is_masquerade_chain(name) is (kind == "")


def test_names_are_those_of_the_reference() -> None:
    """As its versions 1.1 and 1.10 were seen to make them."""
    assert names.chain("pods", "cidone") == "CNI-c50b491df66f735541c867ab"
    assert names.chain("pods", "cidone", "DN-") == "CNI-DN-c50b491df66f735541c86"
    assert names.mark("pods", "cidone", "eth0") == "aa9217ce5dd9862e-fd3735b63f3047ed"
    assert names.masquerade_comment("pods", "cidone") == 'name: "pods" id: "cidone"'
    assert names.ports_comment("pods", "cidone") == 'dnat name: "pods" id: "cidone"'
    assert [names.is_masquerade_chain(name) for name in ("CNI-c50b491df66f735541c867ab", "CNI-FORWARD", "")] == [
        True,
        False,
        False,
    ]
