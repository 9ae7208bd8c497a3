"""A node whose pods are ours goes back to the reference plugins: pod by pod, and the last one's DEL ends it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeplug.core import paths
from tests.child import Finished, run
from tests.cni.references import NFT, References, make, named
from tests.cni.references import about as rules_about
from tests.ledger import Ledger
from tests.needs import needs
from tests.sandbox import CHECKOUT
from tests.space import HERE, Space
from tests.traffic import exchange
from tests.worker.node import Node

REFERENCE = Path("/usr/lib/cni")
pytestmark = needs("sandbox", "program:cc", f"file:{REFERENCE}/bridge", "program:iptables", "program:nft")
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
PLUGINS = ("bridge", "portmap")


@pytest.fixture(params=["worker", "launcher", "launcher alone"])
def node(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[Node]:
    found = Node(ledger, kind="python" if request.param == "launcher alone" else "c", before=REFERENCE)
    if request.param == "worker":
        found.start()
    yield found
    Path(paths.LEAVING).unlink(missing_ok=True)
    if found.process is not None:
        found.stop()


@pytest.fixture
def references(ledger: Ledger) -> References:
    return make(ledger, NFT)


def ask(node: Node, references: References, command: str, plugin: dict[str, Any], pod: Space, **more: Any) -> Finished:
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(node.plugins),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    stdin = json.dumps(references.config(plugin, **more)).encode()
    return run([node.plugins / plugin["type"]], env=env, stdin=stdin, timeout=60)


def add(node: Node, references: References, pod: Space) -> Any:
    result = ask(node, references, "ADD", references.bridge, pod).ok().json()
    more = {"prevResult": result, "runtimeConfig": {"portMappings": PORTS}}
    ask(node, references, "ADD", references.portmap, pod, **more).ok()
    references.keep(pod, result)
    return result


def delete(node: Node, references: References, pod: Space, result: Any) -> None:
    more = {"prevResult": result, "runtimeConfig": {"portMappings": PORTS}}
    for plugin in (references.portmap, references.bridge):
        ask(node, references, "DEL", plugin, pod, **more).ok()
    references.forget(pod)


def uninstall(node: Node, *options: str) -> Finished:
    command = [CHECKOUT / "bin" / "nodeplug", "uninstall", "cni", "--dest", node.plugins, *options]
    return run(command, timeout=90)


def is_theirs(node: Node, name: str) -> bool:
    return (node.plugins / name).read_bytes() == (REFERENCE / name).read_bytes()


def test_it_refuses_while_pods_need_it_and_lets_the_last_one_end_it(
    node: Node, references: References, ledger: Ledger
) -> None:
    old, new = ledger.netns(), ledger.netns()
    ledger.echo(old, port=80)
    ours = add(node, references, old)
    refused = uninstall(node)
    assert refused.code == 1
    assert f"pods/{old.name}/eth0 (bridge, portmap)" in refused.stderr.decode()
    assert is_theirs(node, "host-local") and not any(is_theirs(node, name) for name in PLUGINS)
    assert b"leaving" in uninstall(node, "--drain").ok().stdout
    assert exchange("10.88.0.1", 8080) == "10.88.0.1"

    # What comes from now on is theirs, and its DEL is still asked of ours.
    result = ask(node, references, "ADD", references.bridge, new).ok().json()
    assert result["interfaces"][1]["name"].startswith("veth")
    references.keep(new, result)
    assert rules_about(named(new)[1])
    delete(node, references, new, result)
    assert rules_about(*named(new)) == []
    assert not any(is_theirs(node, name) for name in PLUGINS)
    assert exchange("10.88.0.1", 8080) == "10.88.0.1"

    delete(node, references, old, ours)
    assert all(is_theirs(node, name) for name in PLUGINS)
    assert not Path(paths.LEAVING).exists()
    assert HERE.links() & {"lo", "cni0"} == HERE.links()
    uninstall(node).ok()
    assert {path.name for path in node.plugins.iterdir()} == {path.name for path in REFERENCE.iterdir()}


def test_after_a_boot_the_first_del_of_whoever_finds_that_no_pod_is_left(
    node: Node, references: References, ledger: Ledger
) -> None:
    """The pods of before ended with the boot, without a DEL, and all that was in /run of them."""
    old, new = ledger.netns(), ledger.netns()
    add(node, references, old)
    uninstall(node, "--drain").ok()
    if node.process is not None:
        node.stop(signal.SIGKILL)
        node.process = None
    old.remove()
    for name in HERE.links() - {"lo", "cni0"}:
        run(["ip", "link", "delete", name])
    run(["nft", "flush", "ruleset"]).ok()
    run(["rm", "-rf", "/run/nodeplug"]).ok()
    result = add(node, references, new)
    assert result["interfaces"][1]["name"].startswith("veth")
    delete(node, references, new, result)
    assert all(is_theirs(node, name) for name in PLUGINS)


def test_the_command_waits_for_the_last_pod(node: Node, references: References, ledger: Ledger) -> None:
    pod = ledger.netns()
    result = add(node, references, pod)
    assert uninstall(node, "--drain", "--wait", "0.1").code == 75
    waiting = ledger.start(
        [CHECKOUT / "bin" / "nodeplug", "uninstall", "cni", "--dest", node.plugins, "--drain", "--wait", "60"],
        env=dict(os.environ),
    )
    delete(node, references, pod, result)
    assert waiting.wait(60) == 0
    assert all(is_theirs(node, name) for name in PLUGINS)
