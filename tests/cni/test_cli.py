"""`nodeplug cni`: what an operator types, and what scripts get back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid
from nodeplug.harness.runtime import valid
from tests.child import Finished, run
from tests.harness.fakes import Fakes

NODEPLUG = Path(__file__).parents[2] / "bin/nodeplug"
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/blue"}],
    "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
}


class Node:
    """A directory with fake plugins, a conflist and a cache, and the command pointed at them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fakes = Fakes(directory / "bin", "one", "two")
        self.fakes.tell("one", "ADD", stdout=json.dumps(RESULT))
        self.conf = directory / "10-pods.conflist"
        self.configure("1.1.0")

    def configure(self, version: str, **more: Any) -> None:
        plugins = [{"type": "one"}, {"type": "two", "capabilities": {"portMappings": True}}]
        document = {"cniVersion": version, "name": "pods", "plugins": plugins} | more
        self.conf.write_text(json.dumps(document))

    def __call__(self, command: str, *arguments: str, stdin: bytes = b"", conf: Path | None = None) -> Finished:
        where = ["--conf", conf or self.conf, "--path", self.fakes.directory, "--cache-dir", self.directory / "cache"]
        return run([NODEPLUG, "cni", command, *where, *arguments], stdin=stdin)


@pytest.fixture
def node(directory: Path) -> Node:
    return Node(directory)


def test_add_shows_the_result_and_hands_everything_on(node: Node) -> None:
    done = node(
        "add", "--netns", "blue", "--container-id", "c1", "--args", "K8S_POD_NAME=web", "--args", "IgnoreUnknown=1",
        "--cap-args", '{"portMappings": [{"hostPort": 80}]}', "--ifname", "net1",
    ).ok()  # fmt: skip
    for word in ("result 1.1.0", "cni0", "02:00:00:00:00:01", "10.0.0.5/24", "0.0.0.0/0"):
        assert word in done.text
    two = node.fakes.asked()[1]
    assert two.env["CNI_NETNS"] == "/run/netns/blue"
    assert two.env["CNI_IFNAME"] == "net1"
    assert two.env["CNI_ARGS"] == "K8S_POD_NAME=web;IgnoreUnknown=1"
    assert two.stdin["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}


def test_add_with_json_prints_the_result_as_the_next_reader_wants_it(node: Node) -> None:
    assert node("add", "--netns", "blue", "--json").ok().json() == RESULT


def test_container_is_derived_from_the_netns_when_none_is_named(node: Node) -> None:
    node("add", "--netns", "blue").ok()
    node("check", "--netns", "/run/netns/blue").ok()
    node("del", "--netns", "blue").ok()
    asked = node.fakes.asked()
    assert len({call.env["CNI_CONTAINERID"] for call in asked}) == 1
    assert [call.command for call in asked] == ["ADD", "ADD", "CHECK", "CHECK", "DEL", "DEL"]
    assert node("del").code == 2


def test_failed_add_is_followed_by_a_delete(node: Node) -> None:
    node.fakes.tell("two", "ADD", exit=1, stdout='{"code": 11, "msg": "busy", "details": "later"}', stderr="noise")
    done = node("add", "--netns", "blue")
    assert done.code == 1
    assert done.stderr.decode().splitlines() == [
        "error: plugin two failed on ADD (code 11): busy; later",
        "the plugin also wrote:",
        "  noise",
    ]
    assert [call.command for call in node.fakes.asked()] == ["ADD", "ADD", "DEL", "DEL"]
    node("add", "--netns", "blue", "--keep-failed")
    assert [call.command for call in node.fakes.asked()] == ["ADD", "ADD"]


def test_error_with_json_has_the_plugins_own_words(node: Node) -> None:
    node.fakes.tell("two", "ADD", exit=1, stdout='{"code": 11, "msg": "busy", "details": "later"}', stderr="noise")
    done = node("add", "--netns", "blue", "--json")
    assert (done.code, done.stderr) == (1, b"")
    told = done.json()
    assert (told["error"], told["plugin"], told["command"], told["code"]) == ("PluginFailed", "two", "ADD", 11)
    assert (told["msg"], told["details"], told["stderr"]) == ("busy", "later", "noise")


def test_exit_status_tells_mistakes_from_failures(node: Node, directory: Path) -> None:
    assert node("add", "--netns", "blue", "--args", "pair").code == 2
    assert node("add", "--netns", "blue", "--cap-args", "[").code == 2
    assert node("add", "--netns", "blue", "--timeout", "soon").code == 2
    assert node("add", "--netns", "blue", conf=directory / "missing").code == 1
    assert node("add", "--netns", "blue", "--network", "other").code == 2
    (node.fakes.directory / "two").unlink()
    done = node("add", "--netns", "blue")
    assert done.code == 1 and b"no plugin called 'two'" in done.stderr


def test_network_of_a_directory_is_chosen_by_name(node: Node, directory: Path) -> None:
    other = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "two"}]}
    (directory / "05.conflist").write_text(json.dumps(other))
    node("add", "--netns", "blue", "--network", "pods", conf=directory).ok()
    node("add", "--netns", "blue", conf=directory).ok()
    assert [call.stdin["name"] for call in node.fakes.asked()] == ["pods", "pods", "other"]


