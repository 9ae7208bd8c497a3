"""Tables of iptables-legacy, with iptables-legacy-save as the second opinion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.kernel import xtables
from nodeplug.kernel.xtables import ACCEPT, DROP, GOTO, JUMP, OTHER, RETURN, Rule
from tests.needs import needs
from tests.space import Space

pytestmark = needs("sandbox", "program:iptables-legacy")

TOOLS = {4: "iptables-legacy", 6: "ip6tables-legacy"}
RULES = (
    "-P FORWARD DROP",
    "-N ours",
    "-N EMPTY",
    "-A ours -m mark --mark 0x1000/0x3000 -m comment --comment x -j ACCEPT",
    "-A ours -m mark ! --mark 0x1/0x1 -j RETURN",
    "-A ours -m comment --comment everybody -j DROP",
    "-A FORWARD -j ours",
    "-A FORWARD -i lo -g ours",
    "-A FORWARD -g ours",
    "-A FORWARD -p tcp -j REJECT",
    "-A FORWARD -s ::1 -j DROP",
    "-A FORWARD",
)


@pytest.mark.parametrize("family", [4, 6])
def test_a_table_is_what_iptables_made(netns: Space, family: int) -> None:
    assert netns.call(lambda: xtables.read(family, "nosuch")) is None
    for rule in RULES:
        text = rule if family == 6 else rule.replace("::1", "127.0.0.1")
        netns.run(TOOLS[family], *text.split()).ok()
    assert netns.call(lambda: xtables.tables(family)) == ["filter"]
    table = netns.call(lambda: xtables.read(family, "filter"))
    assert table is not None
    assert table.policies == {"INPUT": ACCEPT, "FORWARD": DROP, "OUTPUT": ACCEPT}
    assert set(table.chains) == {"INPUT", "FORWARD", "OUTPUT", "ours", "EMPTY"}
    assert table.chains["FORWARD"] == (
        Rule(unconditional=True, target=JUMP, chain="ours"),
        Rule(unconditional=False, target=GOTO, chain="ours"),
        Rule(unconditional=True, target=GOTO, chain="ours"),
        Rule(unconditional=False, target=OTHER, chain="REJECT"),
        Rule(unconditional=False, target=DROP),
        Rule(unconditional=True, target=OTHER),
    )
    assert table.chains["ours"] == (
        Rule(unconditional=False, target=ACCEPT, mark=(0x1000, 0x3000)),
        Rule(unconditional=False, target=RETURN),
        Rule(unconditional=True, target=DROP),
        Rule(unconditional=True, target=RETURN),
    )


def test_a_large_table_is_read_whole(netns: Space) -> None:
    rules = "".join(f"-A FORWARD -s 10.{n >> 8}.{n & 255}.0/24 -j ACCEPT\n" for n in range(3000))
    netns.run("iptables-legacy-restore", stdin=f"*filter\n{rules}COMMIT\n".encode()).ok()
    table = netns.call(lambda: xtables.read(4, "filter"))
    assert table is not None and len(table.chains["FORWARD"]) == 3000


@given(st.binary(max_size=600), st.sampled_from([4, 6]))
def test_any_bytes_are_a_table(data: bytes, family: int) -> None:
    xtables.parse(family, data, {2: (0, 112)})
