"""docs/cni/host-local.md and static.md: their examples run, their tables are the code's, their links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nodeplug.cni.ipam import settings, static
from nodeplug.core.document import reference
from nodeplug.core.record import Record
from tests.child import Finished, run
from tests.cni.calls import ask, environment
from tests.cni.leases import executable
from tests.examples import ROOT, examples
from tests.needs import needs

HOST_LOCAL, STATIC = "cni/host-local.md", "cni/static.md"


@pytest.mark.parametrize(
    ("page", "cls", "heading"),
    [
        (HOST_LOCAL, settings.IpamKeys, "ipam"),
        (HOST_LOCAL, settings.RuntimeKeys, "runtimeConfig"),
        (HOST_LOCAL, settings.CniArgs, "args.cni"),
        (STATIC, static.IpamKeys, "ipam"),
        (STATIC, static.Ips, "runtimeConfig, and args.cni"),
    ],
)
def test_the_tables_of_keys_are_those_of_the_code(page: str, cls: type[Record], heading: str) -> None:
    wanted = reference(cls, heading)
    assert wanted in (ROOT / "docs" / page).read_text(), f"put this into docs/{page}:\n\n{wanted}"


@pytest.mark.parametrize("page", [HOST_LOCAL, STATIC])
def test_links_lead_to_pages(page: str) -> None:
    here = (ROOT / "docs" / page).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text()):
        assert (here / target).exists(), target


def script(text: str, plugin: str, directory: Path) -> Finished:
    """A page's commands, with the plugin where they look for it, and the page's configurations beside them."""
    path = executable(directory)
    if plugin != path.name:
        path = path.rename(directory / plugin)
    return run(["sh", "-ex"], stdin=text.replace("/opt/cni/bin", str(directory)).encode(), cwd=directory)


def written(page: str, directory: Path) -> dict[str, str]:
    found = examples(page)
    for name, text in found.items():
        (directory / name).write_text(text)
    return found


def answers(done: Finished) -> list[dict[str, Any]]:
    """The JSON objects on stdout, with what else is there left out."""
    text, found, at = done.ok().text, [], 0
    while (at := text.find("{", at)) >= 0:
        value, at = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
    return found


@needs("sandbox")
def test_host_local_by_hand(directory: Path) -> None:
    found = written(HOST_LOCAL, directory)
    done = script(found["by-hand.sh"], "host-local", directory)
    (result,) = answers(done)
    assert [ip["address"] for ip in result["ips"]] == ["10.1.0.10/24", "fd00:1::2/64"]
    assert [route["dst"] for route in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert "10.1.0.10\nfd00:1::2\nlast_reserved_ip.0\nlast_reserved_ip.1\nlock\n" in done.stdout.decode()
    assert {path.name for path in Path("/var/lib/cni/networks/pods").iterdir()} == {
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    }


@needs("sandbox")
@pytest.mark.parametrize(("name", "address"), [("asked.json", "10.1.0.77/24"), ("per-node.json", "10.1.7.1/24")])
def test_configurations_of_host_local(name: str, address: str) -> None:
    config = json.loads(examples(HOST_LOCAL)[name])
    code, result, _ = ask("host-local", environment("ADD"), config)
    assert (code, result["ips"][0]["address"]) == (0, address)
    assert ask("host-local", environment("DEL"), {**config, "runtimeConfig": {}})[0] == 0


@needs("sandbox")
def test_an_address_is_held_as_the_page_says(directory: Path) -> None:
    config = json.loads(examples(HOST_LOCAL)["asked.json"])
    config["runtimeConfig"]["ips"] = ["10.1.0.20"]
    Path("/var/lib/cni/networks/pods").mkdir(parents=True, exist_ok=True)
    run(["sh", "-e"], stdin=examples(HOST_LOCAL)["hold.sh"].encode(), cwd=directory).ok()
    code, error, _ = ask("host-local", environment("ADD"), config)
    assert (code, error["details"]) == (1, "it is held by # the printer")
    Path("/var/lib/cni/networks/pods/10.1.0.20").unlink()
    assert ask("host-local", environment("DEL"), config)[0] == 0


@needs("sandbox")
def test_static_by_hand(directory: Path) -> None:
    found = written(STATIC, directory)
    configured, added = answers(script(found["by-hand.sh"], "static", directory))
    assert [ip["address"] for ip in configured["ips"]] == ["10.1.0.5/24", "fd00:1::5/64"]
    assert configured["dns"] == {"nameservers": ["10.1.0.53"], "search": ["pods.test"]}
    assert added["ips"][2] == {"address": "10.7.0.5/24", "gateway": "10.7.0.1"}
    code, result, _ = ask("static", environment("ADD"), json.loads(found["of-the-runtime.json"]))
    assert (code, result["ips"]) == (0, [{"address": "10.5.0.7/24"}])
