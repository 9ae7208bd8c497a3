"""The pages of ptp, macvlan, ipvlan, vlan, tap and dummy: their tables are those of the code, their examples run."""

from __future__ import annotations

import re

import pytest

from nodeplug.cni.contract import NetConf
from nodeplug.cni.plugins.dummy import DummyConf
from nodeplug.cni.plugins.ipvlan import IpvlanConf
from nodeplug.cni.plugins.macvlan import MacvlanConf
from nodeplug.cni.plugins.ptp.config import PtpConf
from nodeplug.cni.plugins.tap import TapConf
from nodeplug.cni.plugins.vlan import VlanConf
from nodeplug.core.document import reference
from tests.child import run
from tests.cni.chains import Chain
from tests.cni.lans import Lan
from tests.cni.pages import live
from tests.cni.pods import addresses, host_links, link
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space

CONFIGS: dict[str, type[NetConf]] = {
    "ptp": PtpConf,
    "macvlan": MacvlanConf,
    "ipvlan": IpvlanConf,
    "vlan": VlanConf,
    "tap": TapConf,
    "dummy": DummyConf,
}


def page(name: str) -> str:
    return (CHECKOUT / "docs" / "cni" / f"{name}.md").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_keys_of_a_page_are_those_that_are_read(name: str) -> None:
    assert reference(CONFIGS[name]).strip() in page(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_errors_of_a_page_are_said_by_the_code(name: str) -> None:
    sources = (CHECKOUT / "nodeplug").rglob("*.py")
    said = "".join(path.read_text() for path in sources)
    text = page(name)
    (section,) = re.findall(r"^## (?:Troubleshooting|When it does not work)\n(.*)", text, re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"^(?:\| |- )`([^`]*)`", section, re.MULTILINE)
    assert quoted
    by_the_kernel = {"Device or resource busy", "VLAN device already exists"}
    for sentence in set(quoted) - by_the_kernel:
        for part in re.split(r"\$|\.\.\.|eth0|(?<=no )\w+(?= links)|: ", sentence):
            assert part.strip() in said, part


@needs("sandbox", "program:nft", "program:ping")
def test_the_commands_of_ptps_page_run(ledger: Ledger) -> None:
    shown = live("cni/ptp.md", ledger).ok().text
    assert shown.count(" 0% packet loss") == 3
    for line in (
        "10.86.0.2 dev np",
        "default via 10.86.0.1 dev eth0",
        "10.86.0.0/24 via 10.86.0.1 dev eth0 src 10.86.0.2",
        "10.86.0.1 dev eth0 scope link src 10.86.0.2",
    ):
        assert f"\n{line}" in shown
    assert host_links() == set()


@needs("sandbox")
@pytest.mark.parametrize(
    ("name", "example", "kind"),
    [
        pytest.param("macvlan", "lan", "macvlan", marks=needs("link:macvlan")),
        pytest.param("tap", "machine", "tun", marks=needs("file:/dev/net/tun")),
        pytest.param("ipvlan", "lan", "ipvlan", marks=needs("link:ipvlan")),
        pytest.param("vlan", "lan", "vlan", marks=needs("link:vlan")),
        pytest.param("dummy", "service", "dummy", marks=needs("link:dummy")),
    ],
)
def test_the_example_of_a_page_runs(ledger: Ledger, netns: Space, name: str, example: str, kind: str) -> None:
    Lan(ledger)
    ledger.adopt("leases", lambda: run(["rm", "-rf", "/var/lib/cni/networks"]))
    chain = Chain.of_page(ledger, f"cni/{name}.md", f"{example}.conflist")
    capabilities = {"mac": "02:00:00:00:00:42"} if name in ("macvlan", "tap") else {}
    chain.status()
    result = chain.add(netns, "net1", **capabilities)
    found = link("net1", netns)
    assert found and (found.kind, found.up) == (kind, True)
    assert addresses(netns, "net1") == {ip["address"] for ip in result["ips"]}
    assert not capabilities or found.mac.hex(":") == capabilities["mac"]
    chain.check(netns, "net1", **capabilities)
    chain.gc((netns.name, "net1"))
    chain.check(netns, "net1", **capabilities)
    chain.delete(netns, "net1", **capabilities)
    assert netns.links() == {"lo"}