def test_status_says_ready_or_the_plugins_error_or_that_it_was_not_asked(node: Node) -> None:
    assert "ready" in node("status").ok().text
    node.fakes.tell("two", "STATUS", exit=1, stdout='{"code": 50, "msg": "no nft"}')
    assert b"(code 50): no nft" in node("status").stderr
    node.configure("1.0.0")
    assert node("status", "--json").ok().json()["outcome"] == "not asked: version 1.0.0 has no STATUS"


def test_validate_names_what_the_chain_asks_for(node: Node) -> None:
    for name in ("one", "two"):
        node.fakes.tell(name, "VERSION", stdout='{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}')
    assert node("validate", "--json").ok().json() == {
        "network": "pods",
        "version": "1.1.0",
        "plugins": ["one", "two"],
        "capabilities": ["portMappings"],
    }


def test_list_shows_what_is_cached(node: Node, directory: Path) -> None:
    assert run([NODEPLUG, "cni", "list", "--cache-dir", directory / "cache"]).ok().text == "no attachments"
    node("add", "--netns", "blue", "--container-id", "c1").ok()
    assert run([NODEPLUG, "cni", "list", "--cache-dir", directory / "cache", "--json"]).ok().json() == [
        {
            "network": "pods",
            "container": "c1",
            "ifname": "eth0",
            "netns": "/run/netns/blue",
            "addresses": ["10.0.0.5"],
        }
    ]


def test_gc_must_be_told_what_lives(node: Node) -> None:
    done = node("gc")
    assert done.code == 2
    assert b"gc must be told what lives" in done.stderr
    assert node.fakes.asked() == []


def test_gc_keeps_what_is_named_by_hand_or_in_a_file(node: Node) -> None:
    for container in ("c1", "c2", "c3"):
        node("add", "--netns", "blue", "--container-id", container).ok()
    listed = b'[{"containerID": "c2", "ifname": "eth0"}]'
    done = node("gc", "--valid", "c1", "--valid-file", "-", "--json", stdin=listed).ok()
    assert [entry["container"] for entry in done.json()] == ["c3"]
    told = next(call for call in node.fakes.asked() if call.command == "GC").stdin["cni.dev/valid-attachments"]
    assert {entry["containerID"] for entry in told} == {"c1", "c2"}
    assert "c1" in node("gc", "--none-valid").ok().text
    assert "nothing removed" in node("gc", "--none-valid").ok().text


def test_gc_takes_the_other_attachments_of_ended_containers_by_their_cached_configuration(
    node: Node, directory: Path
) -> None:
    for name in ("pods", "side"):
        node.configure("1.0.0", name=name)
        for container in ("c1", "c2"):
            node("add", "--netns", "blue", "--container-id", container, "--ifname", f"{name}0").ok()
    node.configure("1.0.0", name="side")
    node("add", "--netns", "blue", "--container-id", "c3").ok()
    node.configure("1.0.0", name="pods")
    done = node("gc", "--valid", "c1/pods0", "--json").ok()
    assert [(entry["network"], entry["container"]) for entry in done.json()] == [("pods", "c2"), ("side", "c2")]
    left = run([NODEPLUG, "cni", "list", "--cache-dir", directory / "cache", "--json"]).ok().json()
    assert {(entry["network"], entry["container"]) for entry in left} == {
        ("pods", "c1"),
        ("side", "c1"),
        ("side", "c3"),
    }


def test_gc_says_when_the_network_forbids_it(node: Node) -> None:
    node.configure("1.1.0", disableGC=True)
    assert "disableGC" in node("gc", "--none-valid").ok().text


def test_gc_with_a_socket_where_nobody_answers_removes_nothing(node: Node, directory: Path) -> None:
    node("add", "--netns", "blue").ok()
    node.fakes.asked()
    done = node("gc", "--cri", str(directory / "nobody"))
    assert done.code == 1
    assert b"no runtime answers on" in done.stderr
    assert node.fakes.asked() == []


@given(st.binary())
def test_any_bytes_are_a_list_of_attachments_or_an_explained_error(data: bytes) -> None:
    try:
        assert valid.from_document(data, "the list") == set()
    except ConfigInvalid as error:
        assert str(error)


entries = st.fixed_dictionaries(
    {}, optional={"containerID": st.text() | st.none() | st.integers(), "ifname": st.text() | st.booleans()}
)


@given(st.lists(entries | st.integers()))
def test_any_list_is_read_whole_or_not_at_all(document: list[Any]) -> None:
    try:
        found = valid.from_document(json.dumps(document).encode(), "the list")
    except ConfigInvalid:
        return
    assert len(found) == len({(entry["containerID"], entry.get("ifname") or "eth0") for entry in document})
