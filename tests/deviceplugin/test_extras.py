"""What happens to nobody in a demo: sockets that hang, directories that are replaced, limits that are reached."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from nodeplug.core.errors import Refused
from nodeplug.deviceplugin.kubelet import socket_name
from nodeplug.harness.kubelet.devicemanager import AdmissionFailed
from nodeplug.harness.kubelet.plugin import Plugin
from tests.child import until
from tests.deviceplugin.conftest import RESOURCE, Node, kill
from tests.needs import needs
from tests.sandbox import CHECKOUT

pytestmark = needs("root")


def test_a_new_kubelet_socket_is_noticed_while_ours_is_still_there(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.recreate_socket()
        until(lambda: kubelet.calls["Register"] == 2, "another registration")
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert len(kubelet.sockets) == 1


def test_a_directory_that_is_replaced_is_followed(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.plugin():
        for _ in range(3):
            with node.kubelet() as kubelet:
                kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            shutil.rmtree(node.kubelet_dir / "device-plugins")
            time.sleep(0.2)


def test_the_plugin_may_be_there_before_the_kubelet(node: Node) -> None:
    node.mknod("a")
    node.configure()
    shutil.rmtree(node.kubelet_dir)
    with node.plugin():
        time.sleep(0.3)
        assert not node.kubelet_dir.exists()
        with node.kubelet() as kubelet:
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_socket_paths_stay_below_107_bytes_whatever_the_name() -> None:
    name = socket_name("a" * 60 + "." + "b" * 60 + "/" + "c" * 63)
    assert len(f"/var/lib/kubelet/plugins_registry/{name}") <= 107
    assert name != socket_name("a" * 60 + "." + "b" * 60 + "/" + "c" * 63)


def test_a_path_that_is_too_long_is_told(node: Node) -> None:
    node.mknod("a")
    node.configure()
    node.kubelet_dir = node.top / ("k" * 80)
    (node.kubelet_dir / "device-plugins").mkdir(parents=True)
    (node.kubelet_dir / "device-plugins" / "kubelet.sock").touch()
    os.unlink(node.kubelet_dir / "device-plugins" / "kubelet.sock")
    node.ledger.listener(path=None)
    with node.plugin() as plugin:
        here = os.open(node.kubelet_dir / "device-plugins", os.O_DIRECTORY)
        try:
            node.ledger.listener(path=f"/proc/self/fd/{here}/kubelet.sock")  # type: ignore[arg-type]  # short enough
        finally:
            os.close(here)
        until(lambda: any("too long" in line for line in node.log), "a word in the log")
        assert plugin.status() == "1 resources, 0 registered"


def test_a_register_call_that_hangs_holds_up_nobody_else(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource("nodeplug.dev/slow"), node.resource("nodeplug.dev/quick"))
    leave = threading.Event()
    with node.kubelet() as kubelet:
        kubelet.on_register = lambda resource: "slow" in resource and leave.wait(20)  # type: ignore[assignment, func-returns-value]
        with node.plugin():
            kubelet.wait("nodeplug.dev/quick", capacity=1, allocatable=1)
            assert "nodeplug.dev/slow" not in kubelet.resources()
            leave.set()
            kubelet.wait("nodeplug.dev/slow", capacity=1, allocatable=1)


def test_a_stream_that_is_cancelled_is_registered_anew_with_another_socket(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        (before,) = kubelet.sockets
        kubelet.drop_streams()
        until(lambda: kubelet.calls["Register"] == 2, "another registration")
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        (after,) = kubelet.sockets
        assert before != after
        ends = plugin.registry.get_sample_value(
            "nodeplug_deviceplugin_stream_ends_total", {"resource": RESOURCE, "cause": "stream ended"}
        )
        assert ends == 1


def test_a_list_over_four_mebibytes_is_not_sent_and_says_what_to_do(node: Node) -> None:
    for number in range(1000):
        node.mknod(f"a-device-with-a-rather-long-name-{number:06}", number)
    node.configure(node.resource(share={"replicas": 100}))
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=0, allocatable=0)
        until(lambda: not plugin.health.ready, "readiness to fail")
        assert "set limit to at most" in plugin.health.trouble()
        node.configure(node.resource(share={"replicas": 10}))
        assert plugin.reload()
        kubelet.wait(RESOURCE, capacity=10_000, allocatable=10_000)
        until(lambda: plugin.health.ready, "readiness")


def test_a_device_that_two_rules_find_is_one_device(node: Node) -> None:
    target = node.mknod("ttyX0")
    links = node.top / "by-id"
    links.mkdir()
    (links / "usb-thing").symlink_to(target)
    (links / "usb-thing-again").symlink_to(target)
    node.configure(node.resource(match=[{"path": f"{links}/*"}, {"path": f"{node.dev}/tty*"}]))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
        assert [spec.host_path for spec in given.devices] == [str(links / "usb-thing")]


def test_an_allocation_of_a_device_that_has_just_gone_waits_and_is_given(node: Node) -> None:
    node.mknod("a", 1)
    node.configure(node.resource(hold="1h"))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        (id,) = kubelet.devices(RESOURCE)
        (path,) = kubelet.sockets
        direct = Plugin(RESOURCE, str(kubelet.plugins / path), kubelet.calls)
        os.unlink(node.dev / "a")
        kubelet.wait(RESOURCE, capacity=1, allocatable=0)
        try:
            back = threading.Timer(0.3, lambda: node.mknod("a", 2))
            back.start()
            assert direct.allocate([id]).devices[0].host_path == str(node.dev / "a")
            back.join()
            assert not any("although unhealthy" in line for line in node.log)
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)  # else the list of before is taken for the next one
            os.unlink(node.dev / "a")
            kubelet.wait(RESOURCE, capacity=1, allocatable=0)
            assert direct.allocate([id]).devices
            until(lambda: any("although unhealthy" in line for line in node.log), "it is told")
            with pytest.raises(Refused, match="has no device 'never'"):
                direct.allocate(["never"])
        finally:
            direct.close()


def test_more_shares_than_one_are_refused_where_they_give_no_more(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(share={"replicas": 4, "one_per_container": True}))
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=4, allocatable=4)
        assert kubelet.admit("default/p", "c", {RESOURCE: 1})
        with pytest.raises(AdmissionFailed, match="request 1"):
            kubelet.admit("default/q", "c", {RESOURCE: 2})


@pytest.mark.parametrize("registration", ["watcher", "auto"])
def test_the_plugin_watcher_finds_the_plugin_and_finds_it_again(node: Node, registration: str) -> None:
    node.mknod("a")
    node.configure(registration=registration)
    with node.kubelet(watcher=True) as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert (kubelet.calls["GetInfo"], kubelet.calls["Register"]) == (1, 0)
        kubelet.restart(pause=0.2)
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        kubelet.drop_streams()
        until(lambda: kubelet.calls["ListAndWatch"] == 3, "a new socket for a kubelet that forgot us")
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert len(kubelet.sockets) == 1
        assert "1 registered" in plugin.status()


def test_auto_goes_to_kubelet_sock_when_the_watcher_does_not_come(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        (node.kubelet_dir / "plugins_registry").mkdir(mode=0o750)
        (kubelet.plugins / "DEPRECATION").touch()
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            assert kubelet.calls["Register"] == 1
            assert len(kubelet.sockets) == 1


def test_sockets_of_a_killed_plugin_are_removed(node: Node) -> None:
    node.mknod("a")
    node.configure(registration="watcher")
    with node.kubelet(watcher=True) as kubelet:
        for _ in range(3):
            process = node.process()
            until(lambda: kubelet.streaming(RESOURCE), "the plugin")
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            kill(process)
            kubelet.wait(RESOURCE, allocatable=0)
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
            assert len(kubelet.sockets) == 1
    assert kubelet.sockets == []


def test_without_inotify_and_in_a_user_namespace_devices_are_polled(node: Node) -> None:
    """A real user namespace, in which the kernel sends no device events, with no inotify instance left."""
    node.mknod("a")
    node.configure(poll=0.2)
    script = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    argv = [str(CHECKOUT / "bin/nodeplug-deviceplugin"), "--config", str(node.config)]
    with node.kubelet() as kubelet:
        process = node.ledger.start(
            [
                "unshare",
                "--user",
                "--map-root-user",
                "sh",
                "-c",
                script,
                "sh",
                *argv,
                "--kubelet-dir",
                str(node.kubelet_dir),
            ]
        )
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        node.mknod("b")
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert "user namespace" in process.output()
        assert "max_user_instances" in process.output()
        kubelet.restart()
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)


def test_an_inotify_overflow_loses_no_device(node: Node) -> None:
    """More changes than a queue holds while nobody reads: the next look finds all."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    node.configure(rescan=3600)
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=0, allocatable=0)
        watcher = plugin.discovery._triggers
        heard = watcher.wait
        quiet = threading.Event()

        def deaf(timeout: float) -> list[object]:
            quiet.wait(20)
            return heard(timeout)  # type: ignore[return-value]  # changes

        watcher.wait = deaf  # type: ignore[method-assign, assignment]  # a thread that does not get to run
        node.mknod("first")
        script = (
            f"import os\nfor n in range({limit}): os.mknod('{node.dev}/t', 0o20600, 0xfa01); os.unlink('{node.dev}/t')"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
        node.mknod("last")
        quiet.set()
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert plugin.registry.get_sample_value("nodeplug_deviceplugin_lost_events_total", {"kind": "inotify"})


def test_descriptors_that_run_out_end_nothing(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet:
        process = node.ledger.start(
            [
                "prlimit",
                "--nofile=40",
                str(CHECKOUT / "bin/nodeplug-deviceplugin"),
                "--config",
                str(node.config),
                "--kubelet-dir",
                str(node.kubelet_dir),
            ]
        )
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        import resource

        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4, 40))
        kubelet.restart()
        time.sleep(1.0)
        assert process.running(), process.output()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
        kubelet.wait(RESOURCE, capacity=1, allocatable=1, timeout=30)


