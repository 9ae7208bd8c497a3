"""Configurations as libcni loads them: names, versions, plugin files beside a conflist, what each plugin is given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeplug.core.errors import ConfigInvalid, Malformed, NotFound
from nodeplug.harness.runtime import config

if TYPE_CHECKING:
    from pathlib import Path

BRIDGE = {"type": "bridge", "bridge": "cni0"}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def conflist(name: str, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [BRIDGE], **more}


def test_first_conflist_by_file_name_stands_for_a_network(tmp_path: Path) -> None:
    write(tmp_path / "20-late.conflist", conflist("pods", plugins=[{"type": "late"}]))
    write(tmp_path / "10-early.conflist", conflist("pods", plugins=[{"type": "early"}]))
    assert config.load_directory(tmp_path, "pods").plugins[0].type == "early"


def test_conflist_wins_over_a_single_configuration_of_an_earlier_file_name(tmp_path: Path) -> None:
    write(tmp_path / "00-single.conf", {"name": "pods", "type": "single"})
    write(tmp_path / "99-list.conflist", conflist("pods"))
    assert config.load_directory(tmp_path, "pods").plugins[0].type == "bridge"
    assert config.first_network(tmp_path).plugins[0].type == "single"


def test_single_configuration_becomes_a_list_of_one(tmp_path: Path) -> None:
    write(tmp_path / "10.conf", {"cniVersion": "0.3.1", "name": "pods", "type": "ptp", "mtu": 1400})
    network = config.load_directory(tmp_path, "pods")
    assert (network.name, network.cni_version) == ("pods", "0.3.1")
    assert [plugin.type for plugin in network.plugins] == ["ptp"]
    assert network.plugins[0].document["mtu"] == 1400
    assert json.loads(network.raw)["plugins"][0]["type"] == "ptp"


def test_broken_conflist_after_the_one_asked_for_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "10.conflist", conflist("pods"))
    write(tmp_path / "20.conflist", "{")
    assert config.load_directory(tmp_path, "pods").name == "pods"
    with pytest.raises(Malformed, match=r"20\.conflist is not JSON"):
        config.load_directory(tmp_path, "other")


def test_unknown_network_and_empty_directory_are_not_found(tmp_path: Path) -> None:
    write(tmp_path / "10.conflist", conflist("pods"))
    with pytest.raises(NotFound, match="no network called 'other'"):
        config.load_directory(tmp_path, "other")
    with pytest.raises(NotFound, match="no network configuration"):
        config.first_network(tmp_path / "missing")
    with pytest.raises(NotFound, match="no file"):
        config.load_file(tmp_path / "missing")


def test_plugin_files_beside_the_conflist_are_appended_in_order_of_their_names(tmp_path: Path) -> None:
    file = write(tmp_path / "10.conflist", conflist("pods"))
    write(tmp_path / "pods/20.conf", {"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}})
    write(tmp_path / "pods/10.conf", {"type": "tuning"})
    write(tmp_path / "pods/00.json", {"type": "ignored"})
    network = config.load_file(file)
    assert [plugin.type for plugin in network.plugins] == ["bridge", "tuning", "portmap"]
    assert network.plugins[2].capabilities == {"portMappings"}


@pytest.mark.parametrize("said", [True, "true", "TRUE"])
def test_plugin_files_are_left_alone_when_the_conflist_says_so(tmp_path: Path, said: bool | str) -> None:
    file = write(tmp_path / "10.conflist", conflist("pods", loadOnlyInlinedPlugins=said))
    write(tmp_path / "pods/10.conf", {"type": "tuning"})
    assert [plugin.type for plugin in config.load_file(file).plugins] == ["bridge"]


def test_conflist_may_take_all_its_plugins_from_files(tmp_path: Path) -> None:
    bare = {"cniVersion": "1.1.0", "name": "pods"}
    file = write(tmp_path / "10.conflist", bare)
    with pytest.raises(ConfigInvalid, match=r"no plugins: \$\.plugins: missing, and .*/pods has no"):
        config.load_file(file)
    write(tmp_path / "pods/10.conf", BRIDGE)
    assert config.load_file(file).plugins[0].type == "bridge"
    write(file, {**bare, "loadOnlyInlinedPlugins": True})
    with pytest.raises(ConfigInvalid, match="loadOnlyInlinedPlugins is true"):
        config.load_file(file)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"plugins": [BRIDGE]}, r"\$\.name: missing"),
        ({"name": 7, "plugins": [BRIDGE]}, r"\$\.name: expected a string, found a number"),
        ({"name": "../up", "plugins": [BRIDGE]}, "cannot be a network's name"),
        ({"name": "n", "plugins": []}, r"\$\.plugins: empty"),
        ({"name": "n", "plugins": {}}, r"\$\.plugins: expected a list, found an object"),
        ({"name": "n", "plugins": ["bridge"]}, r"\$\.plugins\[0\]: expected an object, found a string"),
        ({"name": "n", "plugins": [{}]}, r"\$\.plugins\[0\]\.type: missing"),
        ({"name": "n", "plugins": [{"type": "a", "capabilities": {"x": 1}}]}, r"capabilities\.x: expected true or"),
        ({"name": "n", "cniVersion": 1, "plugins": [BRIDGE]}, r"\$\.cniVersion: expected a string"),
        ({"name": "n", "cniVersion": "one", "plugins": [BRIDGE]}, "'one' is not a version"),
        ({"name": "n", "cniVersions": "1.0.0", "plugins": [BRIDGE]}, r"\$\.cniVersions: expected a list"),
        ({"name": "n", "cniVersions": [None], "plugins": [BRIDGE]}, r"\$\.cniVersions\[0\]: expected a string"),
        ({"name": "n", "disableCheck": "yes", "plugins": [BRIDGE]}, r"\$\.disableCheck: expected true or false"),
        ({"name": "n", "disableGC": 1, "plugins": [BRIDGE]}, r"\$\.disableGC: expected true or false"),
    ],
)
def test_every_fault_names_its_place(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigInvalid, match=problem):
        config.parse_network(json.dumps(document).encode(), "net.conflist")


@pytest.mark.parametrize(
    ("keys", "spoken"),
    [
        ({}, ""),
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]}, "1.0.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["1.0.0"]}, "1.1.0"),
        ({"cniVersion": "1.0.0", "cniVersions": ["1.1.0", "2.0.0"]}, "1.1.0"),
        ({"cniVersions": ["0.10.0", "0.9.0"]}, "0.10.0"),
        ({"cniVersion": "9.0.0"}, "9.0.0"),
        ({"cniVersion": "9.0.0", "cniVersions": ["8.0.0"]}, "9.0.0"),
    ],
)
def test_newest_version_offered_that_we_know_is_spoken(keys: dict[str, Any], spoken: str) -> None:
    assert config.parse_network(json.dumps({"name": "n", "plugins": [BRIDGE], **keys}).encode()).cni_version == spoken


def test_version_absent_means_the_oldest() -> None:
    network = config.parse_network(json.dumps({"name": "n", "plugins": [BRIDGE]}).encode())
    assert network.at_least("0.1.0") and not network.at_least("0.2.0")


def test_injected_keys_win_over_the_same_key_in_another_case() -> None:
    plugin = config.parse_plugin(b'{"TYPE": "bridge", "Name": "theirs", "x": [1, 2.5, null]}', "a file")
    injected = json.loads(plugin.inject({"name": "ours", "cniVersion": "1.0.0"}))
    assert injected == {"TYPE": "bridge", "Name": "theirs", "x": [1, 2.5, None], "name": "ours", "cniVersion": "1.0.0"}
    assert list(injected)[-2:] == ["name", "cniVersion"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)
keys = st.sampled_from(["name", "cniVersion", "cniVersions", "plugins", "disableCheck", "type", "capabilities"])


@given(st.dictionaries(keys | st.text(), json_values))
def test_any_object_is_a_network_or_an_explained_error(document: dict[str, Any]) -> None:
    try:
        network = config.parse_network(json.dumps(document).encode())
    except ConfigInvalid as error:
        assert str(error)
    else:
        assert network.name == document["name"]


@given(st.binary())
def test_any_bytes_are_a_network_or_an_explained_error(data: bytes) -> None:
    with pytest.raises(ConfigInvalid):
        config.parse_network(data)
