"""The scenarios a to p of the kubelet's own end-to-end tests: ours where a plugin acts, a faulty one where it fails."""

from __future__ import annotations

import json
import os
import signal
import time

import grpc
import pytest

from nodeplug.core.errors import Refused
from nodeplug.deviceplugin import podresources
from nodeplug.deviceplugin.protocol import Holder
from nodeplug.harness.kubelet.devicemanager import AdmissionFailed
from tests.child import until
from tests.deviceplugin.conftest import RESOURCE, Node
from tests.deviceplugin.faulty import FaultyPlugin
from tests.needs import needs

pytestmark = needs("root")


def test_a_a_plugin_without_options_is_not_registered(node: Node) -> None:
    with node.kubelet() as kubelet, FaultyPlugin(kubelet.plugins / "f.sock", RESOURCE) as plugin:
        plugin.broken = {"GetDevicePluginOptions"}
        with pytest.raises(grpc.RpcError, match="failed to get device plugin options"):
            plugin.register(kubelet.plugins / "kubelet.sock")
        assert plugin.calls == {"GetDevicePluginOptions": 1}
        assert kubelet.resources() == {}


def test_a_our_plugin_tries_again_until_it_is_taken(node: Node) -> None:
    node.mknod("a")
    node.configure()
    refusals = iter(["failed to get device plugin options"] * 2)

    def refuse(_resource: str) -> None:
        for reason in refusals:
            raise Refused(reason)

    with node.kubelet() as kubelet:
        kubelet.on_register = refuse
        with node.plugin() as plugin:
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            assert kubelet.calls["Register"] == 3
            assert plugin.registry.get_sample_value(
                "nodeplug_deviceplugin_registration_errors_total", {"resource": RESOURCE}
            )