def test_a_full_run_directory_falls_back_to_device_nodes(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(cdi="always"))
    node.cdi.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(node.cdi)], check=True)
    node.ledger.adopt("full tmpfs", lambda: subprocess.run(["umount", str(node.cdi)], check=True))
    (node.cdi / "filler").write_bytes(b"x" * 4096)
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        given = kubelet.admit("default/p", "c", {RESOURCE: 1})[RESOURCE]
        assert given.devices
        assert not given.cdi_devices
        until(lambda: "cdi" in plugin.health.trouble(), "the condition")
        (node.cdi / "filler").unlink()
        node.mknod("b")
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert kubelet.admit("default/q", "c", {RESOURCE: 1})[RESOURCE].cdi_devices


def test_any_bytes_on_the_wire_get_an_answer_or_a_status(node: Node) -> None:
    """A malformed request is INVALID_ARGUMENT; a malformed wish is no wish; nothing ends the server."""
    node.mknod("a")
    node.configure()
    chance = random.Random(7)
    codes = set()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        path = kubelet.plugins / kubelet.sockets[0]
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
            for method in ("GetDevicePluginOptions", "Allocate", "GetPreferredAllocation", "PreStartContainer"):
                ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/v1beta1.DevicePlugin/{method}")
                for _ in range(100):
                    try:
                        ask(chance.randbytes(chance.randrange(40)), timeout=10)
                    except grpc.RpcError as failed:
                        assert method in ("Allocate", "PreStartContainer")
                        codes.add(failed.code())
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                raw.sendall(chance.randbytes(2000))
        assert codes <= {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        }
        assert kubelet.admit("default/p", "c", {RESOURCE: 1})
        assert len(kubelet.sockets) == 1


