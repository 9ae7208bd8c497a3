"""Chains under our runtime, by what each plugin was asked: order, prevResult, capabilities, cache, GC, STATUS."""

from __future__ import annotations

import base64
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from nodeplug.core.errors import ConfigInvalid, NotFound, VersionUnsupported
from nodeplug.harness.runtime import config
from nodeplug.harness.runtime.cache import Attachment, Cache, Cached
from nodeplug.harness.runtime.plugin import PluginFailed
from nodeplug.harness.runtime.runtime import Runtime, SomeFailed
from tests.harness.fakes import Fakes

if TYPE_CHECKING:
    from pathlib import Path

FIRST = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}]}
PODS = Attachment(
    "c1",
    netns="/run/netns/pod",
    args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web")),
    capability_args={"portMappings": [{"hostPort": 80}], "mac": "02:00:00:00:00:01"},
)


def network(version: str = "1.0.0", name: str = "pods", **more: Any) -> config.Network:
    plugins = [
        {"type": "one", "mine": {"kept": True}},
        {"type": "two", "capabilities": {"portMappings": True, "bandwidth": True, "mac": False}},
    ]
    document = {"cniVersion": version, "name": name, "plugins": plugins, **more}
    return config.parse_network(json.dumps(document).encode())


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    fakes = Fakes(tmp_path / "bin", "one", "two")
    fakes.tell("one", "ADD", stdout=json.dumps(FIRST))
    return fakes


@pytest.fixture
def runtime(fakes: Fakes, tmp_path: Path) -> Runtime:
    return Runtime([fakes.directory], cache_directory=tmp_path / "cache", timeout=20)


def test_add_hands_each_result_to_the_next_plugin(runtime: Runtime, fakes: Fakes) -> None:
    result = runtime.add(network(), PODS)
    assert [ip.address for ip in result.ips] == ["10.0.0.5/24"]
    one, two = fakes.asked()
    assert (one.plugin, one.command, two.plugin, two.command) == ("one", "ADD", "two", "ADD")
    assert one.env["CNI_CONTAINERID"] == "c1"
    assert one.env["CNI_NETNS"] == "/run/netns/pod"
    assert one.env["CNI_IFNAME"] == "eth0"
    assert one.env["CNI_ARGS"] == "IgnoreUnknown=1;K8S_POD_NAME=web"
    assert one.stdin == {"type": "one", "mine": {"kept": True}, "name": "pods", "cniVersion": "1.0.0"}
    assert two.stdin["prevResult"] == FIRST