def test_b_an_unplugged_device_is_unhealthy_and_comes_back(node: Node) -> None:
    node.mknod("a", 1)
    node.configure(node.resource(hold="1h"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        os.unlink(node.dev / "a")
        kubelet.wait(RESOURCE, capacity=1, allocatable=0)
        node.mknod("a", 2)
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_c_a_running_pod_keeps_a_device_that_went(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(hold="1h"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.admit("default/p", "c", {RESOURCE: 1})
        os.unlink(node.dev / "a")
        kubelet.wait(RESOURCE, capacity=1, allocatable=0)
        assert kubelet.start_container("default/p", "c")
        kubelet.remove_pod("default/p")
        assert kubelet.resources()[RESOURCE] == (1, 0)


def test_d_counts_follow_each_step(node: Node) -> None:
    for name in "abcd":
        node.mknod(name)
    node.configure(node.resource(hold="1h"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=4, allocatable=4)
        for left, name in ((3, "a"), (2, "b"), (1, "c"), (0, "d")):
            os.unlink(node.dev / name)
            kubelet.wait(RESOURCE, capacity=4, allocatable=left)
        for count, name in ((1, "a"), (2, "b"), (3, "c"), (4, "d")):
            node.mknod(name)
            kubelet.wait(RESOURCE, capacity=4, allocatable=count)


def test_e_a_stream_that_fails_at_once_is_not_opened_again(node: Node) -> None:
    with node.kubelet() as kubelet, FaultyPlugin(kubelet.plugins / "f.sock", RESOURCE) as plugin:
        plugin.broken = {"ListAndWatch"}
        plugin.register(kubelet.plugins / "kubelet.sock")
        until(lambda: kubelet.log, "the stream's end in the log")
        time.sleep(0.3)
        assert plugin.calls["ListAndWatch"] == 1
        assert kubelet.resources() == {RESOURCE: (0, 0)}


def test_f_a_stream_that_fails_later_costs_the_resource_after_the_grace_time(node: Node) -> None:
    with node.kubelet(grace=0.5) as kubelet, FaultyPlugin(kubelet.plugins / "f.sock", RESOURCE) as plugin:
        plugin.register(kubelet.plugins / "kubelet.sock")
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        plugin.break_stream()
        kubelet.wait(RESOURCE, capacity=2, allocatable=0)
        until(lambda: RESOURCE not in kubelet.resources(), "the resource to be forgotten")


def test_e_f_our_plugin_registers_anew_when_its_stream_ends(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        for registrations in (2, 3):
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            kubelet.drop_streams()
            until(lambda n=registrations: kubelet.calls["Register"] == n, "another registration")
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert len(kubelet.sockets) == 1


def test_g_a_stopped_plugin_leaves_capacity_for_the_grace_time(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet(grace=1.0) as kubelet:
        process = node.process()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        kubelet.wait(RESOURCE, capacity=1, allocatable=0)
        assert kubelet.sockets == []
        until(lambda: RESOURCE not in kubelet.resources(), "the resource to be forgotten")


def test_h_podresources_tell_which_pod_has_which_device(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("team/p", "c", {RESOURCE: 1})[RESOURCE]
        assert [(spec.host_path, spec.container_path, spec.permissions) for spec in given.devices] == [
            (str(node.dev / "a"), str(node.dev / "a"), "rwm")
        ]
        (id,) = kubelet.devices(RESOURCE)
        assert podresources.ask(str(kubelet.podresources)) == {RESOURCE: {id: [Holder("team", "p", "c")]}}


def test_i_a_container_that_is_restarted_keeps_its_device(node: Node) -> None:
    node.mknod("a")
    node.mknod("b")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        first = kubelet.admit("default/p", "c", {RESOURCE: 1})
        assert kubelet.start_container("default/p", "c") == kubelet.start_container("default/p", "c") == first
        assert kubelet.calls["Allocate"] == 1


def test_j_assignments_outlive_a_restart_of_the_kubelet(node: Node) -> None:
    node.mknod("a")
    node.mknod("b")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        first = kubelet.admit("default/p", "c", {RESOURCE: 1})
        mine = kubelet.held("default/p", "c", RESOURCE)
        kubelet.restart()
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert kubelet.start_container("default/p", "c") == first
        kubelet.admit("default/q", "c", {RESOURCE: 1})
        assert kubelet.held("default/q", "c", RESOURCE) != mine
        assert kubelet.calls["Allocate"] == 2


def test_k_assignments_outlive_the_plugin(node: Node) -> None:
    node.mknod("a")
    node.mknod("b")
    node.configure()
    with node.kubelet() as kubelet:
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=2, allocatable=2)
            kubelet.admit("default/p", "c", {RESOURCE: 1})
            mine = kubelet.held("default/p", "c", RESOURCE)
        kubelet.wait(RESOURCE, capacity=2, allocatable=0)
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=2, allocatable=2)
            kubelet.admit("default/q", "c", {RESOURCE: 1})
            assert kubelet.held("default/p", "c", RESOURCE) == mine
            assert kubelet.held("default/q", "c", RESOURCE) != mine


def test_l_after_a_reboot_pods_fail_until_the_plugin_is_there(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.restart()
        with pytest.raises(AdmissionFailed, match="no healthy devices present"):
            kubelet.admit("default/p", "c", {RESOURCE: 1})
        assert podresources.ask(str(kubelet.podresources)) == {}
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            assert kubelet.admit("default/p", "c", {RESOURCE: 1})


def test_m_a_cdi_device_is_named_and_its_file_is_there(node: Node) -> None:
    node.mknod("a", 7)
    node.configure(node.resource(cdi="always", permissions="rw"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
        (id,) = kubelet.devices(RESOURCE)
        assert [device.name for device in given.cdi_devices] == [f"{RESOURCE}={id}"]
        assert not given.devices
        (file,) = node.cdi.iterdir()
        path = str(node.dev / "a")
        assert json.loads(file.read_text()) == {
            "cdiVersion": "0.5.0",
            "kind": RESOURCE,
            "devices": [
                {
                    "name": id,
                    "containerEdits": {
                        "deviceNodes": [
                            {"path": path, "hostPath": path, "type": "c", "major": 250, "minor": 7, "permissions": "rw"}
                        ]
                    },
                }
            ],
        }


def test_n_devices_of_finished_init_containers_are_taken_over(node: Node) -> None:
    for name in "abc":
        node.mknod(name)
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=3, allocatable=3)
        kubelet.admit("default/p", "sidecar", {RESOURCE: 1})
        kubelet.admit("default/p", "init", {RESOURCE: 1})
        kubelet.admit("default/p", "app", {RESOURCE: 2}, reuse="init")
        init, app = (set(kubelet.held("default/p", name, RESOURCE)) for name in ("init", "app"))
        assert init < app
        assert not app & set(kubelet.held("default/p", "sidecar", RESOURCE))


def test_o_a_plugin_pod_that_is_replaced_restores_the_counts(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        for _ in range(3):
            process = node.process()
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            process.signal(signal.SIGTERM)
            process.wait()
            kubelet.wait(RESOURCE, capacity=1, allocatable=0)


@pytest.mark.parametrize("old", [False, True])
def test_p_the_end_of_the_old_plugin_leaves_the_new_one_its_devices(node: Node, old: bool) -> None:
    """Of two plugins that see one another the second waits; these two are in containers without a common /run."""
    node.mknod("a")
    node.configure()
    with node.kubelet(old=old) as kubelet:
        first = node.start()
        try:
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            node.configure(directories={"links": str(node.top / "elsewhere" / "links")})
            with node.plugin():
                until(lambda: kubelet.calls["Register"] == 2, "the second plugin")
                kubelet.wait(RESOURCE, capacity=1, allocatable=1)
                first.close(5.0)
                # An old kubelet takes the new plugin down with the old one, which then comes back by itself.
                until(lambda: not old or kubelet.calls["Register"] == 3, "another registration")
                kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        finally:
            first.close(5.0)
