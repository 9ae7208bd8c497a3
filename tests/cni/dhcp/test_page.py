"""docs/cni/dhcp.md: its commands do what it says, its tables and sentences are those of the code."""

from __future__ import annotations

import json
import re

from nodeplug.cni.ipam.dhcp import conf
from nodeplug.core.document import reference
from tests.child import run
from tests.cni.dhcp.lan import DIRECTORY, Dnsmasq, Faulty, Lan, leases
from tests.cni.dhcp.test_dhcp import add, delete
from tests.examples import examples
from tests.needs import needs
from tests.sandbox import CHECKOUT

PAGE = (CHECKOUT / "docs" / "cni" / "dhcp.md").read_text()


def test_the_keys_and_settings_of_the_page_are_those_that_are_read() -> None:
    for table in (reference(conf.IpamKeys, "ipam"), reference(conf.Settings)):
        assert table in PAGE, f"put this into docs/cni/dhcp.md:\n\n{table}"


def test_what_the_page_quotes_is_said_by_the_code() -> None:
    said = "".join(path.read_text() for path in (CHECKOUT / "nodeplug" / "cni" / "ipam" / "dhcp").rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]*)`", PAGE.split("## When it does not work")[1], re.MULTILINE)
    assert len(quoted) >= 6
    for sentence in quoted:
        for part in re.split(r"10\.5\.0\.\d+|eth0|20", sentence):
            assert part.strip() in said, part


@needs("sandbox", "program:dnsmasq")
def test_the_commands_of_the_page_run(lan: Lan) -> None:
    server = Dnsmasq(lan)
    pod = lan.ledger.netns("web")
    lan.plug(pod, "eth0")
    directory = lan.ledger.directory()
    (directory / "dhcp").symlink_to(CHECKOUT / "bin" / "nodeplug-cni")
    found = examples("cni/dhcp.md")
    (directory / "lan.json").write_text(found["lan.json"])
    script = found["by-hand.sh"].replace("/opt/cni/bin", str(directory))
    done = run(["sh", "-ex"], stdin=script.encode(), cwd=directory).ok()
    result, _ = json.JSONDecoder().raw_decode(done.text)
    address = result["ips"][0]["address"].partition("/")[0]
    assert f'"address": "{address}"' in done.text.split("}\n", 1)[1]
    assert leases() == [] and not list(DIRECTORY.glob("*"))
    assert server.heard("DHCPRELEASE")


@needs("sandbox")
def test_as_the_reference_asks_what_that_asks(lan: Lan) -> None:
    server = Faulty(lan)
    pod = lan.pod()
    config = json.loads(examples("cni/dhcp.md")["as-the-reference.json"])
    add(pod, config)
    assert set(server.heard[0].options[55]) == {1, 3}
    delete(pod, config)