def test_each_plugin_gets_only_the_capabilities_it_asked_for(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    one, two = fakes.asked()
    assert "runtimeConfig" not in one.stdin
    assert two.stdin["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}


def test_add_stops_at_the_first_error_and_deletes_nothing(runtime: Runtime, fakes: Fakes) -> None:
    fakes.tell("one", "ADD", exit=1, stdout='{"code": 7, "msg": "no"}')
    with pytest.raises(PluginFailed, match="plugin one failed on ADD"):
        runtime.add(network(), PODS)
    assert [(call.plugin, call.command) for call in fakes.asked()] == [("one", "ADD")]
    assert runtime.attachments() == []


@pytest.mark.parametrize(
    "stdout", ["", "[]", "{", '{"cniVersion": "7.0.0"}', '{"cniVersion": "1.0.0", "ips": [{"address": "x"}]}']
)
def test_result_that_cannot_be_read_is_that_plugins_fault(runtime: Runtime, fakes: Fakes, stdout: str) -> None:
    fakes.tell("two", "ADD", stdout=stdout)
    with pytest.raises(PluginFailed, match="plugin two failed on ADD: it succeeded, but"):
        runtime.add(network(), PODS)


def test_null_and_a_result_without_version_are_in_the_networks_version(runtime: Runtime, fakes: Fakes) -> None:
    fakes.tell("one", "ADD", stdout="null")
    assert runtime.add(network("0.4.0"), PODS).cni_version == "0.4.0"
    assert fakes.asked()[1].stdin["prevResult"] == {"cniVersion": "0.4.0", "dns": {}}


def test_delete_goes_backwards_with_the_final_result_for_all(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    runtime.delete(network(), PODS)
    two, one = fakes.asked()
    assert (two.plugin, two.command, one.plugin, one.command) == ("two", "DEL", "one", "DEL")
    assert one.stdin["prevResult"] == two.stdin["prevResult"] == FIRST
    assert two.stdin["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert runtime.attachments() == []


def test_delete_stops_at_the_first_error_and_keeps_the_cache(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    fakes.tell("two", "DEL", exit=1, stdout='{"code": 11, "msg": "later"}')
    with pytest.raises(PluginFailed, match="later"):
        runtime.delete(network(), PODS)
    assert [call.plugin for call in fakes.asked()] == ["two"]
    assert len(runtime.attachments()) == 1


def test_delete_before_0_4_0_sends_no_result(runtime: Runtime, fakes: Fakes) -> None:
    old = network("0.3.1")
    fakes.tell("one", "ADD", stdout='{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/24"}]}')
    runtime.add(old, PODS)
    runtime.delete(old, PODS)
    assert [("prevResult" in call.stdin) for call in fakes.asked()] == [False, True, False, False]


def test_delete_without_a_cached_result_is_made_all_the_same(runtime: Runtime, fakes: Fakes) -> None:
    runtime.delete(network(), Attachment("never-added"))
    calls = fakes.asked()
    assert [call.plugin for call in calls] == ["two", "one"]
    assert not any("prevResult" in call.stdin for call in calls)
    assert calls[0].env["CNI_NETNS"] == ""


def test_delete_with_a_broken_cache_file_is_made_without_it(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    runtime.cache.path("pods", PODS).write_text('{"kind": "cniCacheV1", "result"')
    runtime.delete(network(), PODS)
    assert not any("prevResult" in call.stdin for call in fakes.asked())
    assert not runtime.cache.path("pods", PODS).exists()


def test_result_is_handed_back_in_the_version_the_network_has_by_then(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    runtime.check(network("0.4.0"), PODS)
    assert fakes.asked()[0].stdin["prevResult"]["ips"] == [{"version": "4", "address": "10.0.0.5/24"}]


def test_check_goes_forward_and_stops_at_the_first_error(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    runtime.check(network(), PODS)
    assert [(call.plugin, call.command) for call in fakes.asked()] == [("one", "CHECK"), ("two", "CHECK")]
    fakes.tell("one", "CHECK", exit=1, stdout='{"code": 101, "msg": "gone"}')
    with pytest.raises(PluginFailed, match="gone"):
        runtime.check(network(), PODS)
    assert len(fakes.asked()) == 1


def test_check_is_refused_without_result_or_in_an_old_version_and_skipped_when_disabled(
    runtime: Runtime, fakes: Fakes
) -> None:
    with pytest.raises(NotFound, match="no cached result"):
        runtime.check(network(), PODS)
    with pytest.raises(VersionUnsupported, match=r"speaks version 0\.3\.1, which has no CHECK"):
        runtime.check(network("0.3.1"), PODS)
    runtime.check(network(disableCheck="true"), PODS)
    assert fakes.asked() == []


def test_cache_file_has_libcnis_name_mode_and_fields(runtime: Runtime, fakes: Fakes, tmp_path: Path) -> None:
    runtime.add(network(), PODS)
    path = tmp_path / "cache/results/pods-c1-eth0"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert base64.b64decode(document.pop("config")) == network().raw
    assert document == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "pods",
        "netns": "/run/netns/pod",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "web"]],
        "capabilityArgs": PODS.capability_args,
        "result": FIRST,
    }
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["results"]


def test_cache_file_of_an_older_writer_is_the_bare_result(runtime: Runtime, fakes: Fakes) -> None:
    path = runtime.cache.path("pods", PODS)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(FIRST))
    runtime.check(network(), PODS)
    assert fakes.asked()[0].stdin["prevResult"] == FIRST
    assert runtime.attachments() == []


def test_files_that_are_no_cache_files_are_passed_over(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert list(cache.entries()) == []
    cache.write(Cached("pods", PODS, b"{}", FIRST))
    for name, text in [
        ("a", ""),
        ("b", "{"),
        ("c", "[]"),
        ("d", '{"kind": "other"}'),
        ("e", '{"kind": "cniCacheV1"}'),
        ("f", '{"kind":"cniCacheV1","containerId":"x","ifName":"y","networkName":"z","cniArgs":[[1]]}'),
        ("g", '{"kind":"cniCacheV1","containerId":"x","ifName":"y","networkName":"z","config":"%"}'),
    ]:
        (tmp_path / "results" / name).write_text(text)
    (tmp_path / "results/directory").mkdir()
    assert [entry.attachment for entry in cache.entries()] == [PODS]


def test_gc_deletes_stale_attachments_of_its_own_network_only(runtime: Runtime, fakes: Fakes) -> None:
    for name, container in [("pods", "c1"), ("pods", "c2"), ("other", "c3")]:
        runtime.add(network(name=name), Attachment(container, args=PODS.args, capability_args=PODS.capability_args))
    fakes.asked()
    removed = runtime.gc(network(), [("c1", "eth0")])
    assert [entry.attachment.container_id for entry in removed] == ["c2"]
    calls = fakes.asked()
    assert [(call.plugin, call.command, call.env["CNI_CONTAINERID"]) for call in calls] == [
        ("two", "DEL", "c2"),
        ("one", "DEL", "c2"),
    ]
    assert calls[0].env["CNI_ARGS"] == "IgnoreUnknown=1;K8S_POD_NAME=web"
    assert calls[0].stdin["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert {entry.attachment.container_id for entry in runtime.attachments()} == {"c1", "c3"}


def test_gc_tells_every_plugin_what_is_valid_in_both_spellings(runtime: Runtime, fakes: Fakes) -> None:
    fakes.tell("one", "GC", exit=1, stdout='{"code": 5, "msg": "disk"}')
    with pytest.raises(SomeFailed, match="disk") as caught:
        runtime.gc(network("1.1.0"), [("c2", "eth0"), ("c1", "eth0")])
    assert len(caught.value.errors) == 1
    one, two = fakes.asked()
    listed = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]
    for call in (one, two):
        assert call.command == "GC"
        assert call.stdin["cni.dev/valid-attachments"] == call.stdin["cni.dev/attachments"] == listed
        assert [call.env[f"CNI_{key}"] for key in ("CONTAINERID", "NETNS", "IFNAME", "ARGS")] == [""] * 4
        assert "prevResult" not in call.stdin and "runtimeConfig" not in call.stdin


def test_gc_says_an_empty_list_out_loud(runtime: Runtime, fakes: Fakes) -> None:
    runtime.gc(network("1.1.0"), [])
    assert fakes.asked()[0].stdin["cni.dev/valid-attachments"] == []


def test_gc_spares_what_was_attached_since_a_moment(runtime: Runtime, fakes: Fakes) -> None:
    for container, written in (("old", 1000), ("young", 2000)):
        runtime.add(network("1.1.0"), Attachment(container))
        os.utime(runtime.cache.path("pods", Attachment(container)), (written, written))
    fakes.asked()
    removed = runtime.gc(network("1.1.0"), [], spared_since=1500)
    assert [entry.attachment.container_id for entry in removed] == ["old"]
    told = [call.stdin["cni.dev/valid-attachments"] for call in fakes.asked() if call.command == "GC"]
    assert told == [[{"containerID": "young", "ifname": "eth0"}]] * 2


def test_gc_goes_on_after_a_delete_that_failed(runtime: Runtime, fakes: Fakes) -> None:
    for container in ("c1", "c2"):
        runtime.add(network(), Attachment(container))
    fakes.tell("two", "DEL", exit=1, stdout='{"code": 11, "msg": "later"}')
    with pytest.raises(SomeFailed) as caught:
        runtime.gc(network(), [])
    assert len(caught.value.errors) == 2


def test_gc_does_nothing_where_it_is_disabled(runtime: Runtime, fakes: Fakes) -> None:
    runtime.add(network(), PODS)
    fakes.asked()
    assert runtime.gc(network(disableGC=True), []) == []
    assert fakes.asked() == []


def test_status_asks_in_order_and_passes_the_first_error_on(runtime: Runtime, fakes: Fakes) -> None:
    assert runtime.status(network("1.0.0")) is False
    assert fakes.asked() == []
    assert runtime.status(network("1.1.0")) is True
    assert [call.plugin for call in fakes.asked()] == ["one", "two"]
    fakes.tell("one", "STATUS", exit=1, stdout='{"code": 50, "msg": "not ready"}')
    with pytest.raises(PluginFailed, match="not ready") as caught:
        runtime.status(network("1.1.0"))
    assert caught.value.code == 50
    assert len(fakes.asked()) == 1


def test_validation_names_every_plugin_that_will_not_do(runtime: Runtime, fakes: Fakes) -> None:
    said = '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'
    for name in ("one", "two"):
        fakes.tell(name, "VERSION", stdout=said)
    assert runtime.validate(network()) == {"portMappings", "bandwidth"}
    (fakes.directory / "two").unlink()
    with pytest.raises(SomeFailed) as caught:
        runtime.validate(network("1.1.0"))
    assert "plugin one speaks 1.0.0 and not 1.1.0" in str(caught.value)
    assert "no plugin called 'two'" in str(caught.value)


def test_names_that_plugins_would_refuse_are_refused_before_any_runs(runtime: Runtime, fakes: Fakes) -> None:
    bad = Attachment("../c", ifname="a/b", args=(("K", "1;X=2"),))
    for operation in (runtime.add, runtime.delete, runtime.check):
        with pytest.raises(ConfigInvalid) as caught:
            operation(network(), bad)
        assert [path for path, _ in caught.value.problems] == ["container id", "interface name", "args"]
    for name in ("", ".", "..", "sixteen-letters-", "a b", "a:b", "a\u00a0b"):
        with pytest.raises(ConfigInvalid, match="interface name"):
            runtime.delete(network(), Attachment("c", ifname=name))
    assert fakes.asked() == []
