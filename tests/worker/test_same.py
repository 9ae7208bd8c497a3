"""Whatever is asked, the worker's answer through the shim is the launcher's: success, refusal and nonsense alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.child import Finished, run
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import Space
from tests.worker.node import Node

pytestmark = needs("sandbox", "program:cc")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION")
STATIC = {"type": "static", "ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}}


class Both:
    """One plugin directory whose shim has only the worker, and one with the launcher alone."""

    def __init__(self, ledger: Ledger) -> None:
        ledger.link("cni0")
        self.node = Node(ledger)
        self.node.start()
        (self.node.plugins / ".nodeplug" / "exec").unlink()
        self.launchers = ledger.directory()
        for shim in self.node.plugins.iterdir():
            if shim.is_file():
                (self.launchers / shim.name).symlink_to(CHECKOUT / "bin" / "nodeplug-cni")

    def ask(self, name: str, env: dict[str, str], stdin: bytes) -> Finished:
        """The worker's answer, after making sure that the launcher's is the same."""
        first, second = [run([place / name], env=env, stdin=stdin) for place in (self.node.plugins, self.launchers)]
        # The worker is not told why its caller could not open the namespace.
        said = first.stdout.replace(b"the caller could not open it", b"No such file or directory")
        assert (first.code, said, first.stderr) == (second.code, second.stdout, second.stderr)
        return first


@pytest.fixture(scope="module")
def both(module_ledger: Ledger) -> Iterator[Both]:
    found = Both(module_ledger)
    yield found
    assert found.node.process is not None and found.node.process.running()
    found.node.stop()


@pytest.fixture(scope="module")
def pod(module_ledger: Ledger) -> Space:
    return module_ledger.netns()


def variables(command: str, pod: Space, **changes: str | None) -> dict[str, str]:
    env: dict[str, str | None] = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "cid",
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        **changes,
    }
    return {name: value for name, value in env.items() if value is not None}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_each_version(both: Both, pod: Space, command: str, version: str) -> None:
    """A plugin that works in the namespace, an address manager; with what CHECK and GC need, and without."""
    more: dict[str, Any] = {"CHECK": {"prevResult": {"cniVersion": version}}, "GC": {"cni.dev/valid-attachments": []}}
    for plugin in ({"type": "loopback"}, STATIC):
        for extra in (more.get(command, {}), {}):
            config = {"cniVersion": version, "name": "same", **plugin, **extra}
            done = both.ask(str(plugin["type"]), variables(command, pod), json.dumps(config).encode())
            assert done.code in (0, 1)


BAD: dict[str, Any] = {
    "not JSON": b"{",
    "a list": [],
    "no name": {"cniVersion": "1.0.0", "type": "bridge"},
    "a bad name": {"cniVersion": "1.0.0", "name": "a/b", "type": "bridge"},
    "no version that is spoken": {"cniVersion": "9.0.0", "name": "n", "type": "bridge"},
    "wrong types": {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "mtu": "1500", "isGateway": "yes"},
    "an MTU out of range": {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "mtu": 70000},
    "what excludes each other": {"cniVersion": "1.0.0", "name": "n", "hairpinMode": True, "promiscMode": True},
    "overlapping ranges": {
        "cniVersion": "1.0.0",
        "name": "n",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]},
    },
    "a gateway outside its subnet": {
        "cniVersion": "1.0.0",
        "name": "n",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}]]},
    },
    "an address manager that is not there": {"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "none-such"}},
}
WRONG: dict[str, dict[str, str | None]] = {
    "no container": {"CNI_CONTAINERID": None},
    "a bad container": {"CNI_CONTAINERID": "-x"},
    "nothing at all": dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH")),
    "a bad interface": {"CNI_IFNAME": "a/b"},
    "an interface that is too long": {"CNI_IFNAME": "x" * 16},
    "a namespace that is gone": {"CNI_NETNS": "/run/netns/gone"},
    "what is no namespace": {"CNI_NETNS": "/dev/null"},
    "the host's namespace": {"CNI_NETNS": "/proc/1/ns/net"},
    "unknown arguments": {"CNI_ARGS": "A=B"},
    "arguments that are none": {"CNI_ARGS": "A"},
    "an unknown command": {"CNI_COMMAND": "FLY"},
}


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("which", BAD)
def test_a_bad_configuration(both: Both, pod: Space, which: str, command: str) -> None:
    config = BAD[which]
    stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
    done = both.ask("bridge", variables(command, pod), stdin)
    assert done.code == 0 or done.json()["msg"]


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("which", WRONG)
def test_bad_variables(both: Both, pod: Space, which: str, command: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "same", "type": "bridge"}
    env = variables(command, pod, **WRONG[which])
    done = both.ask("bridge", env, json.dumps(config).encode())
    assert done.code == 0 or done.json()["code"] in (4, 8)


def test_what_the_node_refuses(both: Both, ledger: Ledger) -> None:
    """An interface's name and a bridge's that are taken, a range that is used up, a disk that is full or read-only."""
    pod, top = ledger.netns(), ledger.directory()
    pod.run("ip", "link", "add", "eth0", "type", "ifb").ok()
    run(["ip", "link", "add", ledger.link("no-bridge"), "type", "ifb"]).ok()
    ledger.link("br-same")
    (top / "used" / "same").mkdir(parents=True)
    (top / "used" / "same" / "10.3.0.2").write_text("other\r\neth0")
    for name, options in (("ro", "ro"), ("full", "size=4k,nr_inodes=2")):
        (top / name).mkdir()
        run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", top / name]).ok()
    scenes: dict[str, dict[str, Any]] = {
        "interface": {"ipam": {"type": "static", "addresses": [{"address": "10.3.0.9/24"}]}},
        "bridge": {"bridge": "no-bridge"},
        "range": {"ipam": _host_local(top / "used", rangeStart="10.3.0.2", rangeEnd="10.3.0.2")},
        "read-only": {"ipam": _host_local(top / "ro")},
        "full": {"ipam": _host_local(top / "full")},
    }
    other = ledger.netns()
    said = {}
    for name, scene in scenes.items():
        config = {"cniVersion": "1.0.0", "name": "same", "type": "bridge", "bridge": "br-same", **scene}
        where = pod if name == "interface" else other
        done = both.ask("bridge", variables("ADD", where, CNI_CONTAINERID=name), json.dumps(config).encode())
        assert done.code == 1
        said[name] = done.json()["msg"]
    assert "eth0 already exists" in said["interface"] and "is not a bridge" in said["bridge"]
    assert "no IP addresses available" in said["range"]
    assert "Read-only" in said["read-only"] and "No space left" in said["full"]
    assert other.links() == {"lo"}


def _host_local(directory: Path, **more: str) -> dict[str, Any]:
    return {"type": "host-local", "dataDir": str(directory), "ranges": [[{"subnet": "10.3.0.0/29", **more}]]}


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["cniVersion", "name", "type", "ipam", "prevResult", "args", "runtimeConfig", "mtu", "bridge"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nonsense(both: Both, data: st.DataObject) -> None:
    """Variables and configurations that nobody thought of; never a pod's namespace, so nothing is made."""
    names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "OTHER"]
    env = data.draw(st.dictionaries(st.sampled_from(names), WORDS, max_size=6))
    env["CNI_COMMAND"] = data.draw(st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "X"]))
    config = data.draw(st.dictionaries(KEYS | WORDS, VALUES, max_size=5) | VALUES)
    stdin = data.draw(st.sampled_from([json.dumps(config).encode(), json.dumps(config).encode()[:-1]]))
    name = data.draw(st.sampled_from(sorted(os.listdir(both.launchers))))
    done = both.ask(name, env, stdin)
    assert done.code in (0, 1)
    if done.code:
        assert done.json()["msg"]
