"""loopback, as an executable in a real namespace; and an author's plugin from the documentation chained behind it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.child import run
from tests.cni.calls import VERSIONS, environment
from tests.examples import ROOT, examples
from tests.ledger import Ledger
from tests.space import Space

pytestmark = pytest.mark.needs("sandbox")
MTU = {"mtu": 1400}


def call(executable: str, command: str, space: Space, config: dict[str, Any]) -> tuple[int, Any]:
    env = environment(command, CNI_NETNS=space.path, PYTHONPATH=str(ROOT))
    done = run([executable], env=env, stdin=json.dumps({"name": "net", **config}).encode())
    return done.code, json.loads(done.stdout) if done.stdout else None


def ip(space: Space, *words: str) -> str:
    return run(["ip", *words], netns=space.path).ok().text


@pytest.fixture
def loopback(ledger: Ledger) -> str:
    path = ledger.directory() / "loopback"
    os.symlink(ROOT / "bin" / "nodeplug-cni", path)
    return str(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_add_brings_lo_up_and_delete_down_in_every_version(loopback: str, netns: Space, version: str) -> None:
    ip(netns, "link", "set", "lo", "down")
    code, result = call(loopback, "ADD", netns, {"cniVersion": version})
    assert (code, result["cniVersion"]) == (0, version)
    if version >= "0.3.0":
        assert result["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns.path}]
        assert "127.0.0.1/8" in [ip["address"] for ip in result["ips"]]
    else:
        assert result["ip4"]["ip"] == "127.0.0.1/8"
    if version >= "0.4.0":
        assert call(loopback, "CHECK", netns, {"cniVersion": version, "prevResult": result}) == (0, None)
    assert call(loopback, "DEL", netns, {"cniVersion": version}) == (0, None)
    assert "UP" not in ip(netns, "link", "show", "lo").split("<")[1].split(">")[0].split(",")
    if version >= "0.4.0":
        code, answer = call(loopback, "CHECK", netns, {"cniVersion": version, "prevResult": result})
        assert (code, answer["code"]) == (1, 100)


def test_an_address_from_outside_on_lo_is_refused(loopback: str, netns: Space) -> None:
    ip(netns, "address", "add", "10.1.2.3/32", "dev", "lo")
    code, answer = call(loopback, "ADD", netns, {"cniVersion": "1.0.0"})
    assert (code, answer["code"]) == (1, 100)
    assert "10.1.2.3/32" in answer["msg"]


def test_a_chain_passes_through(loopback: str, netns: Space) -> None:
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}
    code, result = call(loopback, "ADD", netns, {"cniVersion": "1.0.0", "prevResult": previous})
    assert (code, result) == (0, previous)


def test_the_authors_example_of_the_documentation_works(ledger: Ledger, netns: Space) -> None:
    found = examples("cni/README.md")
    path = ledger.directory() / "pod-mtu"
    path.write_text(found["pod-mtu"])
    path.chmod(0o755)
    ip(netns, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    config = {"cniVersion": "1.0.0", **json.loads(found["pod-mtu.conflist"])["plugins"][1]}
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}
    assert call(str(path), "ADD", netns, {**config, "prevResult": previous}) == (0, previous)
    assert "mtu 1400" in ip(netns, "link", "show", "eth0")
    assert call(str(path), "CHECK", netns, {**config, "prevResult": previous}) == (0, None)
    ip(netns, "link", "set", "eth0", "mtu", "1300")
    code, answer = call(str(path), "CHECK", netns, {**config, "prevResult": previous})
    assert (code, answer["msg"]) == (1, "eth0 has MTU 1300, not 1400")
    code, answer = call(str(path), "ADD", netns, {**config, "mtu": 20})
    assert (code, answer["code"]) == (1, 7)
    assert call(str(path), "VERSION", netns, {})[1]["supportedVersions"] == list(VERSIONS)