def test_many_streams_leave_threads_for_allocations(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin():
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        path = str(kubelet.plugins / kubelet.sockets[0])
        lists: list[int] = []
        plugins = [Plugin(RESOURCE, path, kubelet.calls) for _ in range(12)]
        for plugin in plugins:
            plugin.follow(lambda _plugin, message: lists.append(len(message.devices)), lambda *_: None)
        until(lambda: len(lists) >= 3, "a first list on the newest streams")
        (id,) = kubelet.devices(RESOURCE)
        assert plugins[-1].allocate([id]).devices
        for plugin in plugins:
            plugin.close()
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)


def test_a_fault_in_a_look_does_not_end_discovery(node: Node) -> None:
    node.mknod("a")
    node.configure()
    with node.kubelet() as kubelet, node.plugin() as plugin:
        kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        source = plugin.discovery._pools[RESOURCE].sources[0]
        look = source.look
        faults = iter([RuntimeError("a bug")])

        def stumble(key: str) -> object:
            for fault in faults:
                raise fault
            return look(key)

        source.look = stumble  # type: ignore[method-assign, assignment]  # a fault that is not there otherwise
        node.mknod("b")
        kubelet.wait(RESOURCE, capacity=2, allocatable=2)
        assert any("a bug" in line for line in node.log)
        assert plugin.alive


def test_nothing_is_left_of_a_plugin_that_ended(node: Node) -> None:
    node.mknod("a")
    node.configure(node.resource(cdi="always"))
    with node.kubelet() as kubelet:
        with node.plugin():
            kubelet.wait(RESOURCE, capacity=1, allocatable=1)
        assert kubelet.sockets == []
        kept = {entry.name for entry in kubelet.plugins.iterdir() if not stat.S_ISSOCK(entry.lstat().st_mode)}
        assert kept == {"kubelet_internal_checkpoint"}
